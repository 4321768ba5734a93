"""The machine, its rates and the epilogues as `make gpu` times them: rows by name, and who measures each."""

from __future__ import annotations

import contextlib
import math
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from typing import Any
from unittest import mock

import torch
import torch._functorch.config
import triton
from gpu_timing import (
    CONTIGUOUS,
    DTYPES,
    LAST,
    Row,
    Rows,
    Run,
    compiled,
    copy_rate,
    matmul_rate,
    race,
    tensor,
)
from torch import Tensor

import fastcnn
from fastcnn import LRN, MaxPool, _native
from fastcnn import functional as F
from fastcnn.backends import _launch, cuda
from fastcnn.stages import Stages
from fastcnn.testing import plain_epilogue

Sizes = tuple[int, int, int, int]

FORMATS = {"NCHW": CONTIGUOUS, "channels_last": LAST}
TWO = ("bfloat16", "float32")
MAX_AUTOTUNE = "max-autotune-no-cudagraphs"


def driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(query, capture_output=True, text=True).stdout.strip() or None
    return None


def machine() -> Row:
    """The GPU, and the versions of all that runs on it."""
    if not torch.cuda.is_available():
        sys.exit("bench/gpu.py needs an NVIDIA GPU, and torch sees none")
    gpu = torch.cuda.get_device_properties(0)
    return {
        "device": gpu.name,
        "driver": driver(),
        "compute capability": f"{gpu.major}.{gpu.minor}",
        "SMs": gpu.multi_processor_count,
        "L2 bytes": gpu.L2_cache_size,
        "memory bytes": gpu.total_memory,
        "TF32": {
            "matmul": torch.get_float32_matmul_precision() != "highest",
            "convolution": torch.backends.cudnn.allow_tf32,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
            "fastcnn": fastcnn.__version__,
        },
        "extension": _native.missing_reason() or _native.load().build_info(),
    }


def matmul_row(dtype: torch.dtype, precision: str = "highest") -> Row:
    return {"TFLOP/s": matmul_rate(dtype, precision) / 1e12}


def rates() -> Rows:
    yield "copy", lambda: {"GB/s": copy_rate() / 1e9}
    for name, dtype in DTYPES.items():
        yield f"matmul | {name}", partial(matmul_row, dtype)
    yield "matmul | tf32", partial(matmul_row, torch.float32, "high")


SHAPES: tuple[Sizes, Sizes] = ((128, 96, 55, 55), (128, 256, 27, 27))
NORM, POOL = LRN(5, k=2.0), MaxPool(3, 2)
MAIN = "relu, lrn, pool 3/2"
STAGES = {
    MAIN: Stages(lrn=NORM, pool=POOL),
    "relu, pool 3/2, lrn": Stages(lrn=NORM, pool=POOL, order="pool_lrn"),
    "relu, lrn": Stages(lrn=NORM),
    "relu, pool 3/2": Stages(pool=POOL),
    "relu, pool 2/2": Stages(pool=MaxPool(2)),
    "relu": Stages(),
}


def keywords(stages: Stages) -> dict[str, Any]:
    return {"relu": stages.relu, "lrn": stages.lrn, "pool": stages.pool, "order": stages.order}


def general(fn: Run) -> Run:
    """fn by the cuda backend's general kernels, never the specialised ones."""

    def params(*args: Any) -> Any:
        p = _launch.params(*args)
        p.variant = 0
        return p

    def run() -> Any:
        with mock.patch.object(cuda, "params", params):
            return fn()

    return run


def forward(fn: Callable[..., Tensor], x: Tensor, bias: Tensor, grad: Tensor) -> Run:
    return partial(fn, x, bias)


def backward(fn: Callable[..., Tensor], x: Tensor, bias: Tensor, grad: Tensor) -> Run:
    """Backward alone, again and again, of a forward that runs when first needed."""
    y = cache(partial(fn, x, bias))
    return lambda: torch.autograd.grad(y(), (x, bias), grad, retain_graph=True)


PHASES = {"inference": forward, "forward for training": forward, "backward": backward}


def bytes_moved(stages: Stages, shape: Sizes, itemsize: int) -> dict[str, int]:
    """The least that each phase must read and write, the bias left out."""
    windows = math.prod(stages.output_shape(shape))
    x, y = math.prod(shape) * itemsize, windows * itemsize
    offsets = windows if stages.pool else 0
    keeps = stages.residual(True, "cuda")
    kept = y if keeps == "output" or stages.pool_first else x
    saved = kept if keeps == "r" else 0  # the output is written anyway
    return {
        "inference": x + y,
        "forward for training": x + y + saved + offsets,
        "backward": y + offsets + kept + x,
    }


def epilogue_row(
    shape: Sizes, stages: Stages, dtype: torch.dtype, format: torch.memory_format, phase: str, peers: bool
) -> Row:
    x, bias = tensor(*shape, dtype=dtype, format=format), tensor(shape[1], dtype=dtype)
    grad = tensor(*stages.output_shape(shape), dtype=dtype, format=format).abs()  # sums must not cancel
    for leaf in (x, bias):
        leaf.requires_grad_(phase != "inference")

    def plain(x: Tensor, bias: Tensor) -> Tensor:
        return plain_epilogue(x, bias, stages)

    fns: dict[str, Callable[..., Tensor]] = {
        "fastcnn": partial(F.epilogue, **keywords(stages)),
        "eager": plain,
    }
    if peers:
        fns["torch.compile"] = compiled(plain)
        fns["torch.compile max-autotune"] = compiled(plain, MAX_AUTOTUNE)
    runs = {name: PHASES[phase](fn, x, bias, grad) for name, fn in fns.items()}
    runs["fastcnn general"] = general(PHASES[phase](fns["fastcnn"], x, bias, grad))
    row, moved = race(runs, dtype), bytes_moved(stages, shape, dtype.itemsize)[phase]
    if "fastcnn" in row["ms"]:
        rate = 1e3 * moved / row["ms"]["fastcnn"]["median"]
        row |= {"bytes": moved, "GB/s": rate / 1e9, "share of copy": rate / copy_rate()}
    return row


def epilogues() -> Rows:
    """Compilers' rows come last, in place of the same rows without them."""
    torch._functorch.config.donated_buffer = False  # it refuses a second backward, and timing needs many
    others = [name for name in STAGES if name != MAIN]
    large, small = SHAPES
    cases = [
        *product([large], [MAIN], DTYPES, FORMATS),
        *product([large], others, ["bfloat16"], FORMATS),
        *product([large], others, ["float32"], ["NCHW"]),
        *product([small], [MAIN], DTYPES, FORMATS),
    ]
    for peers, chosen in ((False, cases), (True, product([large], [MAIN], TWO, FORMATS))):
        for (shape, stages, dtype, format), phase in product(chosen, PHASES):
            yield (
                f"{list(shape)} | {dtype} | {format} | {stages} | {phase}",
                partial(epilogue_row, shape, STAGES[stages], DTYPES[dtype], FORMATS[format], phase, peers),
            )
