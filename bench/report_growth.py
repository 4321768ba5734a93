"""What bench/growth.py measured, as tables: what an element costs along each axis."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import NamedTuple

from growth import AXES, MODEL
from report_cpu import machine, times

FLAT = 0.2  # of the median: how far off a point may be and still count as flat
UNITS = {"": "ns an element", "threads": "thread-ns an element", MODEL: "ms an image"}


class Costs(NamedTuple):
    """Along one axis, in its unit."""

    at: list[int]
    each: list[float]  # medians
    low: list[float]
    high: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.each)


def costs(name: str, points: list[dict], who: str) -> Costs:
    timed = [p for p in points if who in p["seconds"]]
    unit = 1e3 if name == MODEL else 1e9

    def each(quartile: str) -> list[float]:
        return [
            unit * p["seconds"][who][quartile] * (p["threads"] if name == "threads" else 1) / p["units"]
            for p in timed
        ]

    return Costs([p["value"] for p in timed], each("median"), each("low"), each("high"))


def axis(name: str, points: list[dict]) -> Iterator[str]:
    ours = costs(name, points, "fastcnn")
    beside, kept = (
        dict(zip(of.at, of.each, strict=True))
        for of in (costs(name, points, "eager"), costs(name, points, "pages kept"))
    )
    off = [each / ours.median - 1 for each in ours.each]
    marked = sum(abs(share) > FLAT for share in off)
    yield f"### {name[0].upper() + name[1:]}: {AXES[name].of}\n"
    yield f"| | {UNITS.get(name, UNITS[''])} | quartiles | from the median | pages kept | eager | × eager |"
    yield "|--:|--:|--:|--:|--:|--:|--:|"
    for value, each, low, high, share in zip(*ours, off, strict=True):
        shown = f"{share:+.0%}"
        shown = f"**{shown}**" if abs(share) > FLAT else shown
        without = digits(kept[value]) if value in kept else ""
        theirs = f"{digits(beside[value])} | {times(beside[value] / each)}" if value in beside else " | "
        yield f"| {value} | {digits(each)} | {digits(low)}–{digits(high)} | {shown} | {without} | {theirs} |"
    flat = "All are" if not marked else f"{len(off) - marked} of {len(off)} are"
    yield f"\n{flat} within {FLAT:.0%} of the median. {AXES[name].note}\n"


def digits(value: float) -> str:
    return f"{value:.3g}"


def section(data: dict) -> str:
    introduction = f"""## How cost grows

![What an element costs along each axis](growth.svg)

By `make growth` on {machine(data)}:
ReLU, LRN and 3×3 pooling with stride 2 in float32, NCHW, along one size at a time, and AlexNet's inference.
If cost is linear in the number of elements, an element costs the same everywhere: what is off the series'
median by more than {FLAT:.0%} (the picture's band) is in bold. Plain torch is timed at a few points, in turns
with ours. Where calls had page faults, "pages kept" is the time in a process whose C library keeps what is
freed for the next call.
"""
    lines = [introduction]
    for name, points in data["axes"].items():
        lines += axis(name, points) if points else []
    return "\n".join(lines)
