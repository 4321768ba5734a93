"""Compiles what a call launches with Triton, for any GPU and without one; counts the instructions issued."""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import triton
from sass import Code, cuobjdump, instructions, loops
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

TARGETS = {f"sm_{arch}": GPUTarget("cuda", arch, 32) for arch in (80, 86, 89, 90, 100, 120)}
TARGETS |= {arch: GPUTarget("hip", arch, 64) for arch in ("gfx90a", "gfx942", "gfx950")}
TARGETS |= {arch: GPUTarget("hip", arch, 32) for arch in ("gfx1100", "gfx1201")}
if os.environ.get("TRITON_INTERPRET") == "1":
    sys.exit("with TRITON_INTERPRET=1 nothing is compiled")

MATRIX = r"\b(?:HGMMA|HMMA|UTC\w*MMA|OMMA|v_s?w?mfmac?|v_wmma|v_mfma)\w*"


class Launch(NamedTuple):
    """A kernel as it was compiled, and how it is launched."""

    kernel: str
    arguments: dict[str, Any]
    warps: int  # of all programs
    registers: int
    spills: int
    matrix: int  # instructions of matrix units
    code: Code  # instructions by address; of NVIDIA's only


def launches(target: str, call: Callable[[], Any]) -> list[Launch]:
    """Returns what a call would launch on a GPU, compiled for it. Nothing runs, so tensors may be meta."""
    found: list[Launch] = []
    run = JITFunction.run

    def compile(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> Any:
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        arguments = dict(zip(self.arg_names, args, strict=False)) | options | {"programs": grid[0]}
        name = f"{self.__module__.split('.')[-1]}.{self.__name__}"
        warps = math.prod(grid) * compiled.metadata.num_warps
        found.append(Launch(name, arguments, warps, *read(compiled.asm)))
        return compiled

    driver = SimpleNamespace(
        get_current_target=lambda: TARGETS[target],
        get_current_device=lambda: list(TARGETS).index(target),  # a kernel's cache is of a device
        get_current_stream=lambda device=None: 0,
    )
    active = mock.patch.object(triton.runtime.driver, "_active", driver)
    with active, mock.patch.object(JITFunction, "run", compile):
        call()
    return found


def read(asm: dict[str, Any]) -> tuple[int, int, int, Code]:
    """Returns registers, spills, instructions of matrix units, and NVIDIA's instructions."""
    if "amdgcn" in asm:
        text = asm["amdgcn"]
        counts = dict(re.findall(r"\.(vgpr\w*_count):\s+(\d+)", text))  # scalar registers spill to these
        return int(counts["vgpr_count"]), int(counts["vgpr_spill_count"]), len(re.findall(MATRIX, text)), {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(asm["cubin"])
        registers = re.findall(r"REG:(\d+)", cuobjdump("-res-usage", file.name))
        text = cuobjdump("-sass", file.name)
    spills = len(re.findall(r"\b(?:STL|LDL)\b", text))  # not STACK, which a division of 64 bits needs too
    return int(registers[0]), spills, len(re.findall(MATRIX, text)), instructions(text)


def block_trips(a: dict[str, Any]) -> list[float]:
    """Returns the trips of a program's loops: over tiles; in each over x, the product, LRN and pooling."""
    first = a["spec"].size > 0 and a["PK"] > 1 and not a["POOL_FIRST"]
    last = a["PK"] == 1 or (a["spec"].size > 0 and not first)
    lrn, pool, runs = a["parts"]
    product = triton.cdiv(a["KH"] * a["KW"] * a["CIN"] * a["SQUARE"] ** 2, a["BK"])
    parts = [runs] * (a["SQUARE"] > 1) + [product] + [lrn] * first + [pool] * (a["PK"] > 1) + [pool] * last
    return [a["tiles"][0] / a["programs"], *(trips for trips in parts if trips > 1)]  # a loop of one is none


TRIPS: dict[str, Callable[[dict[str, Any]], list[float]]] = {
    "pixels_kernels.pointwise_kernel": lambda a: [a["EACH"]],
    "pixels_kernels.pool_kernel": lambda a: [],
    "pixels_kernels.lrn_pool_kernel": lambda a: [a["ROWS"]],
    "pixels_kernels.backward_kernel": lambda a: [a["EACH"]],
    "planes_kernels.lrn_pool_kernel": lambda a: [a["CHUNK"] / 4],
    "planes_kernels.backward_kernel": lambda a: [(a["CHUNK"] + a["NORM"][0] - 1) / 4],
    "conv.block_kernel": block_trips,
}


def issued(launch: Launch) -> Counter[str]:
    """Returns how many instructions all warps issue, by operation; those of a loop for each of its trips."""
    found, trips = loops(launch.code), TRIPS[launch.kernel](launch.arguments)
    if found and len(found) != len(trips):  # without any they were unrolled
        raise RuntimeError(f"{launch.kernel} has {len(found)} loops, and trips are {trips}")
    counts: Counter[str] = Counter()
    for at, text in launch.code.items():
        times: float = launch.warps
        for (first, last), trip in zip(found, trips, strict=bool(found)):
            times *= trip if first <= at <= last else 1
        counts[re.sub(r"^@\S+\s+", "", text).split()[0].split(".")[0]] += times  # type: ignore[assignment]
    return counts
