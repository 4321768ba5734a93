"""Write what README and docs say of speed and memory, and their pictures, from bench/results/*.json.

    python bench/report.py [--check]

With --check nothing is written; the exit status is 1 where a file isn't what the results give.
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
import report_cpu
import report_gpu
import report_growth
import report_memory

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- begin results -->", "<!-- end results -->"
SHOWN = 12  # lines of a difference


def read(name: str) -> Any:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def marked(path: str, results: str) -> str:
    """A file with the results between its two marks."""
    before, rest = (ROOT / path).read_text().split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{results}\n{END}{after}"


def overview(cpu: dict, results: dict[str, report_cpu.Result]) -> str:
    return f"""# Benchmarks

From `bench/results/*.json`, by `make report`, which CI compares. `make bench-cpu`, `make growth`,
`make memory` and `make gpu` measure anew.

- [Against peers on the CPU](#against-peers-on-the-cpu), [near the roof?](#near-the-roof)
- [How cost grows](#how-cost-grows), [memory of a training step](#memory-of-a-training-step)
- [GPU](#gpu)
- [Every CPU benchmark](#every-cpu-benchmark)

## Against peers on the CPU

![Each peer's time over fastcnn's, for every benchmark](peers.svg)

{report_cpu.introduction(cpu, results)}

## Near the roof?

![Operations for each byte that must move, and operations a second](roofline.svg)

The roof is what a large copy and a matmul of 2048 × 2048 reach in the same run. Operations are what the
formulas ask for, whoever computes and however: a comparison for a ReLU, nine operations for an LRN of 5 (a
square, four additions, two for d, a power, a product), eight comparisons for a window of nine, two for each
product of a convolution or dense layer. Bytes are those that must move: input, output, weights.
"""


def document(cpu: dict, results: dict[str, report_cpu.Result]) -> str:
    details = [line for r in results.values() for line in report_cpu.details(r)]
    sections = [
        overview(cpu, results),
        report_growth.section(read("growth")),
        report_memory.section(read("memory")),
        report_gpu.section(read("gpu")),
        "## Every CPU benchmark\n",
        "\n".join(details),
    ]
    return "\n".join(sections).rstrip() + "\n"


def files() -> dict[str, str]:
    """Everything that is generated, by its path."""
    cpu = read("cpu")
    results = {b["name"]: report_cpu.Result(b) for b in cpu["benchmarks"]}
    return {
        "README.md": marked("README.md", report_cpu.readme(cpu, results)),
        "docs/cpu.md": marked("docs/cpu.md", report_cpu.floors(results)),
        "docs/benchmarks.md": document(cpu, results),
        "docs/speed.svg": figures.svg(figures.speed(results)),
        "docs/peers.svg": figures.svg(figures.peers(results)),
        "docs/roofline.svg": figures.svg(figures.roofline(results)),
        "docs/growth.svg": figures.svg(figures.growth(read("growth"))),
        "docs/memory.svg": figures.svg(figures.memory(read("memory"))),
    }


def differences(path: str, text: str) -> list[str]:
    """The first lines in which a file isn't the text it should be."""
    there = ROOT / path
    lines = there.read_text().splitlines() if there.exists() else []
    diff = difflib.unified_diff(lines, text.splitlines(), path, "from the results", n=0, lineterm="")
    return list(islice(diff, SHOWN))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a file is another")
    check, made = parser.parse_args().check, files()
    if not check:
        for path, text in made.items():
            (ROOT / path).write_text(text)
        return 0
    found = [line for path, text in made.items() for line in differences(path, text)]
    if found:
        print("\n".join(found), "\nrun make report", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
