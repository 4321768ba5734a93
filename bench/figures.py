"""The pictures of docs/, each from results to the text of an SVG: the same bytes wherever it is drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterable
from typing import Any

import growth as sizes
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from pages import times
from report_cpu import ROWS, Result

OURS, PEER, GREY, DARK = "#1f6f8b", "#e6a23c", "#a0a0a0", "#555555"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fastcnn",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
LABEL = {"textcoords": "offset points", "fontsize": 7.5, "color": DARK}


def canvas(width: float, height: float, **margins: float) -> Figure:
    """In inches; margins are fixed, so that nothing depends on how wide a font's letters are."""
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(**margins)
    return figure


def svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def logarithmic(axes: Axes, which: str, ticks: Iterable[float], unit: str = "") -> None:
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_ticks(list(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def speed(results: dict[str, Result]) -> Figure:
    """Returns how many times faster than plain PyTorch and than the best peer: bars for README's rows."""
    rows = [results[name] for name in ROWS]
    figure = canvas(8, 5.3, left=0.33, right=0.97, top=0.98, bottom=0.1)
    axes = figure.subplots()
    for offset, name, color, gains in (
        (-0.19, "eager PyTorch", OURS, [r.eager / r.ours for r in rows]),
        (0.19, "the fastest other library", PEER, [r.best_peer / r.ours for r in rows]),
    ):
        places = [i + offset for i in range(len(rows))]
        bars = axes.barh(places, [gain - 1 for gain in gains], 0.36, left=1, color=color, label=name)
        axes.bar_label(bars, [f"{times(gain)}×" for gain in gains], padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), ROWS.values())
    axes.invert_yaxis()
    logarithmic(axes, "x", (0.5, 1, 2, 5, 10, 20, 50), "×")
    axes.set_xlim(0.5, 130)
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set_xlabel("fastcnn's speed relative to")
    axes.legend(loc="lower right")
    return figure


PEERS = {
    "eager": ("eager", GREY, "o"),
    "torch.compile": ("torch.compile, best of its ways", PEER, "o"),
    "ONNX Runtime": ("ONNX Runtime", DARK, "D"),
    "OpenVINO": ("OpenVINO", DARK, "^"),
    "JAX": ("JAX", DARK, "x"),
}


def peers(results: dict[str, Result]) -> Figure:
    """Returns each peer's time over ours, for every benchmark."""
    rows = list(results.values())
    figure = canvas(8, 0.235 * len(rows) + 1.1, left=0.42, right=0.97, top=0.97, bottom=0.055)
    axes = figure.subplots()
    for name, (legend, color, marker) in PEERS.items():
        best = [min((s for n, s in r.seconds.items() if n.startswith(name)), default=None) for r in rows]
        found = [(taken / r.ours, i) for i, (r, taken) in enumerate(zip(rows, best, strict=True)) if taken]
        axes.plot(*zip(*found, strict=True), marker, color=color, markersize=5, label=legend)
    axes.axvline(1, color=OURS, linewidth=1.5)
    axes.set_yticks(range(len(rows)), [r.name for r in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    logarithmic(axes, "x", (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50), "×")
    axes.set_xlabel("times as long as fastcnn takes (blue line)")
    figure.legend(loc="upper center", ncols=5, fontsize=8, handletextpad=0.2, bbox_to_anchor=(0.5, 1))
    return figure


ROOF = {  # by dtype, and by the benchmark's name without it
    "float32": ("pool", "LRN", "ReLU, LRN, pool", "block 1", "block 2", "AlexNet, 1", "AlexNet, 32"),
    "bfloat16": ("pool", "LRN", "ReLU, LRN, pool", "AlexNet, 1", "AlexNet, 32"),
}


def roof_name(label: str, dtype: str) -> str:
    """Returns the benchmark that a point of the roofline stands for."""
    if label.startswith("block"):
        return f"AlexNet's {label}, batch 32"
    return f"{label.replace(', ', ', batch ')}, {dtype}" if "Alex" in label else f"{label} of map 1, {dtype}"


def roof_names() -> list[str]:
    return [roof_name(label, dtype) for dtype, labels in ROOF.items() for label in labels]


def roofline(results: dict[str, Result], rates: dict[str, float]) -> Figure:
    """Returns arithmetic for each byte that must move, and how much of it is done in a second."""
    figure = canvas(8, 4.4, left=0.09, right=0.98, top=0.93, bottom=0.13, wspace=0.2)
    for axes, (dtype, labels) in zip(figure.subplots(1, 2), ROOF.items(), strict=True):
        copy, product = rates["copy"] / 1e9, rates[dtype] / 1e9
        axes.plot([0.2, product / copy, 3000], [0.2 * copy, product, product], color=DARK, linewidth=1.2)
        axes.annotate(f"copy, {copy:.0f} GB/s", (0.6, 0.6 * copy), (-9, 9), **LABEL, rotation=47, ha="center")
        axes.annotate(f"products, {product:.0f} GFLOP/s", (3000, product), (0, 10), **LABEL, ha="right")
        points(axes, {label: results[roof_name(label, dtype)] for label in labels})
        axes.set_title(dtype, fontsize=10)
        logarithmic(axes, "x", (1, 10, 100, 1000))
        logarithmic(axes, "y", (1, 10, 100, 1000))
        axes.set_ylim(0.2, 1000)
        axes.set_xlabel("operations for each byte that must move")
        axes.set_ylabel("GFLOP/s")
    axes.legend(loc="lower right", fontsize=8, handletextpad=0.2)
    return figure


def points(axes: Axes, rows: dict[str, Result]) -> None:
    """Each benchmark's three above each other, named beside the lowest, on the side where there is room."""
    at = [r.operations / r.moved for r in rows.values()]
    columns = [[r.operations / 1e9 / s for s in (r.eager, r.best_peer, r.ours)] for r in rows.values()]
    axes.vlines(at, list(map(min, columns)), list(map(max, columns)), color="#dddddd")
    who = (("eager", GREY), ("best peer", PEER), ("fastcnn", OURS))
    for (name, color), values in zip(who, zip(*columns, strict=True), strict=True):
        axes.plot(at, values, "o", color=color, markersize=6, label=name)
    for label, x, column in zip(rows, at, columns, strict=True):
        axes.annotate(label, (x, min(column)), **LABEL | place(x, at))


def place(x: float, others: Collection[float]) -> dict[str, Any]:
    """Returns where there is room for a point's name: left of the first; else by the next to the right."""
    next_one = min((other / x for other in others if other > x), default=math.inf)
    if x == min(others) or next_one < 1.6:
        return {"xytext": (-6, 0), "ha": "right", "va": "center"}
    if next_one < 2.3:
        return {"xytext": (0, -6), "ha": "center", "va": "top"}
    return {"xytext": (6, 0), "ha": "left", "va": "center"}


SIDES = {"eager": GREY, "fastcnn": OURS, "fastcnn, recompute": PEER}


def memory(data: dict) -> Figure:
    """Returns the bytes held over a training step."""
    figure = canvas(8, 3.4, left=0.08, right=0.98, top=0.9, bottom=0.15, wspace=0.2)
    for axes, name in zip(figure.subplots(1, 2), ("AlexNet, 2012", "AlexNet's first block"), strict=True):
        rows = data["cpu"][name]
        for side, color in SIDES.items():
            if side in rows:
                shares, held = zip(*rows[side]["timeline"], strict=True)
                label = f"{side}: at most {rows[side]['peak'] / 1e6:.0f} MB"
                steps = [100 * share for share in shares], [b / 1e6 for b in held]
                axes.step(*steps, where="post", color=color, linewidth=1.3, label=label)
        axes.set_title(f"{name}, {data['batch']} images", fontsize=10)
        axes.set_xlabel("time, % of the step")
        axes.set_ylabel("MB beyond what was before")
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
        axes.legend(loc="upper left", fontsize=8)
    return figure


def growth(data: dict) -> Figure:
    """Returns the cost of an element, or of an image, along each axis: flat where cost is linear."""
    figure = canvas(8, 5.4, left=0.08, right=0.98, top=0.95, bottom=0.09, wspace=0.3, hspace=0.55)
    series = {name: points for name, points in data["axes"].items() if points}
    for axes, (name, points) in zip(figure.subplots(2, 3).flat, series.items(), strict=False):
        ours, theirs = (sizes.costs(name, points, who) for who in ("fastcnn", "eager"))
        median = sizes.middle(ours)
        axes.axhspan(median * (1 - sizes.FLAT), median * (1 + sizes.FLAT), color=OURS, alpha=0.12, lw=0)
        for costs, line, color, label in ((theirs, "o:", GREY, "eager"), (ours, "o-", OURS, "fastcnn")):
            values, each = [cost.value for cost in costs], [cost.median for cost in costs]
            axes.plot(values, each, line, color=color, markersize=4, label=label)
        logarithmic(axes, "x", values if len(values) < 6 else values[::2])
        logarithmic(axes, "y", [m * 10.0**e for e in range(-2, 3) for m in (1, 2, 5)])
        axes.set_ylim(min(each) / 1.6, max(cost.median for cost in theirs) * 1.6)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(sizes.AXES[name].unit, fontsize=8)
        axes.set_ylabel(sizes.AXES[name].cost, fontsize=8)
    figure.axes[0].legend(fontsize=8)
    return figure
