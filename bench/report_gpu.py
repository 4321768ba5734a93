"""What bench/gpu.py measured; until it has run on hardware, what the kernels' pages predict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_summary import PAGES, compared, table, trusted

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
    for row in result["rows"]:
        if "error" in row and row["part"] != "facts":  # which are asked for before the build, too
            yield f"- {row['part']}, {row['name']}: {first_line(row['error'])}"
    yield "\n| | µs | quartiles | of a copy's rate |\n|---|--:|--:|--:|"
    for row in result["rows"]:
        if is_way(row):
            continue
        for who, (low, median, high, how) in row.get("us", {}).items():
            note = "" if how == "graph" else f" ({how})"
            share = f"{row[f'{who} of copy']:.0%}" if f"{who} of copy" in row else ""
            yield f"| {row['name']}: {who}{note} | {median:.4g} | {low:.4g}–{high:.4g} | {share} |"
        for who, why in row.get("left out", {}).items():
            yield f"| {row['name']}: {who}, left out: {first_line(why)} | | | |"
    yield from ways(result)


def first_line(text: str) -> str:
    return text.splitlines()[0].replace("|", "/")


def is_way(row: dict[str, Any]) -> bool:
    """Whether it is of gpu_rows.ways: layer; images, dtype, format, phase."""
    return "as it is" in row.get("us", {})


def ways(result: dict[str, Any]) -> Iterator[str]:
    """How many times the speed of torch's convolution the other way has, for each layer."""
    found: dict[str, dict[str, str]] = {}
    for row in filter(is_way, result["rows"]):
        layer, _, how = row["name"].partition("; ")
        images, dtype, format, phase = how.split(", ")
        us = {who: median for who, (_, median, *_) in row["us"].items()}
        plain = us.pop("as it is")
        for median in us.values():
            found.setdefault(f"{layer}, {phase}", {})[f"{dtype}, {format}, {images}"] = (
                f"{plain / median:.2f}"
            )
    columns = list(dict.fromkeys(name for row in found.values() for name in row))
    if not columns:
        return
    yield "\nWays to convolve, without cudnn.benchmark: how many times the speed of torch's convolution a"
    yield "first layer has by space to depth, and groups have one by one.\n"
    yield "| | " + " | ".join(columns) + " |\n|---|" + "--:|" * len(columns)
    for layer, row in found.items():
        yield f"| {layer} | " + " | ".join(row.get(name, "") for name in columns) + " |"


STEP, INFERENCE = "AlexNet step", "AlexNet inference"
ALEXNET = (  # in the README: what is told, a row's name, what is behind it, and the quantity
    ("training step", STEP, "", "img/s by graph"),
    ("the same, called from Python", STEP, "", "img/s"),
    ("the same as a graph, without `cudnn.benchmark`", STEP, ", without cudnn.benchmark", "img/s by graph"),
    ("inference", INFERENCE, "", "img/s by graph"),
    ("the same, called from Python", INFERENCE, "", "img/s"),
)


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Both commands' rows by name."""
    results = [json.loads((folder / f"gpu_{command}.json").read_text()) for command in ("first", "full")]
    return {row["name"]: row for result in results for row in result["rows"]}


def summary(folder: Path) -> str:
    """Returns the row of README's first table: a step of training as a graph."""
    plain, compiled, fused = (
        rows_of(folder)[f"{STEP}, {who}"]["img/s by graph"] for who in ("plain", "compile", "fused")
    )
    times = f"**{fused / plain:.1f}** | {fused / compiled:.1f} (torch.compile)"
    return f"| AlexNet, training on 256 images, H200 | {times} |"


def readme(folder: Path) -> str:
    """AlexNet-2012's images a second."""
    rows = rows_of(folder)
    lines = ["| | eager | torch.compile | fastcnn | × eager | × torch.compile |", "|---|--:|--:|--:|--:|--:|"]
    for told, name, behind, quantity in ALEXNET:
        found = (
            rows.get(f"{name}, {who}{behind}", {}).get(quantity) for who in ("plain", "compile", "fused")
        )
        plain, compiled, fused = found
        times = [f"**{fused / plain:.1f}**", f"{fused / compiled:.1f}" if compiled else ""]
        speeds = [f"{n:,.0f}" if n else "" for n in (plain, compiled, fused)]
        lines.append("| " + " | ".join([told, *speeds, *times]) + " |")
    return "\n".join(lines)


def section(folder: Path) -> str:
    found = [folder / f"gpu_{command}.json" for command in ("first", "full")]
    results = [json.loads(path.read_text()) for path in found if path.exists()]
    if not results:
        return waiting()
    rows = {row["name"]: row for result in results for row in result["rows"]}
    lines = ["## GPU\n", "Measured beside what the kernels' pages predict for an H100:\n"]
    lines += [*(f"- {line.replace('|', '·')}" for line in compared(rows)), ""]
    parts = ["\n".join(measured(result)) for result in results]
    return "\n".join([*lines, "\n\n".join(parts), ""])


def allowed(folder: Path) -> str:
    """The GPUs whose CUDA kernels ``auto`` takes unasked: where `full` passed, and with which sources."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("gpu*.json"))]
    rows = [
        {"compute capability": r["compute capability"], "sources": r["extension"]["cuda sources"]}
        for r in results
        if r["command"] == "full" and trusted(r)
    ]
    return json.dumps(rows, indent=1) + "\n"
