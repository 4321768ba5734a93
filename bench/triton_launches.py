"""What Triton compiles for a launch, for any GPU and without one, and how much of it runs."""

from __future__ import annotations

import contextlib
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)  # which would leave nothing to compile

import torch
import triton
from resources import cuobjdump
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


class GPU(NamedTuple):
    """A target, and of a card that has it, by its data sheet: multiprocessors, their clock, memory's rate."""

    target: GPUTarget
    card: str = ""
    multiprocessors: int = 0
    hertz: float = 0
    bytes: float = 0


GPUS = {
    "sm_80": GPU(GPUTarget("cuda", 80, 32), "A100 SXM", 108, 1.410e9, 2.04e12),
    "sm_86": GPU(GPUTarget("cuda", 86, 32), "RTX 3090", 82, 1.695e9, 0.936e12),
    "sm_89": GPU(GPUTarget("cuda", 89, 32), "L40S", 142, 2.520e9, 0.864e12),
    "sm_90": GPU(GPUTarget("cuda", 90, 32), "H100 SXM", 132, 1.755e9, 3.35e12),
    "sm_100": GPU(GPUTarget("cuda", 100, 32), "B200", 148, 1.965e9, 8.0e12),
    "sm_120": GPU(GPUTarget("cuda", 120, 32), "RTX 5090", 170, 2.407e9, 1.79e12),
    "gfx90a": GPU(GPUTarget("hip", "gfx90a", 64)),
    "gfx942": GPU(GPUTarget("hip", "gfx942", 64)),
    "gfx950": GPU(GPUTarget("hip", "gfx950", 64)),
    "gfx1100": GPU(GPUTarget("hip", "gfx1100", 32)),
    "gfx1201": GPU(GPUTarget("hip", "gfx1201", 32)),
}


class Driver:
    """In place of Triton's driver: a GPU to compile for."""

    def __init__(self, gpu: str) -> None:
        self.gpu = gpu

    def get_current_target(self) -> GPUTarget:
        return GPUS[self.gpu].target

    def get_current_device(self) -> int:
        return list(GPUS).index(self.gpu)  # a kernel's cache is of a device

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


class Launch(NamedTuple):
    kernel: str
    code: Any  # what was compiled
    programs: int
    warps: int
    arguments: dict[str, Any]


@contextlib.contextmanager
def compiled_for(gpu: str) -> Iterator[list[Launch]]:
    """Compiles kernels for a GPU within it, and runs none; tensors may be meta. Yields the launches."""
    launches: list[Launch] = []
    run = JITFunction.run

    def note(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> Any:
        code = run(self, *args, grid=grid, warmup=True, **options)
        arguments = dict(zip(self.arg_names, args, strict=False)) | options | {"programs": grid[0]}
        name = f"{self.__module__.split('.')[-1]}.{self.__name__}"
        launches.append(Launch(name, code, math.prod(grid), code.metadata.num_warps, arguments))
        return code

    driver = mock.patch.object(triton.runtime.driver, "_active", Driver(gpu))
    with driver, mock.patch.object(JITFunction, "run", note):
        yield launches


MATRIX = r"\b(?:HGMMA|HMMA|UTC\w*MMA|OMMA|v_s?w?mfmac?|v_wmma|v_mfma)\w*"


class Code(NamedTuple):
    """Of a compiled kernel. The instructions are (address, text), NVIDIA's only."""

    registers: int
    spills: int
    matrix: int  # instructions of matrix units
    instructions: list[tuple[int, str]]


def code_of(launch: Launch) -> Code:
    code = launch.code.asm
    if "amdgcn" in code:
        text = code["amdgcn"]
        found = dict(re.findall(r"\.(\w+_count):\s+(\d+)", text))  # scalars spill to vector registers
        return Code(
            int(found["vgpr_count"]), int(found["vgpr_spill_count"]), len(re.findall(MATRIX, text)), []
        )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(code["cubin"])
        registers = re.search(r"REG:(\d+)", cuobjdump("-res-usage", file=file.name))
        text = cuobjdump("-sass", file=file.name)
    assert registers is not None
    rows = [(int(at, 16), row) for at, row in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", text)]
    while rows and re.match(rf"NOP|BRA 0x{rows[-1][0]:x}\b", rows[-1][1]):
        rows.pop()
    # Not STACK, which a division of 64 bits needs too.
    spills = len(re.findall(r"\b(?:STL|LDL)\b", text))
    return Code(int(registers[1]), spills, len(re.findall(MATRIX, text)), rows)


def loops(rows: list[tuple[int, str]]) -> list[tuple[int, int]]:
    """First and last row of each loop, in the order in which they begin, the outer first."""
    at = {address: i for i, (address, _) in enumerate(rows)}
    found = []
    for i, (address, text) in enumerate(rows):
        match = re.search(r"\bBRA(?:\.\w+)*\s+.*?0x([0-9a-f]+)", text)
        if match and int(match[1], 16) <= address:
            found.append((at[int(match[1], 16)], i))
    return sorted(found, key=lambda loop: (loop[0], -loop[1]))


def issued(code: Code, trips: list[float]) -> Counter[str]:
    """How often a warp issues which operation; trips: of each loop, in the one around it, unless unrolled."""
    found = loops(code.instructions)
    if found and len(found) != len(trips):
        lengths = [last - first + 1 for first, last in found]
        raise RuntimeError(f"there are loops of {lengths} instructions, and trips are {trips}")
    counts: Counter[str] = Counter()
    for i, (_, text) in enumerate(code.instructions):
        times = 1.0
        for (first, last), trip in zip(found, trips, strict=bool(found)):
            times *= trip if first <= i <= last else 1
        counts[re.sub(r"^@\S+\s+", "", text).split()[0].split(".")[0]] += times  # type: ignore[assignment]
    return counts


def meta(size: tuple[int, ...], dtype: torch.dtype, format: torch.memory_format) -> torch.Tensor:
    return torch.empty(size, dtype=dtype, device="meta", memory_format=format)


def launches_of(gpu: str, run: Callable[[], Any]) -> list[Launch]:
    """Returns what a call launches."""
    with compiled_for(gpu) as launches:
        run()
    return launches
