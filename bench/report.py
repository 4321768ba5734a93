"""Writes what README and docs say of speed and memory, and their pictures, from bench/results/*.json.

    python bench/report.py [--check]

With --check nothing is written; the exit status is 1 where a file isn't what the results give. Pictures by
another matplotlib, whose bytes differ, are then left alone, and named.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import figures
import growth
import matplotlib
import memory
import report_cpu
import report_gpu
import report_public
import sweep
from pages import marked

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
SHOWN = 12  # lines of a difference


def read(name: str, command: str) -> Any:
    """Returns the results of that name, which the command makes."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        sys.exit(f"no {path.relative_to(ROOT)}: run {command}")
    return json.loads(path.read_text())


def benchmarks(cpu: dict, results: dict[str, report_cpu.Result]) -> str:
    """Returns docs/benchmarks.md."""
    details = "\n".join(map(report_cpu.details, results.values()))
    return f"""# Benchmarks

**How fast is fastcnn?** Its speed relative to eager PyTorch, and to the fastest of torch.compile, ONNX
Runtime, OpenVINO and JAX:

{report_cpu.summary(cpu, results, report_gpu.summary(RESULTS))}

**Why?** {report_cpu.why(results)}

**What do I gain?** `python -m fastcnn bench --quick` times these on your machine,
`python -m fastcnn bench package.module:function --shape 32,3,224,224` a model of yours.

**What is on this page?** Every figure is from `bench/results/*.json`, by `make report`; CI checks that they
agree. These commands measure again:

- `make bench-cpu`: [against other libraries on the CPU](#against-other-libraries-on-the-cpu),
  [near the roof?](#near-the-roof), [every CPU benchmark](#every-cpu-benchmark)
- `make growth`: [how cost grows](#how-cost-grows)
- `make memory`: [memory of a training step](#memory-of-a-training-step)
- `make gpu`: [GPU](#gpu)
- `make sweep`: [random shapes beside plain PyTorch](sweep.md)
- `make public`: [public models, plain and fused](public_models.md)

## Against other libraries on the CPU

A point to the right of the blue line is a library that takes longer than fastcnn.

![Each peer's time over fastcnn's, for every benchmark](peers.svg)

{report_cpu.notes(cpu)}

## Near the roof?

![Operations for each byte that must move, and operations a second](roofline.svg)

The roof is what a large copy and the faster one of a matmul and a convolution reach in the same run.
Operations are what the formulas ask for, whoever computes and however: a comparison for a ReLU, nine
operations for an LRN of 5 (a square, four additions, two for d, a power, a product), eight comparisons for a
window of nine, two for each product of a convolution or dense layer, whose network's ReLU, LRN and pooling
are not counted. Bytes are those that must move: input, output, weights.

{growth.section(read("growth", "make growth"))}
{memory.section(read("memory", "make memory"))}
{report_gpu.section(RESULTS)}
## Every CPU benchmark

{details}"""


def files() -> dict[str, str]:
    """Returns everything that is generated, by its path."""
    cpu = read("cpu", "make bench-cpu")
    results = report_cpu.results(cpu)
    lacking = [name for name in (*report_cpu.ROWS, *figures.roof_names()) if name not in results]
    if lacking:
        sys.exit(f"cpu.json has not all of the benchmarks, {lacking[0]!r} for one: run make bench-cpu")
    pictures = {
        "speed": figures.speed(results),
        "peers": figures.peers(results),
        "roofline": figures.roofline(results, report_cpu.rates(cpu)),
        "growth": figures.growth(read("growth", "make growth")),
        "memory": figures.memory(read("memory", "make memory")),
    }
    return {
        "README.md": marked(
            (ROOT / "README.md").read_text(),
            summary=report_cpu.summary(cpu, results, report_gpu.summary(RESULTS)),
            results=report_cpu.readme(cpu, results),
            gpu=report_gpu.readme(RESULTS),
        ),
        "docs/cpu.md": marked((ROOT / "docs/cpu.md").read_text(), results=report_cpu.floors(results)),
        "fastcnn/backends/trusted.json": report_gpu.allowed(RESULTS),
        "docs/benchmarks.md": benchmarks(cpu, results),
        "docs/sweep.md": sweep.page(read("sweep", "make sweep")),
        "docs/public_models.md": report_public.page(read("public_models", "make public")),
        **{f"docs/{name}.svg": figures.svg(figure) for name, figure in pictures.items()},
    }


def differences(path: str, text: str) -> list[str]:
    """Returns the first lines in which a file isn't the text it should be."""
    there = ROOT / path
    lines = there.read_text().splitlines() if there.exists() else []
    diff = difflib.unified_diff(lines, text.splitlines(), path, "from the results", n=0, lineterm="")
    return list(islice(diff, SHOWN))


def comparable(path: str) -> bool:
    """Returns whether it is a text, or a picture by this matplotlib or by none yet."""
    there = ROOT / path
    written = there.suffix == ".svg" and there.exists()
    return not written or f"Matplotlib v{matplotlib.__version__}," in there.read_text()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a file is another")
    check, made = parser.parse_args().check, files()
    if not check:
        for path, text in made.items():
            (ROOT / path).write_text(text)
        return 0
    others = [path for path in made if not comparable(path)]
    if others:
        print(f"by another matplotlib than {matplotlib.__version__}, so not compared:", *others)
    found = [line for path, text in made.items() if path not in others for line in differences(path, text)]
    if found:
        print("\n".join(found), "\nrun make report", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
