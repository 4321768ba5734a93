"""Whole blocks as `make gpu` times them, and what decides how a block should convolve."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any, NamedTuple
from unittest import mock

import torch
from gpu_cases import MAIN, MAX_AUTOTUNE, STAGES, TWO, Sizes, keywords
from gpu_timing import CONTIGUOUS, DEVICE, DTYPES, LAST, Row, Rows, Run, compiled, graphed, race, tensor
from torch import Tensor
from torch.nn import functional as TF

from fastcnn import functional as F
from fastcnn.backends import cuda
from fastcnn.backends._convolution import convolve, rearranged
from fastcnn.stages import Stages
from fastcnn.testing import plain_epilogue


class Block(NamedTuple):
    x: Sizes
    weight: Sizes
    stride: int
    padding: int
    groups: int
    stages: Stages

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return TF.conv2d(x, weight, bias, self.stride, self.padding, 1, self.groups)

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        conv = (self.stride, self.padding, 1, self.groups)
        return F.conv2d_block(x, weight, bias, *conv, **keywords(self.stages))

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return plain_epilogue(self.convolve(x, weight, bias), None, self.stages)

    def tensors(self, dtype: torch.dtype, format: torch.memory_format) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)  # the same values in either format
        x, weight = (tensor(*size, dtype=dtype, format=format) for size in (self.x, self.weight))
        return x, weight.div_(math.sqrt(weight[0].numel())), tensor(len(weight), dtype=dtype)


BLOCKS = {
    "conv1, relu, lrn, pool 3/2": Block((128, 3, 227, 227), (96, 3, 11, 11), 4, 0, 1, STAGES[MAIN]),
    "conv2, relu, lrn, pool 3/2": Block((128, 96, 27, 27), (256, 48, 5, 5), 1, 2, 2, STAGES[MAIN]),
    "conv 11x11/4, relu, pool 3/2": Block(
        (100, 3, 224, 224), (96, 3, 11, 11), 4, 2, 1, STAGES["relu, pool 3/2"]
    ),
}


def block_row(block: Block, dtype: torch.dtype, peers: bool) -> Row:
    nchw, last = block.tensors(dtype, CONTIGUOUS), block.tensors(dtype, LAST)
    runs: dict[str, Run] = {
        "fastcnn channels_last": partial(block.fused, *last),
        "fastcnn": partial(block.fused, *nchw),
        "eager channels_last": partial(block.plain, *last),
        "eager": partial(block.plain, *nchw),
    }
    if peers:
        name = "torch.compile max-autotune channels_last"
        runs[name] = partial(compiled(block.plain, MAX_AUTOTUNE), *last)
    return race(runs, dtype)


def searching(fn: Run) -> Run:
    """fn with cuDNN's fastest algorithm, found by trying all.

    In a thread of its own: torch keeps the algorithm of a shape for each thread, and doesn't search where
    one was chosen without.
    """
    thread = ThreadPoolExecutor(1)

    def run() -> Any:
        torch.backends.cudnn.benchmark = True
        try:
            return thread.submit(fn).result()
        finally:
            torch.backends.cudnn.benchmark = False

    return run


def convolution_row(block: Block, dtype: torch.dtype) -> Row:
    """The convolution alone, which the epilogue can't make faster."""
    nchw, last = block.tensors(dtype, CONTIGUOUS)[:2], block.tensors(dtype, LAST)[:2]
    runs: dict[str, Run] = {
        "NCHW": partial(block.convolve, *nchw),
        "channels_last": partial(block.convolve, *last),
    }
    if block.stride == 4:
        conv = ((4, 4), (block.padding,) * 2, (1, 1), 1)
        squares, weight, _ = rearranged(*last, conv)
        runs["space to depth"] = lambda: convolve(*rearranged(*last, conv))
        runs["space to depth done before"] = lambda: TF.conv2d(squares, weight)
    runs |= {f"{name}, cudnn.benchmark": searching(fn) for name, fn in runs.items()}
    return race(runs, dtype, reference="NCHW")


def chunks_row(block: Block, dtype: torch.dtype) -> Row:
    """Whether the convolution's output is read from L2 when it is made a few images at a time.

    From CUDA graphs: launching so much from Python would take longer than the work.
    """
    tensors, l2 = block.tensors(dtype, LAST), torch.cuda.get_device_properties(DEVICE).L2_cache_size
    shares = {"whole": 1 << 20} | {f"{share} of L2": share for share in (1 / 8, 1 / 4, 1 / 2, 1)}
    runs = {}
    for name, share in shares.items():
        with mock.patch.object(cuda, "_chunk_bytes", lambda _, share=share: int(share * l2)):
            runs[name] = graphed(partial(block.fused, *tensors))
    return race(runs, dtype, reference="whole")


def settings() -> Row:
    return {
        "cudnn": torch.backends.cudnn.version(),
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "float32 matmul": torch.get_float32_matmul_precision(),
    }


def blocks() -> Rows:
    yield "settings", settings
    cases = list(product(TWO, BLOCKS))
    for dtype, name in cases:
        yield f"{name} | {dtype}", partial(block_row, BLOCKS[name], DTYPES[dtype], False)
    for dtype, name in cases:
        yield f"convolution alone of {name} | {dtype}", partial(convolution_row, BLOCKS[name], DTYPES[dtype])
    for dtype, name in cases:
        yield f"by chunks of images, {name} | {dtype}", partial(chunks_row, BLOCKS[name], DTYPES[dtype])
    for dtype, name in cases:
        yield f"{name} | {dtype}", partial(block_row, BLOCKS[name], DTYPES[dtype], True)
