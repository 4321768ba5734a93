"""What Triton makes of its kernels, compiled ahead of time without a GPU: docs/triton_resources.md.

python bench/triton_resources.py [--check] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from unittest import mock

import torch
import triton
from triton_launches import GPUS, Launch, code_of, issued, launches_of, meta

from fastcnn import LRN, MaxPool
from fastcnn.backends._convolution import conv_output_size
from fastcnn.backends.triton import conv, epilogue
from fastcnn.stages import Stages

TABLE = Path(__file__).resolve().parents[1] / "docs" / "triton_resources.md"
COUNTED = "sm_90"  # whose instructions the page has; --json has them of all of NVIDIA's
IMAGES = 128
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FORMATS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}
NORM, POOL = LRN(5, k=2.0), MaxPool(3, 2)
LENET = Stages(pool=MaxPool(2))
LRN_POOL, POOL_LRN = Stages(lrn=NORM, pool=POOL), Stages(lrn=NORM, pool=POOL, order="pool_lrn")
WARPS = {"sm_80": 64, "sm_90": 64, "sm_100": 64}  # of a multiprocessor, else 48
MOST_PROGRAMS = 32  # of a multiprocessor

INTRODUCTION = """\
# What Triton makes of its kernels

Compiled without a GPU by `python bench/triton_resources.py`, from the launches that the backend makes on
[{images}, 96, 55, 55], with what they specialise: alignment, constants, sizes. CI compares. Triton {version}.
A time here is a bound, not a measurement: [benchmarks.md](benchmarks.md#gpu) has those.

- **Issue**: microseconds for the instructions of all warps, loops by their trips, one a cycle on each of 528
  schedulers at 1.755 GHz, an H100's. **Roots**: what its special function units take of them by themselves.
- **Move**: microseconds to read and write once what must be, at 3.35 TB/s. A kernel whose **ratio** is above
  1 can't reach the memory's rate. Above the **most** allowed the command fails.
- **Warps** of a multiprocessor at once, by registers. If a register is spilled anywhere the command fails.
- *places* is forward for training as a block has it, which keeps each maximum's place in its window; *and r*:
  the LRN's input as well, as an epilogue by itself. *backward* lacks the last sum of the bias's gradient.
- **C++**: time to issue of the [CUDA C++ kernels](cuda_resources.md), by the path that most lanes take.

| kernel | registers | warps | instructions a value | issue | roots | move | ratio | most | C++ |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|
"""

EVERYWHERE = """
## Registers on every target

In columns: {columns}.

| target | dtype | format | {dashes} |
|---|---|---|{lines}|
"""

BLOCKS = """
## Blocks in one kernel

{images} images in channels_last. The tiles compute more than is asked for: halos, and rows, columns and depth
that fill a power of two. **At peak**: microseconds at an H100's rate of matrix products (989 TFLOPS in bf16,
half of it in tf32) or of its memory, whichever is longer; **in tiles**: with what the tiles add. Scratch of
{programs} programs is to stay in 50 MB of L2.

| block | registers | warps | issue | GFLOP | times, in tiles | at peak | in tiles | MB of scratch |
|---|--:|--:|--:|--:|--:|--:|--:|--:|
"""

MATRIX = """
Registers and matrix instructions (HGMMA, HMMA, tcgen05, MFMA, WMMA) on every target. In 16 bits there must be
some.

| target | dtype | {columns} |
|---|---|{dashes}|
"""


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
    r = {"r": y if stages.pool_first else x, "output": y, None: None}[stages.residual(True)]
    if case.phase == "backward":
        # A block keeps the convolution's output: r is made again, with the bias.
        rest = (stages, size, format, True, bias if stages.lrn_first else None)
        return lambda: epilogue.backward(y, r, places, *rest), moved(x, y, places, r)
    save, keep_r = case.phase != "inference", case.phase == "places and r"
    tensors = [x, y, places if save else None, r if keep_r else None]
    return lambda: epilogue.forward(x, bias, stages, save, keep_r), moved(*tensors)


def moved(*tensors: torch.Tensor | None) -> int:
    return sum(t.numel() * t.itemsize for t in tensors if t is not None)


def block_trips(a: dict[str, Any]) -> list[float]:
    """Of a program's tiles; in each, of what x is rearranged by, of the product, of LRN and pooling."""
    first = a["spec"].size > 0 and a["PK"] > 1 and not a["POOL_FIRST"]
    last = a["PK"] == 1 or (a["spec"].size > 0 and not first)
    depth = a["KH"] * a["KW"] * a["CIN"] * a["SQUARE"] ** 2
    lrn, pool, runs = a["parts"]
    product = triton.cdiv(depth, a["BK"])
    parts = [runs] * (a["SQUARE"] > 1) + [product] + [lrn] * first + [pool] * (a["PK"] > 1) + [pool] * last
    return [a["tiles"][0] / a["programs"], *(trips for trips in parts if trips > 1)]  # a loop of one is none


TRIPS: dict[str, Callable[[dict[str, Any]], list[float]]] = {
    "pixels_kernels.pointwise_kernel": lambda a: [a["EACH"]],
    "pixels_kernels.pool_kernel": lambda a: [],
    "pixels_kernels.lrn_pool_kernel": lambda a: [a["ROWS"]],
    "pixels_kernels.backward_kernel": lambda a: [a["EACH"]],
    "planes_kernels.relu_kernel": lambda a: [],
    "planes_kernels.forward_kernel": lambda a: [a["CHUNK"] / 4],
    "planes_kernels.lrn_pool_kernel": lambda a: [a["CHUNK"] / 4],
    "planes_kernels.backward_kernel": lambda a: [(a["CHUNK"] + a["NORM"][0] - 1) / 4],
    "conv.block_kernel": block_trips,
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
    # Blocks on one GPU alone: sm_100's matrix units are waited for in loops of no known trips.
    if not card.card or (gpu != COUNTED and launches[-1].kernel == "conv.block_kernel"):
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
    return min(programs, MOST_PROGRAMS, WARPS.get(gpu, 48) // warps) * warps


class Block(NamedTuple):
    """A convolution of IMAGES images and its stages, in one kernel; bound: of its microseconds to issue."""

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    how: tuple[Any, ...]
    stages: Stages
    bound: float
    phase: str = "inference"
    dtype: str = "bf16"

    def __str__(self) -> str:
        return "; ".join((self.name, self.phase, self.dtype))


BLOCK_CASES = (
    Block("AlexNet 1", (3, 224, 224), (96, 3, 11, 11), ((4, 4), (2, 2), (1, 1), 1), LRN_POOL, 130),
    Block("AlexNet 2", (96, 27, 27), (256, 48, 5, 5), ((1, 1), (2, 2), (1, 1), 2), LRN_POOL, 130),
    Block("CaffeNet 2", (96, 27, 27), (256, 96, 5, 5), ((1, 1), (2, 2), (1, 1), 1), POOL_LRN, math.inf),
    Block(
        "LeNet-5 2", (6, 14, 14), (16, 6, 5, 5), ((1, 1), (0, 0), (1, 1), 1), Stages(pool=MaxPool(2)), 1000
    ),
)


def run_block(block: Block) -> tuple[Callable[[], Any], int]:
    x, weight, y = block_tensors(block)
    bias = weight.new_empty(weight.shape[0])
    rest = (block.how, block.stages, block.phase != "inference", torch.channels_last)
    return lambda: conv.block_forward(x, weight, bias, *rest), moved(x, weight, y)


def block_tensors(block: Block) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input, weight and output."""
    dtype, format = DTYPES[block.dtype], torch.channels_last
    x, weight = meta((IMAGES, *block.x), dtype, format), meta(block.weight, dtype, format)
    size = (IMAGES, block.weight[0], *conv_output_size(x, weight, block.how))
    return x, weight, meta(block.stages.output_shape(size), dtype, format)


Row: TypeAlias = dict[str, Any]
Task: TypeAlias = tuple[str, Case | Block]  # a target, and what is compiled for it


# The page has every target in every dtype. --check compiles some of them again: CI's time is short.
Some: TypeAlias = Sequence[tuple[str, str, str]]  # targets, dtypes and formats; blocks are in channels_last
EVERY = tuple(product(GPUS, DTYPES, FORMATS))
CHECKED = (*((COUNTED, "bf16", format) for format in FORMATS), ("gfx942", "bf16", "channels_last"))


def tasks(some: Some) -> Iterator[Task]:
    """What is compiled: all cases on COUNTED, and elsewhere the main ones and the blocks."""
    yield from product([COUNTED], cases())
    for target, dtype, format in some:
        for case in MAIN:
            yield target, case._replace(dtype=dtype, format=format, bound=2)
        for block in BLOCK_CASES if format == "channels_last" else ():
            yield target, block._replace(dtype=dtype, bound=block.bound if dtype == "bf16" else math.inf)


def compiled(task: Task) -> Row:
    """The row of a case.

    Raises:
        RuntimeError: what may not be: a spilled register, no matrix instruction, too many instructions.
    """
    target, case = task
    call, bytes = run_block(case) if isinstance(case, Block) else run(case)
    with mock.patch.object(conv, "_programs", lambda x: PROGRAMS):
        row = {"kernel": str(case), "target": target} | resources(launches_of(target, call), target, bytes)
    if row["spills"]:
        raise RuntimeError(f"{case} spills on {target}")
    if isinstance(case, Block) and case.dtype != "fp32" and not row["matrix"]:
        raise RuntimeError(f"{case} has no matrix instruction on {target}")
    if target == COUNTED:
        most = case.bound if isinstance(case, Block) else case.bound * row["move_us"]
        if row["issue_us"] > most:
            raise RuntimeError(f"{case} takes {row['issue_us']:.1f} us to issue, more than {most:.1f}")
    return row


def cells(*values: Any) -> str:
    return f"| {' | '.join(map(str, values))} |\n"


def page(rows: dict[tuple[str, str], Row], some: Some) -> list[tuple[str, list[str]]]:
    """The tables of these targets: what stands over each, and its lines."""
    counted = [counted_line(case, rows[COUNTED, str(case)]) for case in cases()]
    everywhere, blocks, matrix = [], [], []
    for target, dtype, format in some:
        mine = (rows[target, str(c._replace(dtype=dtype, format=format))] for c in MAIN)
        everywhere.append(cells(target, dtype, format, *(row["registers"] for row in mine)))
        if format != "channels_last":
            continue
        own = [rows[target, str(block._replace(dtype=dtype))] for block in BLOCK_CASES]
        matrix.append(cells(target, dtype, *(f"{row['registers']}; {row['matrix']}" for row in own)))
        if target == COUNTED and dtype != "fp16":
            pairs = zip(BLOCK_CASES, own, strict=True)
            blocks += [block_line(block._replace(dtype=dtype), row) for block, row in pairs]
    return [
        (INTRODUCTION.format(images=IMAGES, version=triton.__version__), counted),
        (EVERYWHERE.format(
            columns="; ".join(f"{c.name}, {c.phase}" for c in MAIN),
            dashes=" | ".join(str(i + 1) for i in range(len(MAIN))),
            lines="|".join("--:" for _ in MAIN),
        ), everywhere),
        (BLOCKS.format(images=IMAGES, programs=PROGRAMS), blocks),
        (MATRIX.format(
            columns=" | ".join(block.name for block in BLOCK_CASES),
            dashes="|".join("--:" for _ in BLOCK_CASES),
        ), matrix),
    ]  # fmt: skip


def counted_line(case: Case, row: Row) -> str:
    card = GPUS[COUNTED]
    instructions = row["issue_us"] * 1e-6 * 4 * card.multiprocessors * card.hertz
    values = IMAGES * case.channels * 55 * 55 / 32  # a lane's
    times = (f"{row[name]:.1f}" for name in ("issue_us", "special_us", "move_us"))
    ratios = (f"{ratio:.2f}" for ratio in (row["issue_us"] / row["move_us"], case.bound))
    counts = row["registers"], row["warps"], f"{instructions / values:.1f}"
    return cells(case, *counts, *times, *ratios, by_cuda(case))


CUDA = {  # kernels of the cases' names and phases
    ("relu", "inference"): "`each_output` {}, Pixels, lrn: false, K: 0, for training: false",
    ("relu, lrn", "inference"): "`each_output` {}, Pixels, lrn: true, K: 0, for training: false",
    ("relu, pool 3/2", "inference"): "`each_output` {}, Pixels, lrn: false, K: 3, for training: false",
    ("relu, pool 3/2", "places"): "`each_output` {}, Pixels, lrn: false, K: 3, for training: true",
    ("relu, lrn, pool 3/2", "inference"): "`normalise_then_pool` {}, Pixels, for training: false",
    ("relu, lrn, pool 3/2", "places"): "`normalise_then_pool` {}, Pixels, for training: true",
    ("relu, lrn, pool 3/2", "backward"): "`each_square` {}, Pixels, lrn: true, K: 3, pool first: false",
}


def by_cuda(case: Case) -> str:
    """Its time to issue as docs/cuda_resources.md has it, or nothing."""
    name = CUDA.get((case.name, case.phase))
    if name is None or case.format != "channels_last":
        return ""
    kernel = name.format({"bf16": "bfloat16", "fp32": "float32"}[case.dtype])
    rows = TABLE.with_name("cuda_resources.md").read_text().split("## What an H100 needs")[1].splitlines()
    (row,) = (row for row in rows if row.startswith(f"| {kernel} |"))
    return row.split(" | ")[4]


PROGRAMS = 2 * 132  # of a block, at once
PRODUCTS = {"bf16": 989e12, "fp32": 494e12}  # a second, of an H100 SXM, fp32 as tf32


def block_line(block: Block, row: Row) -> str:
    """What a block has to compute and to move, and what the tiles make of it."""
    x, weight, y = block_tensors(block)
    size = (IMAGES, block.weight[0], *conv_output_size(x, weight, block.how))
    values = conv.arguments(x, weight, block.how, block.stages, size, y, COUNTED)
    groups, tile = block.how[3], values["BM"] * values["BN"]
    depth = values["KH"] * values["KW"] * values["CIN"] * values["SQUARE"] ** 2
    useful = 2 * IMAGES * size[1] * size[2] * size[3] * weight[0].numel()
    done = 2 * values["tiles"][0] * groups * tile * triton.cdiv(depth, values["BK"]) * values["BK"]
    memory = moved(x, weight, y) / GPUS[COUNTED].bytes
    floors = (f"{1e6 * max(flops / PRODUCTS[block.dtype], memory):.0f}" for flops in (useful, done))
    scratch = PROGRAMS // groups * groups * values["SLOT"] * x.itemsize
    counts = row["registers"], row["warps"], f"{row['issue_us']:.0f}"
    work = f"{useful / 1e9:.1f}", f"{done / useful:.2f}"
    return cells(block, *counts, *work, *floors, f"{scratch / 1e6:.1f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help=f"write nothing; 1 if {CHECKED} are others by now"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write a row for every kernel and target")
    arguments = parser.parse_args()
    compiler = f"Triton {triton.__version__}."
    another = arguments.check and compiler not in TABLE.read_text()
    some = CHECKED if arguments.check else EVERY
    wanted = list(product([COUNTED], MAIN)) if another else list(tasks(some))
    with multiprocessing.Pool() as pool:
        found = pool.map(compiled, wanted, chunksize=1)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    if another:
        print(
            f"{TABLE.name} is another Triton's: with {compiler[:-1]} the main kernels are within their bounds"
        )
        return 0
    tables = page({(row["target"], row["kernel"]): row for row in found}, some)
    if not arguments.check:
        TABLE.write_text("".join(head + "".join(lines) for head, lines in tables))
        return 0
    written = TABLE.read_text()
    others = [text for head, lines in tables for text in (head, *lines) if text not in written]
    if others:
        print("docs/triton_resources.md is out of date: run make resources. It lacks", file=sys.stderr)
        print(*others[:5], sep="", file=sys.stderr)
    return bool(others)


if __name__ == "__main__":
    sys.exit(main())
