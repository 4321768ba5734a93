"""Measures how cost grows with each size.

    python bench/growth.py [--megabytes 256] [--out bench/results/growth.json]

Inputs larger than that are left out, so `--megabytes 4 --out FILE` is a quick try.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pages import digits, machine, span, table, times

from fastcnn import LRN
from fastcnn.bench.cases import POOL, Epilogue, plain_epilogue
from fastcnn.bench.machine import facts
from fastcnn.measure import compare
from fastcnn.models import alexnet

RESULTS = Path(__file__).parent / "results" / "growth.json"
REPEATS = 9
MODEL, THREADS = "AlexNet's batch", "threads"


class Axis(NamedTuple):
    """A note says what makes a point dearer or cheaper than others, whether or not it does here."""

    shape: str  # with a dot in place of the values
    unit: str
    values: tuple[int, ...]
    note: str
    cost: str = "ns an element"


def powers(first: int, last: int) -> tuple[int, ...]:
    return tuple(1 << i for i in range(first.bit_length() - 1, last.bit_length()))


CORES, ALL = len(os.sched_getaffinity(0)), torch.get_num_threads()
AXES = {
    "batch": Axis(
        "[·, 96, 27, 27]",
        "images",
        powers(1, 512),
        "A call has a cost of its own, in Python and in waking threads, which few images share. What fits in "
        "the cache is read from there, call after call; past it, values come from memory.",
    ),
    "channels": Axis(
        "[32, ·, 27, 27]",
        "channels",
        powers(16, 1024),
        "The kernel holds five channels at a time, however many there are.",
    ),
    "image": Axis(
        "[2, 96, ·, ·]",
        "height and width, pixels",
        powers(32, 512),
        "Wider rows make bands of fewer rows, of which neighbours share some: at 512 columns a band reads 7 "
        "rows for 6. The last output is over 32 MB: the system hands out its pages afresh in every call.",
    ),
    "LRN size": Axis(
        "[32, 96, 55, 55]",
        "channels in an LRN",
        (3, 5, 7, 9, 11, 13, 15),
        "Each window is summed anew, so that a value's bits depend on its own window alone: a part of the "
        "cost grows with the size. The sum for a size of 5 is unrolled; other sizes run a loop.",
    ),
    THREADS: Axis(
        "[32, 96, 55, 55]",
        "threads",
        tuple(sorted({*powers(1, CORES), CORES})),
        "The time of all threads together. Tasks are equal and share nothing; caches, memory and the "
        "processor's clock are shared.",
        "thread-ns an element",
    ),
    MODEL: Axis(
        "[·, 3, 224, 224]",
        "images",
        powers(1, 128),
        "The dense layers' weights, most of the network's, are read once a batch, whatever its size.",
        "ms an image",
    ),
}

FLAT = 0.2  # of the median: how far off a point may be and still count as flat


def point(name: str, value: int, beside: bool, megabytes: float) -> dict[str, Any] | None:
    """Times fastcnn, and eager beside it if asked to; None if the input is larger than that."""
    shape = json.loads(AXES[name].shape.replace("·", str(value)))
    if 4e-6 * math.prod(shape) > megabytes:
        return None
    threads = value if name == THREADS else ALL
    torch.set_num_threads(threads)
    if name == MODEL:
        sides = {"fastcnn": alexnet().eval(), "eager": alexnet(fused=False).eval()}
    else:
        stages = True, LRN(value if name == "LRN size" else 5, k=2.0), POOL
        sides = {"fastcnn": Epilogue(*stages), "eager": plain_epilogue(*stages)}
    x = torch.randn(shape)
    fns = {who: partial(module, x) for who, module in sides.items() if beside or who == "fastcnn"}
    taken = {who: timing._asdict() for who, timing in compare(fns, REPEATS).items()}
    print(f"{name} {value}: {1e3 * taken['fastcnn']['median']:.3f} ms", flush=True)
    units = shape[0] if name == MODEL else math.prod(shape)
    return {"value": value, "units": units, "threads": threads, "seconds": taken}


def series(name: str, megabytes: float) -> list[dict[str, Any]]:
    """Along one axis; plain torch at its ends and in its middle."""
    values = AXES[name].values
    beside = values[0], values[len(values) // 2], values[-1]
    points = (point(name, value, value in beside, megabytes) for value in values)
    return [found for found in points if found]


class Cost(NamedTuple):
    """Of an element or image, in its axis's unit."""

    value: int
    quartiles: dict[str, float]

    @property
    def median(self) -> float:
        return self.quartiles["median"]


def costs(name: str, points: list[dict[str, Any]], who: str) -> list[Cost]:
    found = []
    for p in points:
        if who in p["seconds"]:
            scale = (1e3 if name == MODEL else 1e9) * (p["threads"] if name == THREADS else 1) / p["units"]
            found.append(Cost(p["value"], {q: scale * t for q, t in p["seconds"][who].items()}))
    return found


def middle(found: list[Cost]) -> float:
    return statistics.median(cost.median for cost in found)


def rows(ours: list[Cost], theirs: list[Cost]) -> Iterator[list[str]]:
    eager = {cost.value: cost.median for cost in theirs}
    for cost in ours:
        off = cost.median / middle(ours) - 1
        shown = f"**{off:+.0%}**" if abs(off) > FLAT else f"{off:+.0%}"
        each = eager.get(cost.value)
        beside = [digits(each), times(each / cost.median)] if each else ["", ""]
        yield [str(cost.value), digits(cost.median), span(cost.quartiles, digits), shown, *beside]


def section(data: dict[str, Any]) -> str:
    """Returns the part of docs/benchmarks.md."""
    parts = [
        f"""## How cost grows

![What an element costs along each axis](growth.svg)

By `make growth` on {machine(data)}: ReLU, LRN and 3×3 pooling
with stride 2 in float32, NCHW, along one size at a time, and AlexNet's inference. If cost is linear in the
number of elements, an element costs the same everywhere. What is off the series' median by more than
{FLAT:.0%} (the picture's band) is in bold. Plain PyTorch is timed at a few points.
"""
    ]
    for name, points in data["axes"].items():
        ours, theirs = (costs(name, points, who) for who in ("fastcnn", "eager"))
        columns = ["", AXES[name].cost, "quartiles", "from the median", "eager", "× eager"]
        parts += [f"### {name[0].upper() + name[1:]}: {AXES[name].shape}\n"]
        parts += [table(columns, rows(ours, theirs))]
        parts += [f"\n{AXES[name].note}\n"]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=256, help="the largest input")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    data = {"machine_info": facts("cpu"), "axes": {name: series(name, args.megabytes) for name in AXES}}
    args.out.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
