"""What Triton makes of its kernels, compiled ahead of time without a GPU: docs/triton_resources.md.

python bench/triton_resources.py [--check] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton_launches import GPUS, Launch, code_of, issued, launches_of, meta

from fastcnn import LRN, MaxPool
from fastcnn.backends._convolution import conv_output_size
from fastcnn.backends.triton import conv, epilogue
from fastcnn.stages import Stages

TABLE = Path(__file__).resolve().parents[1] / "docs" / "triton_resources.md"
COUNTED = "sm_90"  # whose instructions are counted
IMAGES = 128
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FORMATS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}
NORM, POOL = LRN(5, k=2.0), MaxPool(3, 2)
LRN_POOL, POOL_LRN = Stages(lrn=NORM, pool=POOL), Stages(lrn=NORM, pool=POOL, order="pool_lrn")
WARPS = {"sm_80": 64, "sm_90": 64, "sm_100": 64}  # of a multiprocessor, else 48
BLOCKS = 32  # the most programs of a multiprocessor


class Case(NamedTuple):
    """An epilogue on [IMAGES, channels, 55, 55]; bound: of its time to issue over the time to move."""

    name: str
    stages: Stages
    phase: str  # inference, places (what a block's forward keeps), places and r, or backward
    bound: float
    dtype: str = "bf16"
    format: str = "channels_last"
    channels: int = 96

    def __str__(self) -> str:
        return "; ".join((self.name, self.phase, self.dtype, self.format))


MAIN = (
    Case("relu", Stages(), "inference", 0.2),
    Case("relu, lrn", Stages(lrn=NORM), "inference", 0.65),
    Case("relu, pool 3/2", Stages(pool=POOL), "inference", 0.5),
    Case("relu, pool 3/2", Stages(pool=POOL), "places", 1.2),
    Case("relu, lrn, pool 3/2", LRN_POOL, "inference", 1.15),
    Case("relu, lrn, pool 3/2", LRN_POOL, "places", 1.3),
    Case("relu, lrn, pool 3/2", LRN_POOL, "places and r", 0.85),
    Case("relu, lrn, pool 3/2", LRN_POOL, "backward", 1.1),
)
OTHERS = (
    Case("relu", Stages(), "backward", 1.1),
    Case("relu, lrn", Stages(lrn=NORM), "backward", 1.1),
    Case("relu, pool 3/2", Stages(pool=POOL), "backward", 1.1),
    Case("relu, pool 2/2", Stages(pool=MaxPool(2)), "inference", 0.5),
    Case("relu, pool 2/2", Stages(pool=MaxPool(2)), "places", 1.2),
    Case("relu, pool 2/2", Stages(pool=MaxPool(2)), "backward", 1.1),
    Case("relu, pool 3/2 padded", Stages(pool=MaxPool(3, 2, 1)), "inference", 0.5),
    Case("relu, pool 3/2 padded", Stages(pool=MaxPool(3, 2, 1)), "places", 1.2),
    Case("relu, pool 3/2 padded", Stages(pool=MaxPool(3, 2, 1)), "backward", 1.1),
    Case("relu, pool 3/2, lrn", POOL_LRN, "inference", 1.15),
    Case("relu, pool 3/2, lrn", POOL_LRN, "places and r", 1.3),
    Case("relu, pool 3/2, lrn", POOL_LRN, "backward", 1.1),
    Case("relu, lrn of 2 groups, pool 3/2", Stages(lrn=LRN(5, k=2.0, groups=2), pool=POOL), "places", 1.3),
    Case("relu, lrn of 2 groups, pool 3/2", Stages(lrn=LRN(5, k=2.0, groups=2), pool=POOL), "backward", 1.1),
    Case("relu, lrn of 4, pool 2/2", Stages(lrn=LRN(4, k=2.0), pool=MaxPool(2)), "inference", 1.15),
)


def cases() -> Iterator[Case]:
    yield from MAIN
    yield from OTHERS
    for case in MAIN:
        yield case._replace(name=case.name + ", 100 channels", channels=100, bound=1.3 * case.bound)
    for case in MAIN:
        yield case._replace(format="NCHW", bound=1.5 * case.bound)
    for format, case in product(FORMATS, MAIN):
        yield case._replace(dtype="fp32", format=format, bound=1.2)


def run(case: Case) -> tuple[Callable[[], Any], int]:
    """What is called, and how many bytes it moves at least."""
    stages, format, dtype = case.stages, FORMATS[case.format], DTYPES[case.dtype]
    size = (IMAGES, case.channels, 55, 55)
    x, y = meta(size, dtype, format), meta(stages.output_shape(size), dtype, format)
    bias = torch.empty(case.channels, dtype=dtype, device="meta")
    places = None if stages.pool is None else meta(tuple(y.shape), torch.uint8, format)
    r = {"r": y if stages.pool_first else x, "output": y}[stages.residual(True) or "output"]
    if case.phase == "backward":
        # A block keeps the convolution's output: r is made again, with the bias.
        rest = (stages, size, format, True, bias if stages.lrn_first else None)
        return lambda: epilogue.backward(y, r, places, *rest), moved(x, y, places, r)
    save, keep_r = case.phase != "inference", case.phase == "places and r"
    tensors = [x, y, places if save else None, r if keep_r else None]
    return lambda: epilogue.forward(x, bias, stages, save, keep_r), moved(*tensors)


def moved(*tensors: torch.Tensor | None) -> int:
    return sum(t.numel() * t.itemsize for t in tensors if t is not None)


TRIPS: dict[str, Callable[[dict[str, Any]], list[float]]] = {
    "pixels.pointwise_kernel": lambda a: [a["EACH"]],
    "pixels.pool_kernel": lambda a: [],
    "pixels.lrn_pool_kernel": lambda a: [a["ROWS"]],
    "pixels.backward_kernel": lambda a: [a["EACH"]],
}


def resources(launches: list[Launch], gpu: str, bytes: int) -> dict[str, Any]:
    """Of the launches of one call: the most registers, the fewest resident warps, the sum of the times."""
    codes = [code_of(launch) for launch in launches]
    found: dict[str, Any] = {
        "registers": max(code.registers for code in codes),
        "spills": sum(code.spills for code in codes),
        "matrix": sum(code.matrix for code in codes),
    }
    card = GPUS[gpu]
    if not card.card:
        return found
    schedulers = card.multiprocessors * 4 * card.hertz
    issue = special = 0.0
    for code, launch in zip(codes, launches, strict=True):
        counts = issued(code, TRIPS[launch.kernel](launch.arguments))
        warps = launch.programs * launch.warps
        issue += sum(counts.values()) * warps / schedulers
        special += 8 * counts["MUFU"] * warps / schedulers  # four lanes a cycle
    return found | {
        "warps": min(
            resident(c.registers, launch.warps, gpu) for c, launch in zip(codes, launches, strict=True)
        ),
        "issue_us": 1e6 * issue,
        "special_us": 1e6 * special,
        "move_us": 1e6 * bytes / card.bytes,
    }


def resident(registers: int, warps: int, gpu: str) -> int:
    """Warps of a multiprocessor at once, by registers alone, which come in eights a lane."""
    programs = 65536 // (-(-registers // 8) * 8 * 32 * warps)
    return min(programs, BLOCKS, WARPS.get(gpu, 48) // warps) * warps


def rows(gpu: str) -> list[dict[str, Any]]:
    found = []
    for case in cases():
        call, bytes = run(case)
        found.append({"kernel": str(case), "target": gpu} | resources(launches_of(gpu, call), gpu, bytes))
    return found


if __name__ == "__main__":
    for case in cases():
        call, bytes = run(case)
        try:
            f = resources(launches_of("sm_90", call), "sm_90", bytes)
        except Exception as e:
            print(case, "FAILED", repr(e)[:200])
            continue
        ratio = f["issue_us"] / f["move_us"]
        print(
            f"{case!s:60} {case.bound:.2f} {ratio:.2f} {'OVER' if ratio > case.bound else ''} {f}", flush=True
        )
