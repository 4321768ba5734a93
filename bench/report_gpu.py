"""What bench/gpu.py measured; until it has run on hardware, what the kernels' pages predict."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

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


def rows(part: dict) -> Iterator[str]:
    yield "| | ms | quartiles | times the first's |"
    yield "|---|--:|--:|--:|"
    for name, row in part["results"].items():
        case = name.replace(" | ", ", ")
        for who, ms in row.get("ms", {}).items():
            ratio = row["times"].get(who)
            shown = f"{ratio['median']:.2f}" if ratio else ""
            yield f"| {case}: {who} | {ms['median']:.4g} | {ms['low']:.4g}–{ms['high']:.4g} | {shown} |"
        for who in row.get("errors", {}):
            yield f"| {case}: {who} | failed | | |"


def section(data: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    lines = [
        "## GPU\n",
        f"By `make gpu` on {data['device']}, driver {data['driver']}, {versions}, {data['date']}.\n",
    ]
    for name, part in data["parts"].items():
        if any("ms" in row for row in part["results"].values() if isinstance(row, dict)):
            lines += [f"### {name}\n", *rows(part), ""]
        else:
            lines += [f"{name}: {part['status']}.\n"]
    return "\n".join(lines)
