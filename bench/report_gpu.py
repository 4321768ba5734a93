"""Writes what bench/gpu.py measured, beside what the kernels' pages predict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_summary as gpu
from pages import table

Row = dict[str, Any]
COUNTED = ("kernels", "tests", "other tests", "memcheck", "racecheck", "initcheck", "synccheck")
STEP, INFERENCE = "AlexNet step", "AlexNet inference"
ALEXNET = (  # in the README: what is told, a row's name, what is behind it, and the quantity
    ("training step", STEP, "", "img/s by graph"),
    ("the same, called from Python", STEP, "", "img/s"),
    ("the same as a graph, without `cudnn.benchmark`", STEP, ", without cudnn.benchmark", "img/s by graph"),
    ("inference", INFERENCE, "", "img/s by graph"),
    ("the same, called from Python", INFERENCE, "", "img/s"),
)


def read(folder: Path) -> list[Row]:
    """Returns what each command found, as far as it has run."""
    paths = [folder / f"gpu_{command}.json" for command in ("first", "full")]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def rows_of(results: list[Row]) -> dict[str, Row]:
    """Returns all commands' rows by name."""
    return {row["name"]: row for result in results for row in result["rows"]}


def measured(result: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"### `python bench/gpu.py {result['command']}`\n",
        f"On {result['device']}, driver {result['driver']}, {versions}, {result['date']}.\n",
    ]
    for part in COUNTED:
        if part in result:
            lines.append(f"- {part}: " + ", ".join(f"{n} {what}" for what, n in result[part].items()))
    for row in result["rows"]:
        if "error" in row and row["part"] != "facts":  # which are asked for before the build, too
            lines.append(f"- {row['part']}, {row['name']}: {first_line(row['error'])}")
    lines += ["", table(["", "µs", "quartiles", "of a copy's rate"], timed(result["rows"]))]
    return "\n".join([*lines, *ways(result["rows"])])


def timed(rows: list[Row]) -> Iterator[list[str]]:
    for row in rows:
        if is_way(row):
            continue
        for who, (low, median, high, how) in row.get("us", {}).items():
            note = "" if how == "graph" else f" ({how})"
            share = f"{row[f'{who} of copy']:.0%}" if f"{who} of copy" in row else ""
            yield [f"{row['name']}: {who}{note}", f"{median:.4g}", f"{low:.4g}–{high:.4g}", share]
        for who, why in row.get("left out", {}).items():
            yield [f"{row['name']}: {who}, left out: {first_line(why)}", "", "", ""]


def first_line(text: str) -> str:
    return text.splitlines()[0].replace("|", "/")


def is_way(row: Row) -> bool:
    """Returns whether it is of gpu_rows.ways: layer; images, dtype, format, phase."""
    return "as it is" in row.get("us", {})


def ways(rows: list[Row]) -> Iterator[str]:
    """Yields how many times the speed of torch's convolution the other way has, for each layer."""
    found: dict[str, dict[str, str]] = {}
    for row in filter(is_way, rows):
        layer, _, how = row["name"].partition("; ")
        images, dtype, format, phase = how.split(", ")
        us = {who: median for who, (_, median, *_) in row["us"].items()}
        plain = us.pop("as it is")
        for median in us.values():
            column = f"{dtype}, {format}, {images}"
            found.setdefault(f"{layer}, {phase}", {})[column] = f"{plain / median:.2f}"
    columns = list(dict.fromkeys(name for row in found.values() for name in row))
    if columns:
        yield "\nWays to convolve, without cudnn.benchmark: how many times the speed of torch's convolution a"
        yield "first layer has by space to depth, and groups have one by one.\n"
        yield table(
            ["", *columns], ([layer, *(row.get(c, "") for c in columns)] for layer, row in found.items())
        )


def section(folder: Path) -> str:
    """Returns the part of docs/benchmarks.md."""
    results = read(folder)
    told = [f"- {line.replace('|', '·')}" for line in gpu.compared(rows_of(results))]
    introduction = ["## GPU\n", "Measured beside what the kernels' pages predict for an H100:\n"]
    return "\n".join([*introduction, *told, "", "\n\n".join(map(measured, results)), ""])


def speeds(rows: dict[str, Row], name: str, behind: str, quantity: str) -> list[float | None]:
    """Returns images a second by eager torch, torch.compile and fastcnn."""
    return [rows.get(f"{name}, {who}{behind}", {}).get(quantity) for who in ("plain", "compile", "fused")]


def summary(folder: Path) -> list[str]:
    """Returns the row of README's first table: a step of training as a graph."""
    plain, compiled, fused = speeds(rows_of(read(folder)), STEP, "", "img/s by graph")
    gains = [f"**{fused / plain:.1f}**", f"{fused / compiled:.1f} (torch.compile)"]
    return ["AlexNet, training on 256 images, H200", *gains]


def readme(folder: Path) -> str:
    """Returns AlexNet-2012's images a second."""
    rows, lines = rows_of(read(folder)), []
    for told, *which in ALEXNET:
        plain, compiled, fused = found = speeds(rows, *which)
        gains = [f"**{fused / plain:.1f}**", f"{fused / compiled:.1f}" if compiled else ""]
        lines.append([told, *(f"{n:,.0f}" if n else "" for n in found), *gains])
    return table(["", "eager", "torch.compile", "fastcnn", "× eager", "× torch.compile"], lines)


def allowed(folder: Path) -> str:
    """Returns the GPUs whose CUDA kernels ``auto`` takes unasked: where `full` passed, and the sources."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("gpu*.json"))]
    rows = [
        {"compute capability": r["compute capability"], "sources": r["extension"]["cuda sources"]}
        for r in results
        if r["command"] == "full" and gpu.trusted(r)
    ]
    return json.dumps(rows, indent=1) + "\n"
