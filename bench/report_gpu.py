"""What bench/gpu.py measured; until it has run on hardware, what the kernels' pages predict."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
PREDICTED = "## What a run must confirm"


def prediction(page: str) -> str:
    """The table below that heading."""
    after = (DOCS / page).read_text().split(PREDICTED)[1]
    return re.search(r"(?:^\|.*\n)+", after, re.MULTILINE)[0]


def waiting() -> str:
    return f"""## GPU

**Not measured: this waits for hardware.** No kernel of the cuda and triton backends has run on a GPU. `make
gpu` on a machine with one times all of it into `bench/results/gpu.json`, of which `make report` then makes
this section. Until then these are predictions, from counted instructions and bytes; the pages they come from
say why.

[CUDA](cuda.md), [128, 96, 55, 55] in bfloat16 channels_last, on an H100:

{prediction("cuda.md")}
[Triton](triton.md), 128 images in bfloat16, on an H100:

{prediction("triton.md")}"""


def section(data: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    by = f"By `make gpu` on {data['device']}, driver {data['driver']}, {versions}, {data['date']}."
    parts = ["\n".join(part(*item)) for item in data["parts"].items()]
    return "\n\n".join(["## GPU", by, *parts]) + "\n"


def part(name: str, done: dict) -> Iterator[str]:
    """Its state, its counts and rates, and the table of what was raced."""
    found = done["results"]
    raced = {row: values for row, values in found.items() if isinstance(values, dict) and "ms" in values}
    yield f"### {name}\n"
    yield "; ".join(
        [done["status"], *(told(row, values) for row, values in found.items() if row not in raced)]
    )
    if raced:
        yield "\n| | ms | quartiles | times the first's | GB/s | of a copy's | peak, MB |"
        yield "|---|--:|--:|--:|--:|--:|--:|"
    for row, values in raced.items():
        case = row.replace(" | ", ", ")
        yield from (f"| {case}: {who} | {' | '.join(cells(who, values))} |" for who in values["ms"])
        for who, why in values["errors"].items():
            yield f"| {case}: {who} | {why.splitlines()[0].replace('|', '/')} | | | | | |"


def told(row: str, values: Any) -> str:
    """A count, or whatever a row without times has."""
    if isinstance(values, dict):
        values = ", ".join(f"{v:.4g} {k}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
    return f"{row.replace(' | ', ', ')}: {values}"


def cells(who: str, values: dict) -> Iterator[str]:
    """A contender's in a raced row; the rate is that of the first one."""
    ms, ratio = values["ms"][who], values["times"].get(who)
    yield f"{ms['median']:.4g}"
    yield f"{ms['low']:.4g}–{ms['high']:.4g}"
    yield f"{ratio['median']:.2f}" if ratio else ""
    rated = ratio is None and "GB/s" in values
    yield f"{values['GB/s']:.0f}" if rated else ""
    yield f"{values['share of copy']:.0%}" if rated else ""
    yield f"{values['peak_bytes'][who] / 1e6:.0f}" if "peak_bytes" in values else ""
