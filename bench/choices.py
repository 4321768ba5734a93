"""What design choices of the CPU kernels are worth: what was replaced, timed beside what replaced it.

    python bench/choices.py

Choices of the past are built from the history, without the commit that made each and with it: eleven builds.
What the present code can undo is undone in it. Writes bench/results/choices.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from fastcnn import LRN
from fastcnn import functional as F
from fastcnn.backends import cpu
from fastcnn.bench.machine import facts
from fastcnn.measure import quartiles, seconds

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "choices.json"
THREADS = 2
ROUNDS = 25
CALLS = 5  # in a turn
MAP = (32, 96, 55, 55)
MEGABYTES = (2, 4, 8, 16, 32, 64, 1024)
USUAL = cpu._CHUNK_BYTES >> 20

Turn = Callable[[], float]  # gives the seconds of a call


class Case(NamedTuple):
    """A commit, and the epilogue of a random tensor that shows what it gained."""

    commit: str
    name: str
    stages: str
    replaced: str
    by: str
    shape: tuple[int, ...] = MAP
    format: str = "contiguous_format"
    calls: int = CALLS


POOL, NORM, ALL = "relu=False, pool=pool", "relu=False, lrn=lrn", "lrn=lrn, pool=pool"
# fmt: off
CASES = (
    Case("e056039", "pooling, NCHW", POOL,
         "nine candidates a window", "maxima across rows, then down"),
    Case("e056039", "LRN, NCHW", NORM,
         "two steps of a series for d^-3/4", "one step of a longer one"),
    Case("f6d8ae6", "LRN with β = 0.6, NCHW", "relu=False, lrn=LRN(5, beta=0.6, k=2.0)",
         "exponents other than 3/4, 1/2 and 1 one value at a time",
         "logarithm and exponential by vector, in double"),
    Case("086b63f", "ReLU, LRN, pooling, NCHW", ALL,
         "a channel read first, then another normalised", "both in one loop"),
    Case("833855d", "ReLU, LRN, pooling of [1, 8, 8, 8]", ALL,
         "every call through the dispatcher", "straight to the kernel where nothing is recorded",
         shape=(1, 8, 8, 8), calls=1000),
    Case("732511b", "ReLU, LRN, pooling, NCHW", ALL,
         "the series for every value", "the polynomial in u where it is small"),
    Case("732511b", "ReLU, LRN, pooling, channels_last", ALL,
         "the series for every value; a row as one span, its window that span shifted",
         "the polynomial in u where it is small; neighbours from registers", format="channels_last"),
    Case("62ab7e6", "ReLU, LRN, pooling, NCHW", ALL,
         "the hardware's prefetching alone", "the next channel's lines asked for"),
    Case("6fe8fad", "pooling, channels_last", POOL,
         "the hardware's prefetching alone; NaNs looked for by comparing",
         "the next rows asked for; NaNs looked for by a sum", format="channels_last"),
    Case("6fe8fad", "ReLU, LRN, pooling, channels_last", ALL,
         "the hardware's prefetching alone", "the next rows asked for", format="channels_last"),
)
# fmt: on

# Times the call whenever a line arrives. It sleeps first because the last process's threads spin for some
# milliseconds when their work is done.
WORKER = """
import sys, time
import torch
from fastcnn import LRN, MaxPool, _native
from fastcnn.functional import epilogue

def call():
    return {call}

_native.load()
torch.set_num_threads({threads})
torch.set_grad_enabled(False)
torch.manual_seed(0)
lrn, pool = LRN(5, k=2.0), MaxPool(3, 2)
{setup}
print("ready", flush=True)
for _ in sys.stdin:
    time.sleep(0.01)
    call()
    start = time.perf_counter()
    for _ in range({calls}):
        call()
    print((time.perf_counter() - start) / {calls}, flush=True)
"""
PAST = """
x = torch.randn({case.shape}).contiguous(memory_format=torch.{case.format})
torch.save(call(), "y.pt")
"""
PARTS = """
from fastcnn.backends import cpu
from fastcnn.models import alexnet
cpu._CHUNK_BYTES = {megabytes} << 20
block, x = alexnet().eval().features[0], torch.randn(32, 3, 227, 227)
"""


def resolve(commit: str) -> str:
    """Its full name."""
    command = ["git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"]
    try:
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        sys.exit(f"choices.py: commit {commit} is not here; it takes git and a clone with the whole history")


def build(commit: str, folder: Path) -> Path:
    """Where the package of that commit is then installed."""
    print(f"building {commit[:7]}", flush=True)
    archive, source, package = folder / f"{commit}.tar", folder / f"{commit}-source", folder / commit
    subprocess.run(["git", "archive", f"--output={archive}", commit], cwd=ROOT, check=True)
    shutil.unpack_archive(archive, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", source]
    how = ["--no-build-isolation", "--no-deps", "-C", "cmake.define.FASTCNN_CUDA=OFF", "--target", package]
    subprocess.run([*pip, *how], check=True)
    return package


@contextmanager
def worker(package: Path, setup: str, call: str, calls: int = CALLS) -> Iterator[Turn]:
    """Turns of a process that has the package which lies there."""

    def reply() -> str:
        return process.stdout.readline() or sys.exit("choices.py: a worker failed, as said above")

    def turn() -> float:
        print(file=process.stdin, flush=True)
        return float(reply())

    # The current directory comes before PYTHONPATH, and both before what is installed.
    code = WORKER.format(threads=THREADS, setup=setup, call=call, calls=calls)
    where = {"cwd": package, "env": {**os.environ, "PYTHONPATH": str(package)}}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **where, **pipes) as process:
        reply()
        yield turn


def in_turns(sides: Mapping[str, Turn]) -> list[dict[str, float]]:
    return [{name: turn() for name, turn in sides.items()} for _ in range(ROUNDS)]


def found(name: str, rounds: Sequence[Mapping[str, float]], one: str, other: str) -> dict[str, Any]:
    """Quartiles of both sides' seconds, and of how many times as long one takes as the other."""
    times = quartiles([r[one] / r[other] for r in rounds])
    print(f"{name}: {times.median:.2f} times ({times.low:.2f} to {times.high:.2f})", flush=True)
    took = {side: quartiles([r[side] for r in rounds])._asdict() for side in (one, other)}
    return {"seconds": took, "times": times._asdict()}


def compared(name: str, replaced: str, by: str, sides: Mapping[str, Turn]) -> dict[str, Any]:
    measured = found(f"{name}: {by}", in_turns(sides), "replaced", "by")
    return {"case": name, "replaced": replaced, "by": by, **measured}


def past(case: Case, before: Path, after: Path) -> dict[str, Any]:
    how = PAST.format(case=case), f"epilogue(x, {case.stages})", case.calls
    with worker(before, *how) as old, worker(after, *how) as new:
        torch.testing.assert_close(*(torch.load(package / "y.pt") for package in (before, after)))
        sides = {"replaced": old, "by": new}
        return {"commit": case.commit, **compared(case.name, case.replaced, case.by, sides)}


def history() -> list[dict[str, Any]]:
    commits = [(resolve(f"{case.commit}~1"), resolve(case.commit)) for case in CASES]
    with tempfile.TemporaryDirectory() as folder:
        packages = {commit: build(commit, Path(folder)) for commit in dict.fromkeys(sum(commits, ()))}
        return [
            past(case, packages[before], packages[after])
            for case, (before, after) in zip(CASES, commits, strict=True)
        ]


def huge_from(size: int, fn: Callable[[], object]) -> Turn:
    """fn's turns where huge pages are asked for in tensors larger than that."""

    def calls() -> None:
        for _ in range(CALLS):
            fn()

    def turn() -> float:
        with patch.object(cpu, "_FRESH_BYTES", size):
            fn()
            return seconds(calls) / CALLS

    return turn


def pages() -> dict[str, Any]:
    """Fresh pages, of the usual size and huge ones: touched for the first time, and as an LRN's output."""
    x, lrn = torch.randn(MAP), LRN(5, k=2.0)
    fns = {
        "first touch of 37 MB": lambda: cpu._empty(MAP, torch.float32, torch.contiguous_format).zero_(),
        "LRN, NCHW": lambda: F.epilogue(x, relu=False, lrn=lrn),
    }
    sizes = {"replaced": sys.maxsize, "by": cpu._FRESH_BYTES}
    touch, norm = (
        compared(
            name,
            "pages of the usual size",
            "huge pages asked for",
            {side: huge_from(size, fn) for side, size in sizes.items()},
        )
        for name, fn in fns.items()
    )
    return {"touch": touch, "lrn": norm}


def parts() -> dict[str, Any]:
    """AlexNet's first block by the megabytes that it convolves at a time, beside the usual number of them.

    Each has a process of its own, since the C library hands memory out by what was freed in it before.
    """
    with ExitStack() as stack:
        start = {f"{m}": worker(ROOT, PARTS.format(megabytes=m), "block(x)") for m in MEGABYTES}
        rounds = in_turns({size: stack.enter_context(each) for size, each in start.items()})
    return {size: found(f"parts of {size} MB", rounds, size, f"{USUAL}") for size in start}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    data = {"machine_info": facts("cpu"), "history": history(), "pages": pages(), "parts": parts()}
    RESULTS.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
