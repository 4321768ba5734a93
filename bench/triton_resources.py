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
from fastcnn.backends.reference import conv_output_size
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
For convolution blocks also the number of matrix instructions (HGMMA, HMMA, tcgen05, MFMA) and, where there
are any, of accesses to spilled registers. Where an epilogue spills, or a convolution in 16 bits has no matrix
instruction, the command fails.

| kernel | {targets} |
|---|{dashes}|
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
        yield Block(*block, dtype, training)


def block_source(block: Block) -> tuple[ASTSource, dict[str, int]]:
    """The kernel, and how it is compiled."""
    stages, dtype = STAGES[block.stages], DTYPES[block.dtype]
    x, weight = (torch.empty(size, dtype=dtype, device="meta") for size in (block.x, block.weight))
    how = ((1, 1), (block.padding,) * 2, (1, 1), block.groups)
    shape = (block.x[0], block.weight[0], *conv_output_size(x, weight, how))
    values = conv.arguments(x, weight, how, stages, shape, x.new_empty(stages.output_shape(shape)))
    options = {name: values.pop(name) for name in ("num_warps", "num_stages")}
    if not (block.training and stages.lrn):
        values["r"] = None
    if not block.training:
        values["offsets"] = None
    types: dict[str, Any] = {name: f"*{block.dtype}" for name in ("x", "weight", "bias", "y", "r")}
    types |= {"offsets": "*u8", "scratch": "*fp32"}
    types |= {name: ("i32",) * 4 for name in ("strides", "y_strides", "r_strides")}
    types |= {
        "size": ("i32",) * 7,
        "conv": ("i32",) * 6,
        "padding": ("i32",) * 2,
        "tiles": ("i32",) * 3,
        "parts": ("i32",) * 2,
    }
    kernel = conv.block_kernel
    constants = {n: values[n] for n in kernel.arg_names if n in values and n not in types} | {
        n: None for n in ("r", "offsets") if n in values
    }
    signature = {n: "constexpr" if n in constants else types[n] for n in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()})
    return source, options


MATRIX = r"\b(?:HGMMA|HMMA|UTC\w*MMA|v_mfma)\w*"


def registers(case: Case | Block, target: GPUTarget) -> str:
    """Of a thread, and for a block the numbers of matrix instructions and of accesses to spilled ones.

    Raises:
        RuntimeError: an epilogue spills, or a block has no matrix instruction in 16 bits.
    """
    source_, options = block_source(case) if isinstance(case, Block) else (source(case), {})
    code = triton.compile(source_, target=target, options=options).asm
    if target.backend == "hip":
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
    if not isinstance(case, Block):
        if spilled:
            raise RuntimeError(f"{case} spills on {target.arch}")
        return count
    matrix = len(re.findall(MATRIX, text))
    if case.dtype == "bf16" and not matrix:
        raise RuntimeError(f"{case} has no matrix instruction on {target.arch}")
    return f"{count}; {matrix}" + (f"; {spilled} spilled" if spilled else "")


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
    return text


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
