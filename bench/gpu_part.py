"""Runs one part of gpu.py, and prints each of its rows as JSON once it is known."""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import metadata
from itertools import chain, islice, product
from types import ModuleType

import gpu_rows
import torch
from gpu_cases import DTYPES, LAYOUTS, Case, check, cuda_cases, triton_cases
from gpu_here import Here, here
from gpu_rows import ALL_EPILOGUES, BLOCKS, EPILOGUES, PHASES, Row, Rows
from gpu_timing import Call, describe

from fastcnn import _native, backends, set_backend
from fastcnn.backends import cuda

STICKY, OVER = 3, 4  # exit statuses: the device takes no more in this process; the part's time is over
PATIENCE = {"kernels": 20}  # seconds after which a row ends its process, as a kernel may never end; else 60


def name_of(module: ModuleType) -> str:
    return module.__name__.split(".")[2]


def facts(here: Here) -> Rows:
    names = ("triton", "numpy", "pytest", "hypothesis", "pybind11", "scikit_build_core")
    versions = {d.name: d.version for d in metadata.distributions() if d.name.replace("-", "_") in names}
    built = {"torch": torch.__version__, "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    yield "versions", lambda: versions | built

    def extension() -> Row:
        if reason := _native.missing_reason():
            return {"error": reason}
        native, runs = _native.load(), here.device == "cuda" and cuda.missing_reason() is None
        return {"build_info": native.build_info(), "has code for this GPU": runs and native.cuda_runs_on(0)}

    yield "extension", extension


def restarts(here: Here) -> Rows:
    """Rehearsed alone: a row that ends its process, and one after which the device is of no more use."""

    def broken() -> Row:
        here.cuda.synchronize.side_effect = RuntimeError("CUDA error: unspecified launch failure")
        return here.cuda.synchronize()

    yield "a row that dies", lambda: os._exit(11)
    yield "a row that breaks the device", broken
    yield "a row after those", lambda: {"verdict": "ok"}


def ran(call: Call) -> Row:
    call()
    return {"verdict": "ok"}


def cases(here: Here, found: list[Case], module: ModuleType) -> Rows:
    for case in found[:: here.size(1, 11)]:
        yield f"{name_of(module)}: {case}", partial(check, module, case, here.device, here.cuda.synchronize)


def sanitized(here: Here) -> Rows:
    """Epilogues alone, and whole blocks: by torch's convolution, by space to depth, in one kernel."""
    yield from cases(here, cuda_cases()[:: 5 if here.thorough else 17], here.ours)
    others = ("plain", here.size("plain", "triton"))  # interpreted, it takes long
    for block in BLOCKS:
        calls = gpu_rows.block_calls(here, block)
        yield from ((f"{block}: {who}", partial(ran, calls[who])) for who in calls if who not in others)


def launched(here: Here, who: str, found: list[Case]) -> Rows:
    """Each kernel once: for a profiler, or to have it compiled before it is timed."""
    for case, phase in product(found, PHASES):
        call = partial(lambda *which: gpu_rows.contenders(here, *which)[0][who](), case, phase)
        yield f"{who}, launched: {case}, {phase}", partial(ran, call)


def triton(here: Here, dtype: str, layout: str) -> Rows:
    """These alone, as a kernel takes up to ten seconds to compile."""
    timed = ALL_EPILOGUES[: len(ALL_EPILOGUES) // 2] if here.thorough else EPILOGUES
    which = lambda found: [case for case in found if case[1:3] == (dtype, layout)]  # noqa: E731
    tried, timed = which(triton_cases()), which(timed)
    yield from cases(here, tried, backends.module("triton"))
    yield from launched(here, "triton", here.size(timed, timed[:1]))
    if (dtype, layout) == (DTYPES[0], LAYOUTS[0]):
        row = lambda block: here.clock.race({"triton": gpu_rows.block_calls(here, block)["triton"]})  # noqa: E731
        yield from ((f"triton, launched: {block}", partial(row, block)) for block in BLOCKS)


PARTS: dict[str, Callable[[Here], Rows]] = {
    "facts": facts, "restarts": restarts, "rates": gpu_rows.rates,
    **{f"triton, {d}, {f}": partial(triton, dtype=d, layout=f) for d, f in product(DTYPES, LAYOUTS)},
    "kernels": lambda here: cases(here, cuda_cases(), here.ours),
    "epilogues": lambda here: gpu_rows.epilogues(here, here.size(EPILOGUES, EPILOGUES[:1])),
    "all epilogues": lambda here: gpu_rows.epilogues(here, here.size(ALL_EPILOGUES, ALL_EPILOGUES[:1])),
    "blocks": lambda here: chain(gpu_rows.blocks(here), gpu_rows.convolutions(here)),
    "networks": gpu_rows.networks, "unsearched": gpu_rows.unsearched, "defaults": gpu_rows.defaults,
    "peers": gpu_rows.peers, "ncu": lambda here: launched(here, "cuda", [EPILOGUES[i] for i in (0, 1, 4)]),
    **dict.fromkeys(("memcheck", "racecheck", "synccheck"), sanitized),
}  # fmt: skip


def run(part: str, first: int, until: float, rehearse: bool, thorough: bool) -> int:
    """Prints the part's rows from one on, and returns the exit status; the time is time.monotonic()'s."""
    torch.backends.cudnn.benchmark = part not in ("unsearched", "defaults")
    place = here(rehearse, thorough)
    if part not in ("facts", "defaults"):
        set_backend(name_of(place.ours))
    for name, row in islice(PARTS[part](place), first, None):
        if time.monotonic() > until:
            return OVER
        print("begins", name, flush=True)
        faulthandler.dump_traceback_later(place.size(PATIENCE.get(part, 60), 600), exit=True)
        try:
            values = row()
        except Exception as error:
            traceback.print_exc()
            values = {"verdict": "error", "error": describe(error)}
        try:
            place.cuda.synchronize()
        except Exception as error:
            values |= {"verdict": "error", "nothing runs any more": describe(error)}
        print(json.dumps({"name": name, **values}), flush=True)
        if "nothing runs any more" in values:
            os._exit(STICKY)  # leaving in order would wait for the device
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("first", type=int)
    parser.add_argument("until", type=float)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--thorough", action="store_true")
    sys.exit(run(**vars(parser.parse_args())))
