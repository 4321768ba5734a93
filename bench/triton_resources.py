"""What Triton makes of its kernels, compiled ahead of time without a GPU: docs/triton_resources.md.

python bench/triton_resources.py [--check]
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # which would leave nothing to compile

import torch
import triton
from resources import cuobjdump
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastcnn import LRN, MaxPool
from fastcnn.backends._convolution import conv_output_size
from fastcnn.backends.triton import conv, epilogue
from fastcnn.stages import Stages

TABLE = Path(__file__).resolve().parents[1] / "docs" / "triton_resources.md"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
NORM, POOL = LRN(5, k=2.0), MaxPool(3, 2)
STAGES = {
    "relu": Stages(),
    "relu, lrn": Stages(lrn=NORM),
    "relu, pool 3/2": Stages(pool=POOL),
    "relu, pool 2/2": Stages(pool=MaxPool(2)),
    "relu, lrn, pool 3/2": Stages(lrn=NORM, pool=POOL),
    "relu, pool 3/2, lrn": Stages(lrn=NORM, pool=POOL, order="pool_lrn"),
    "relu, lrn with beta 0.6": Stages(lrn=LRN(5, beta=0.6)),
}
PHASES = ("inference", "forward for training", "backward")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}

INTRODUCTION = """\
# What Triton makes of its kernels

Compiled ahead of time, without a GPU, by `python bench/triton_resources.py`; CI compares. Triton {version}.

Registers of a thread, for AMD's gfx942 vector registers; epilogues in blocks of {block} values on four warps.
For convolution blocks, in channels_last, also the number of matrix instructions (HGMMA, HMMA, tcgen05, MFMA).
Where a register is spilled, or a convolution in 16 bits has no matrix instruction, the command fails.

| kernel | {targets} |
|---|{dashes}|
"""

WORK = """
## What a block has to do

{images} images in inference, the convolution after space to depth. The tiles compute more than is asked for:
halos, and rows, columns and depth that fill a power of two. Times are floors, at an H100's peak of matrix
products (989 TFLOPS in bf16, half of it in tf32) or of its memory (3.35 TB/s), whichever is longer. Scratch:
of {programs} programs, to stay in 50 MB of L2.

| block | GFLOP | times, in tiles | MB in and out | us at peak | in tiles | MB of scratch |
|---|--:|--:|--:|--:|--:|--:|
"""


class Case(NamedTuple):
    stages: str
    phase: str
    dtype: str
    channels_last: bool

    def __str__(self) -> str:
        format = "channels_last" if self.channels_last else "NCHW"
        return "; ".join((self.stages, self.phase, self.dtype, format))


def cases() -> Iterator[Case]:
    for stages, phase in product(STAGES, PHASES):
        yield Case(stages, phase, "bf16", True)
    for phase, dtype in product(PHASES, ("fp32", "fp64")):
        yield Case("relu, lrn, pool 3/2", phase, dtype, False)


def source(case: Case) -> ASTSource:
    """The kernel with the argument types that a launch on [., 96, 55, 55] gives it."""
    stages, dtype = STAGES[case.stages], DTYPES[case.dtype]
    kernel = epilogue.backward_kernel if case.phase == "backward" else epilogue.forward_kernel
    x = torch.empty(2, 96, 55, 55, dtype=dtype, device="meta")
    values = epilogue.arguments(x, x.new_empty(stages.output_shape(x.shape)), stages)
    values["CHANNELS_LAST"] = case.channels_last
    pools_r = stages.lrn and stages.pool and stages.pool_first  # else a launch of its own writes r
    if case.phase == "inference" or (case.phase == "forward for training" and not pools_r):
        values["r"] = None
    if case.phase == "inference" or stages.pool is None:
        values["offsets"] = None
    types: dict[str, Any] = {name: f"*{case.dtype}" for name in ("x", "bias", "y", "r", "grad", "grad_x")}
    types |= {"offsets": "*u8", "strides": ("i64",) * 4, "grad_strides": ("i64",) * 4, "total": "i32"}
    types |= {"size": ("i32",) * 6, "pool": ("i32",) * 6}
    constants = {n: values[n] for n in kernel.arg_names if n in values and n not in ("size", "pool")}
    signature = {n: "constexpr" if n in constants else types[n] for n in kernel.arg_names}
    return ASTSource(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()})


class Block(NamedTuple):
    """A convolution and its stages; stride 1, since strides of few channels go by space to depth."""

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    padding: int
    groups: int
    stages: str
    dtype: str
    training: bool

    def __str__(self) -> str:
        return f"{self.name}, {self.stages}; {'training' if self.training else 'inference'}; {self.dtype}"


def blocks() -> Iterator[Block]:
    conv1 = ("AlexNet's first", (2, 48, 57, 57), (96, 48, 3, 3), 0, 1, "relu, lrn, pool 3/2")
    conv2 = ("AlexNet's second", (2, 96, 27, 27), (256, 48, 5, 5), 2, 2, "relu, lrn, pool 3/2")
    whole = ("CaffeNet's second, LRN across", (2, 96, 27, 27), (256, 96, 5, 5), 2, 1, "relu, pool 3/2, lrn")
    lenet = ("LeNet-5's second", (2, 6, 14, 14), (16, 6, 5, 5), 0, 1, "relu, pool 2/2")
    for block, dtype, training in product((conv1, conv2, whole, lenet), ("bf16", "fp32"), (False, True)):
        if training and STAGES[block[-1]].lrn_first:
            continue  # which needs the convolution in memory: two kernels
        yield Block(*block, dtype, training)


def block_source(block: Block, amd: bool) -> tuple[ASTSource, dict[str, int]]:
    """The kernel as a launch in channels_last would have it compiled, and how it is."""
    stages, dtype = STAGES[block.stages], DTYPES[block.dtype]
    how = ((1, 1), (block.padding,) * 2, (1, 1), block.groups)
    x, weight = (like(size, dtype) for size in (block.x, block.weight))
    a = like((block.x[0], block.weight[0], *conv_output_size(x, weight, how)), dtype)
    y = like(stages.output_shape(a.shape), dtype)
    values = conv.arguments(x, weight, how, stages, a.shape, y, amd)
    options = {name: values.pop(name) for name in ("num_warps", "num_stages")}
    values |= {"strides": x.stride(), "y_strides": y.stride()}
    values["r"] = "*" + block.dtype if block.training and stages.lrn else None
    values["offsets"] = "*u8" if block.training else None
    values |= dict.fromkeys(("x", "weight", "bias", "y", "scratch"), "*" + block.dtype)
    kernel = conv.block_kernel
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for at, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        value = values[name]
        if isinstance(value, tuple):  # of which each is compiled in if it is 1
            signature[name] = tuple("constexpr" if v == 1 else "i32" for v in value)
            constants |= {(at, i): 1 for i, v in enumerate(value) if v == 1}
            attributes |= {(at, i): ALIGNED for i, v in enumerate(value) if v % 16 == 0}
        elif value is None or parameter.is_constexpr:
            signature[name], constants[at,] = "constexpr", value
        else:
            signature[name], attributes[at,] = value, ALIGNED
    return ASTSource(kernel, signature, constants, attributes), options


ALIGNED = [["tt.divisibility", 16]]


def like(size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(size, dtype=dtype, device="meta", memory_format=torch.channels_last)


MATRIX = r"\b(?:HGMMA|HMMA|UTC\w*MMA|v_mfma)\w*"


def registers(case: Case | Block, target: GPUTarget) -> str:
    """Of a thread, and for a block the number of matrix instructions.

    Raises:
        RuntimeError: registers are spilled, or a block has no matrix instruction in 16 bits.
    """
    amd = target.backend == "hip"
    source_, options = block_source(case, amd) if isinstance(case, Block) else (source(case), {})
    code = triton.compile(source_, target=target, options=options).asm
    if amd:
        text = code["amdgcn"]
        found = dict(re.findall(r"\.(\w+_count):\s+(\d+)", text))
        count, spilled = found["vgpr_count"], int(found["vgpr_spill_count"])  # scalars spill to registers
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(code["cubin"])
            count = re.search(r"REG:(\d+)", cuobjdump("-res-usage", file=file.name))[1]
            text = cuobjdump("-sass", file=file.name)
            # Not STACK, which a division of 64 bits needs too.
            spilled = len(re.findall(r"\b(?:STL|LDL)\b", text))
    if spilled:
        raise RuntimeError(f"{case} spills on {target.arch}")
    if not isinstance(case, Block):
        return count
    matrix = len(re.findall(MATRIX, text))
    if case.dtype == "bf16" and not matrix:
        raise RuntimeError(f"{case} has no matrix instruction on {target.arch}")
    return f"{count}; {matrix}"


IMAGES, PROGRAMS = 128, 2 * 132
PRODUCTS, BANDWIDTH = {"bf16": 989e12, "fp32": 494e12}, 3.35e12  # a second, of an H100 SXM, fp32 as tf32


def work(block: Block) -> str:
    """What a block of IMAGES has to compute and to move, and what the tiles make of it."""
    how, stages, dtype = (
        ((1, 1), (block.padding,) * 2, (1, 1), block.groups),
        STAGES[block.stages],
        block.dtype,
    )
    x, weight = (like(size, DTYPES[dtype]) for size in ((IMAGES, *block.x[1:]), block.weight))
    a = like((IMAGES, block.weight[0], *conv_output_size(x, weight, how)), x.dtype)
    y = like(stages.output_shape(a.shape), x.dtype)
    values = conv.arguments(x, weight, how, stages, a.shape, y)
    useful = 2 * a.numel() * weight[0].numel()
    depth = -(-weight[0].numel() // values["BK"]) * values["BK"]
    done = 2 * values["tiles"][0] * block.groups * values["BM"] * values["BN"] * depth
    moved = sum(t.numel() * t.itemsize for t in (x, weight, y))
    least, tiled = (1e6 * max(flops / PRODUCTS[dtype], moved / BANDWIDTH) for flops in (useful, done))
    programs = PROGRAMS // block.groups * block.groups
    scratch = programs * 2 * values["BM"] * values["BN"] * x.itemsize
    return (
        f"| {block.name}; {dtype} | {useful / 1e9:.1f} | {done / useful:.2f} | {moved / 1e6:.0f} "
        f"| {least:.0f} | {tiled:.0f} | {scratch / 1e6:.1f} |\n"
    )


def table() -> str:
    text = INTRODUCTION.format(
        version=triton.__version__,
        block=epilogue.BLOCK,
        targets=" | ".join(TARGETS),
        dashes="|".join("--:" for _ in TARGETS),
    )
    for case in (*cases(), *blocks()):
        counts = " | ".join(registers(case, target) for target in TARGETS.values())
        text += f"| {case} | {counts} |\n"
    return (
        text
        + WORK.format(images=IMAGES, programs=PROGRAMS)
        + "".join(work(block) for block in blocks() if not block.training)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the table is another")
    check, text = parser.parse_args().check, table()
    if not check:
        TABLE.write_text(text)
    elif TABLE.read_text() != text:
        print("docs/triton_resources.md is out of date: run make resources", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
