"""How cost grows with each size: ReLU, LRN and pooling along five axes, and AlexNet with its batch.

    python bench/growth.py [--megabytes 256] [--out bench/results/growth.json]

Inputs larger than that are left out, so `--megabytes 4 --out FILE` is a quick try. From the results that lie
where they belong, bench/report.py makes tables and a picture.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as TF

from fastcnn import LRN, MaxPool
from fastcnn import functional as F
from fastcnn.bench.machine import facts
from fastcnn.measure import Timing, compare
from fastcnn.models import alexnet

RESULTS = Path(__file__).parent / "results" / "growth.json"
LEAST = 5e-3  # seconds that a turn takes, by as many calls as that needs
REPEATS = 9
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
POOL = MaxPool(3, 2)


class Case(NamedTuple):
    shape: tuple[int, ...]
    size: int = 5  # the LRN's
    threads: int = torch.get_num_threads()

    @property
    def megabytes(self) -> float:
        return 4e-6 * math.prod(self.shape)


class Axis(NamedTuple):
    """A note says what makes a point dearer or cheaper than others, whether or not it does here."""

    of: str
    values: tuple[int, ...]
    case: Callable[[int], Case]
    note: str


def powers(first: int, last: int) -> tuple[int, ...]:
    return tuple(1 << i for i in range(first.bit_length() - 1, last.bit_length()))


CORES = len(os.sched_getaffinity(0))
MODEL = "AlexNet's batch"
AXES = {
    "batch": Axis(
        "[·, 96, 27, 27]",
        powers(1, 512),
        lambda n: Case((n, 96, 27, 27)),
        "A call has a cost of its own, in Python and in waking threads, which few images share. What fits in "
        "the cache is read from there, call after call; past it, values come from memory.",
    ),
    "channels": Axis(
        "[32, ·, 27, 27]",
        powers(16, 1024),
        lambda c: Case((32, c, 27, 27)),
        "The ring holds five channels, however many there are, so a channel costs the same wherever it "
        "stands. Fewer channels are a smaller tensor, for which the same holds as for a small batch.",
    ),
    "image": Axis(
        "[2, 96, ·, ·]",
        powers(32, 512),
        lambda s: Case((2, 96, s, s)),
        "A task's planes have 128 KB together, so wider rows make bands of fewer rows, and the rows that two "
        "bands share are read and normalised twice: at 512 columns a band reads 7 rows and is done with 6. "
        "The smallest is a small tensor, for which the same holds as for a small batch. The last output is "
        "over 32 MB: the system hands out its pages afresh in every call, at a cost that "
        "depends on how many huge ones it has.",
    ),
    "LRN size": Axis(
        "[32, 96, 55, 55]",
        (3, 5, 7, 9, 11, 13, 15),
        lambda n: Case((32, 96, 55, 55), size=n),
        "Each window is summed anew, so that a value's bits depend on its own window alone, which a running "
        "sum's would not: a part of the cost grows with the size. So does the number of planes in 128 KB, "
        "which makes bands shorter. A size of 5 with an exponent of 0.75 is compiled by itself, its sum "
        "unrolled; other sizes run a loop over the window.",
    ),
    "threads": Axis(
        "[32, 96, 55, 55]",
        tuple(sorted({*powers(1, CORES), CORES})),
        lambda t: Case((32, 96, 55, 55), threads=t),
        "The time of all threads together. Tasks are equal and share nothing; "
        "caches, memory and the processor's clock are shared.",
    ),
    MODEL: Axis(
        "[·, 3, 224, 224]",
        powers(1, 128),
        lambda n: Case((n, 3, 224, 224)),
        "The dense layers' weights, most of the network's, are read once a batch, whatever its size: one "
        "image bears all of that, and what many calls cost in Python.",
    ),
}

Fn = Callable[[], object]


def epilogues(case: Case) -> dict[str, Fn]:
    x, lrn = torch.randn(case.shape), LRN(case.size, k=2.0)

    def plain() -> Tensor:
        return TF.max_pool2d(TF.local_response_norm(x.relu(), lrn.size, lrn.alpha, lrn.beta, lrn.k), 3, 2)

    return {"fastcnn": lambda: F.epilogue(x, lrn=lrn, pool=POOL), "eager": plain}


def models(case: Case) -> dict[str, Fn]:
    x = torch.randn(case.shape)
    ours, plain = (alexnet(fused=fused).eval() for fused in (True, False))
    return {"fastcnn": lambda: ours(x), "eager": lambda: plain(x)}


def calls_for(fn: Fn) -> int:
    fn()
    start = time.perf_counter()
    fn()
    return math.ceil(LEAST / (time.perf_counter() - start))


def seconds(fns: dict[str, Fn]) -> dict[str, dict[str, float]]:
    """Quartiles of a call's time, in turns."""
    calls = {name: calls_for(fn) for name, fn in fns.items()}

    def repeated(name: str) -> Fn:
        def run() -> None:
            for _ in range(calls[name]):
                fns[name]()

        return run

    found = compare({name: repeated(name) for name in fns}, REPEATS)
    return {name: Timing(*(t / calls[name] for t in took))._asdict() for name, took in found.items()}


def keep_pages() -> None:
    """Let the C library keep what is freed for the next call; else it gives back what is over 32 MB.

    There is no way back: a limit that is set is one that it no longer adapts to what a program frees.
    """
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def page_faults(fn: Fn) -> int:
    """Pages that the system has to find for a call, of 4 KB or, where it has them, of 2 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(REPEATS):
        fn()
    return round((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / REPEATS)


def contenders(name: str, case: Case) -> dict[str, Fn]:
    torch.set_num_threads(case.threads)
    return models(case) if name == MODEL else epilogues(case)


def point(name: str, value: int, beside: bool) -> dict[str, Any]:
    """beside: whether plain torch is timed, too."""
    case = AXES[name].case(value)
    fns = contenders(name, case)
    if not beside:
        del fns["eager"]
    units = case.shape[0] if name == MODEL else math.prod(case.shape)
    taken, faults = seconds(fns), page_faults(fns["fastcnn"])
    return {"value": value, "units": units, "threads": case.threads, "page_faults": faults, "seconds": taken}


def add_without_faults(name: str, points: list[dict[str, Any]]) -> None:
    """The time of those that had page faults, in a process that keeps its pages."""
    for found in points:
        if found["page_faults"]:
            ours = contenders(name, AXES[name].case(found["value"]))["fastcnn"]
            found["seconds"] |= seconds({"pages kept": ours})


def series(name: str, megabytes: float) -> list[dict[str, Any]]:
    """Along one axis; plain torch at its ends and in its middle."""
    axis = AXES[name]
    values = [value for value in axis.values if axis.case(value).megabytes <= megabytes]
    beside = {values[i] for i in (0, len(values) // 2, -1)} if values else set()
    points = []
    for value in values:
        points.append(point(name, value, value in beside))
        print(f"{name} {value}: {1e3 * points[-1]['seconds']['fastcnn']['median']:.3f} ms", flush=True)
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=256, help="the largest input")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    about = facts("cpu")
    axes = {name: series(name, args.megabytes) for name in AXES}
    keep_pages()
    for name, points in axes.items():
        add_without_faults(name, points)
    data = {"machine_info": about, "axes": axes}
    args.out.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
