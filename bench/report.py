"""Write what README and docs say of speed and memory, and their pictures, from bench/results/*.json.

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
import matplotlib
import report_cpu
import report_gpu
import report_growth
import report_memory
import report_public
import report_sweep
from pages import marked

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
SHOWN = 12  # lines of a difference


def read(name: str, command: str) -> Any:
    """The results of that name, which the command makes."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        sys.exit(f"no {path.relative_to(ROOT)}: run {command}")
    return json.loads(path.read_text())


def read_cpu() -> tuple[dict, dict[str, report_cpu.Result]]:
    """What `make bench-cpu` wrote, and its benchmarks by name."""
    data = read("cpu", "make bench-cpu")
    results = report_cpu.results(data)
    lacking = [name for name in (*report_cpu.ROWS, *report_cpu.ROOF) if name not in results]
    if lacking:
        sys.exit(f"cpu.json has not all of the benchmarks, {lacking[0]!r} for one: run make bench-cpu")
    return data, results


def overview(cpu: dict, results: dict[str, report_cpu.Result]) -> str:
    return f"""# Benchmarks

How many times as fast is fastcnn as the fastest of eager PyTorch, torch.compile, ONNX Runtime, OpenVINO and
JAX? The first picture has every benchmark. The tables have times, quartiles, and how far fastcnn is from the
least time that the machine needs.

{report_cpu.why(results)}

All figures are from `bench/results/*.json`, by `make report`; CI checks that they agree. `make bench-cpu`,
`make growth`, `make memory` and `make gpu` measure again. [Random shapes](sweep.md) and
[public models](public_models.md) have pages of their own.

- [Against peers on the CPU](#against-peers-on-the-cpu), [near the roof?](#near-the-roof)
- [How cost grows](#how-cost-grows), [memory of a training step](#memory-of-a-training-step)
- [GPU](#gpu)
- [Every CPU benchmark](#every-cpu-benchmark)

## Against peers on the CPU

![Each peer's time over fastcnn's, for every benchmark](peers.svg)

{report_cpu.introduction(cpu)}

## Near the roof?

![Operations for each byte that must move, and operations a second](roofline.svg)

The roof is what a large copy and the faster one of a matmul and a convolution reach in the same run.
Operations are what the formulas ask for, whoever computes and however: a comparison for a ReLU, nine
operations for an LRN of 5 (a square, four additions, two for d, a power, a product), eight comparisons for a
window of nine, two for each product of a convolution or dense layer, whose network's ReLU, LRN and pooling
are not counted. Bytes are those that must move: input, output, weights.
"""


def document(cpu: dict, results: dict[str, report_cpu.Result], growth: dict, memory: dict) -> str:
    details = [line for r in results.values() for line in report_cpu.details(r)]
    sections = [
        overview(cpu, results),
        report_growth.section(growth),
        report_memory.section(memory),
        report_gpu.section(RESULTS),
        "## Every CPU benchmark\n",
        "\n".join(details),
    ]
    return "\n".join(sections).rstrip() + "\n"


def files() -> dict[str, str]:
    """Everything that is generated, by its path."""
    cpu, results = read_cpu()
    growth, memory = read("growth", "make growth"), read("memory", "make memory")
    return {
        "README.md": marked(
            (ROOT / "README.md").read_text(),
            summary="\n".join([*report_cpu.summary(cpu, results), report_gpu.summary(RESULTS)]),
            results=report_cpu.readme(cpu, results),
            gpu=report_gpu.readme(RESULTS),
        ),
        "docs/cpu.md": marked((ROOT / "docs/cpu.md").read_text(), results=report_cpu.floors(results)),
        "fastcnn/backends/trusted.json": report_gpu.allowed(RESULTS),
        "docs/benchmarks.md": document(cpu, results, growth, memory),
        "docs/sweep.md": report_sweep.page(read("sweep", "make sweep")),
        "docs/public_models.md": report_public.page(read("public_models", "make public")),
        "docs/speed.svg": figures.svg(figures.speed(results)),
        "docs/peers.svg": figures.svg(figures.peers(results)),
        "docs/roofline.svg": figures.svg(figures.roofline(results, report_cpu.rates(cpu))),
        "docs/growth.svg": figures.svg(figures.growth(growth)),
        "docs/memory.svg": figures.svg(figures.memory(memory)),
    }


def differences(path: str, text: str) -> list[str]:
    """The first lines in which a file isn't the text it should be."""
    there = ROOT / path
    lines = there.read_text().splitlines() if there.exists() else []
    diff = difflib.unified_diff(lines, text.splitlines(), path, "from the results", n=0, lineterm="")
    return list(islice(diff, SHOWN))


def comparable(path: str) -> bool:
    """Whether it is a text, or a picture by this matplotlib or by none yet."""
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
