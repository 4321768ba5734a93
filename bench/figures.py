"""The pictures of docs/, each from results to the text of an SVG: the same bytes wherever it is drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from report_cpu import ROOF, ROWS, Result, times
from report_growth import FLAT, UNITS, costs

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


def plain_ticks(axes: Axes, which: str, ticks: Iterable[float], unit: str = "") -> None:
    """On an axis that is then logarithmic."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_ticks(list(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def speed(results: dict[str, Result]) -> Figure:
    """How many times faster than plain PyTorch and than the best peer: a pair of bars for README's rows."""
    rows = [results[name] for name in ROWS]
    figure = canvas(8, 5.3, left=0.33, right=0.97, top=0.98, bottom=0.1)
    axes = figure.subplots()
    for offset, name, color, gains in (
        (-0.19, "than eager PyTorch", OURS, [r.eager / r.ours for r in rows]),
        (0.19, "than the best peer", PEER, [r.ms[r.peer] / r.ours for r in rows]),
    ):
        places = [i + offset for i in range(len(rows))]
        bars = axes.barh(places, [gain - 1 for gain in gains], 0.36, left=1, color=color, label=name)
        axes.bar_label(bars, [f"{times(gain)}×" for gain in gains], padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), ROWS.values())
    axes.invert_yaxis()
    plain_ticks(axes, "x", (0.5, 1, 2, 5, 10, 20, 50), "×")
    axes.set_xlim(0.5, 130)
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set_xlabel("times faster")
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
    """Every benchmark: each peer's time over ours."""
    rows = list(results.values())
    figure = canvas(8, 0.235 * len(rows) + 1.1, left=0.42, right=0.97, top=0.97, bottom=0.055)
    axes = figure.subplots()
    for name, (legend, color, marker) in PEERS.items():
        best = [min((ms for n, ms in r.ms.items() if n.startswith(name)), default=None) for r in rows]
        points = [(ms / r.ours, i) for i, (r, ms) in enumerate(zip(rows, best, strict=True)) if ms]
        axes.plot(*zip(*points, strict=True), marker, color=color, markersize=5, label=legend)
    axes.axvline(1, color=OURS, linewidth=1.5)
    axes.set_yticks(range(len(rows)), [r.name for r in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    plain_ticks(axes, "x", (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50), "×")
    axes.set_xlabel("time over fastcnn's (blue line)")
    figure.legend(loc="upper center", ncols=5, fontsize=8, handletextpad=0.2, bbox_to_anchor=(0.5, 1))
    return figure


AT = {"textcoords": "offset points", "fontsize": 7.5, "color": DARK}


def roofline(results: dict[str, Result], rates: dict[str, float]) -> Figure:
    """Arithmetic for each byte that must move, and how much of it is done in a second."""
    figure = canvas(8, 4.4, left=0.09, right=0.98, top=0.93, bottom=0.13, wspace=0.08)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, dtype in zip(panels, ("float32", "bfloat16"), strict=True):
        rows = {name: results[name] for name in ROOF if results[name].info["dtype"] == dtype}
        roof(axes, rates, dtype)
        points(axes, rows)
        axes.set_title(dtype, fontsize=10)
        plain_ticks(axes, "x", (1, 10, 100, 1000))
        plain_ticks(axes, "y", (1, 10, 100, 1000))
        axes.set_xlabel("operations for each byte that must move")
    panels[0].set_ylim(0.2, 1000)
    panels[0].set_ylabel("GFLOP/s")
    panels[0].legend(loc="lower right", fontsize=8, handletextpad=0.2)
    return figure


def roof(axes: Axes, rates: dict[str, float], dtype: str) -> None:
    copy, product = rates["copy"] / 1e9, rates[dtype] / 1e9
    axes.plot([0.2, product / copy, 3000], [0.2 * copy, product, product], color=DARK, linewidth=1.2)
    axes.annotate(f"copy, {copy:.0f} GB/s", (0.6, 0.6 * copy), (-9, 9), **AT, rotation=47, ha="center")
    axes.annotate(f"products, {product:.0f} GFLOP/s", (3000, product), (0, 10), **AT, ha="right")


def points(axes: Axes, rows: dict[str, Result]) -> None:
    """Each benchmark's three above each other, named beside the lowest, on the side where there is room."""
    at = {name: r.info["operations"] / r.info["moved"] for name, r in rows.items()}
    speeds = {
        who: [r.info["operations"] / 1e6 / ms(r) for r in rows.values()]
        for who, ms in (
            ("eager", lambda r: r.eager),
            ("best peer", lambda r: r.ms[r.peer]),
            ("fastcnn", lambda r: r.ours),
        )
    }
    columns = list(zip(*speeds.values(), strict=True))
    axes.vlines(list(at.values()), *zip(*((min(c), max(c)) for c in columns), strict=True), color="#dddddd")
    for (who, values), color in zip(speeds.items(), (GREY, PEER, OURS), strict=True):
        axes.plot(list(at.values()), values, "o", color=color, markersize=6, label=who)
    for (name, x), column in zip(at.items(), columns, strict=True):
        axes.annotate(ROOF[name], (x, min(column)), **AT | place(x, list(at.values())))


def place(x: float, others: Collection[float]) -> dict[str, Any]:
    """Where beside a point there is room for its name: left of the first; else by the next to the right."""
    next_one = min((other / x for other in others if other > x), default=math.inf)
    if x == min(others) or next_one < 1.6:
        return {"xytext": (-6, 0), "ha": "right", "va": "center"}
    if next_one < 2.3:
        return {"xytext": (0, -6), "ha": "center", "va": "top"}
    return {"xytext": (6, 0), "ha": "left", "va": "center"}


SIDES = {"eager": GREY, "fastcnn": OURS, "fastcnn, recompute": PEER}


def memory(data: dict) -> Figure:
    """Bytes held over a training step."""
    shown = ("AlexNet, 2012", "AlexNet's first block")
    figure = canvas(8, 3.4, left=0.08, right=0.98, top=0.9, bottom=0.15, wspace=0.2)
    for axes, name in zip(figure.subplots(1, 2), shown, strict=True):
        for side, color in SIDES.items():
            if side not in data["cpu"][name]:
                continue
            row = data["cpu"][name][side]
            shares, held = zip(*row["timeline"], strict=True)
            axes.step(
                [100 * share for share in shares],
                [b / 1e6 for b in held],
                where="post",
                color=color,
                linewidth=1.3,
                label=f"{side}: at most {row['peak'] / 1e6:.0f} MB",
            )
        axes.set_title(f"{name}, {data['batch']} images", fontsize=10)
        axes.set_xlabel("% of the step")
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
        axes.legend(loc="upper left", fontsize=8)
    figure.axes[0].set_ylabel("MB beyond what was before")
    return figure


def growth(data: dict) -> Figure:
    """Cost of an element, or of an image, along each axis: flat where cost is linear."""
    figure = canvas(8, 5.2, left=0.08, right=0.98, top=0.94, bottom=0.1, wspace=0.3, hspace=0.4)
    series = {name: points for name, points in data["axes"].items() if points}
    for axes, (name, points) in zip(figure.subplots(2, 3).flat, series.items(), strict=False):
        ours = costs(name, points, "fastcnn")
        median = ours.median
        axes.axhspan(median * (1 - FLAT), median * (1 + FLAT), color=OURS, alpha=0.12, lw=0)
        theirs = costs(name, points, "eager")
        axes.plot(theirs.at, theirs.each, "o:", color=GREY, markersize=4, label="eager")
        axes.plot(ours.at, ours.each, "o-", color=OURS, markersize=4, label="fastcnn")
        plain_ticks(axes, "x", ours.at if len(ours.at) < 6 else ours.at[::2])
        plain_ticks(axes, "y", [m * 10.0**e for e in range(-2, 3) for m in (1, 2, 5)])
        low, high = min(ours.each), max(theirs.each)
        axes.set_ylim(low / 1.6, high * 1.6)
        axes.set_title(name, fontsize=10)
        axes.set_ylabel(UNITS.get(name, UNITS[""]), fontsize=8)
    figure.axes[0].legend(fontsize=8)
    return figure
