"""What bench/gpu.py measured; until it has run on hardware, what the kernels' pages predict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_summary import PAGES, table, trusted

COUNTED = ("kernels", "tests", "other tests", "memcheck", "racecheck", "initcheck", "synccheck")


def waiting() -> str:
    tables = "\n".join(f"From [{page}]({page}):\n\n{table(page)}" for page in PAGES)
    return f"""## GPU

**Not measured: this waits for hardware.** No kernel of the cuda and triton backends has run on a GPU. `make
gpu` on a machine with one measures all of it into `bench/results/gpu_first.json` and `gpu_full.json`, and
`make report` then makes this section of them. Until then these are predictions for an H100, from counted
instructions and bytes.

{tables}"""


def measured(result: dict[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    yield f"### `python bench/gpu.py {result['command']}`\n"
    yield f"On {result['device']}, driver {result['driver']}, {versions}, {result['date']}.\n"
    for part in COUNTED:
        if part in result:
            yield f"- {part}: " + ", ".join(f"{count} {what}" for what, count in result[part].items())
    yield "\n| | µs | quartiles | of a copy's rate |\n|---|--:|--:|--:|"
    for row in result["rows"]:
        for who, (low, median, high, how) in row.get("us", {}).items():
            note = "" if how == "graph" else f" ({how})"
            share = f"{row[f'{who} of copy']:.0%}" if f"{who} of copy" in row else ""
            yield f"| {row['name']}: {who}{note} | {median:.4g} | {low:.4g}–{high:.4g} | {share} |"
        for who, why in row.get("left out", {}).items():
            yield f"| {row['name']}: {who}, left out: {why.splitlines()[0].replace('|', '/')} | | | |"


def section(folder: Path) -> str:
    found = [folder / f"gpu_{command}.json" for command in ("first", "full")]
    results = [json.loads(path.read_text()) for path in found if path.exists()]
    if not results:
        return waiting()
    return "\n".join(["## GPU\n", *(line for result in results for line in measured(result)), ""])


def allowed(folder: Path) -> str:
    """The GPUs whose CUDA kernels ``auto`` takes unasked: where `full` passed, and with which sources."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("gpu*.json"))]
    rows = [
        {"compute capability": r["compute capability"], "sources": r["extension"]["cuda sources"]}
        for r in results
        if r["command"] == "full" and trusted(r)
    ]
    return json.dumps(rows, indent=1) + "\n"
