"""CUDA C++ on a GPU: launched on torch's current stream, in memory from torch's allocator."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..stages import DTYPES, Stages, memory_format
from ._launch import allocate, empty_on, in_chunks, on_device, params
from ._space_to_depth import faster
from .reference import conv_output_size, convolve_then


def missing_reason() -> str | None:
    reason = _native.missing_reason()
    if reason is not None:
        return reason
    if not hasattr(_native.load(), "cuda_epilogue_forward"):
        return "built without CUDA; reinstall with nvcc on the PATH"
    return None if torch.cuda.is_available() else "torch sees no GPU"


def unsupported_reason(x: Tensor, stages: Stages) -> str | None:
    reason = missing_reason()
    if reason is not None:
        return reason
    if x.device.type != "cuda":
        return f"input is on {x.device}, not on a GPU"
    if x.dtype not in DTYPES:
        return f"input is {x.dtype}, not one of {DTYPES}"
    return _no_code_reason(x.get_device())


@functools.cache
def _no_code_reason(device: int) -> str | None:
    native = _native.load()
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"fastcnn's CUDA kernels can't be loaded while a stream is captured: run the block once on "
            f"cuda:{device} before the capture"
        )
    with torch.cuda.device(device):
        if native.cuda_runs_on(device):
            return None
    major, minor = torch.cuda.get_device_capability(device)
    return (
        f"the extension has code for {native.cuda_architectures()}, not for cuda:{device}, which is "
        f"sm_{major}{minor}; reinstall on a machine with this GPU, or with CUDAARCHS={major}{minor} set"
    )


def _where(x: Tensor) -> tuple[int, int]:
    """x's device, and torch's current stream there."""
    return x.get_device(), torch.cuda.current_stream(x.device).cuda_stream


def epilogue_forward(
    x: Tensor, bias: Tensor | None, stages: Stages, save: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    keep = save and stages.residual(bias is not None, x.device.type) == "r"
    format = memory_format(x)
    outputs = allocate(empty_on(x.device), x.shape, x.dtype, format, stages, keep, save)
    _run(x, bias, stages, format, *outputs)
    return outputs


def _run(
    x: Tensor,
    bias: Tensor | None,
    stages: Stages,
    format: torch.memory_format,
    y: Tensor,
    r: Tensor | None,
    offsets: Tensor | None,
) -> None:
    """Fill y, r and offsets, which are laid out in this format; x and bias may have any strides."""
    if x.numel() == 0:
        return
    bias = bias if bias is None else bias.contiguous()
    p = params(x, y, r, offsets, bias, stages, format)
    with on_device(x):
        _native.load().cuda_epilogue_forward(p, *_where(x))


def epilogue_backward(
    grad_y: Tensor,
    r: Tensor | None,
    offsets: Tensor | None,
    stages: Stages,
    size: Sequence[int],
    format: torch.memory_format,
    need_bias: bool,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    grad_x = torch.empty(size, dtype=grad_y.dtype, device=grad_y.device, memory_format=format)
    grad_bias = grad_y.new_zeros(size[1]) if need_bias else None
    if grad_x.numel():
        # After a flatten, say, in another format: vectors need the channels side by side.
        grad_y = grad_y.contiguous(memory_format=format)
        native = _native.load()
        bias = bias if bias is None else bias.contiguous()
        p = params(grad_x, grad_y, r, offsets, grad_bias, stages, format, r_bias=bias)
        parts = size[1] * native.cuda_bias_parts(p) if need_bias else 0
        sums = grad_y.new_empty(parts, dtype=torch.float64)
        with on_device(grad_y):
            native.cuda_epilogue_backward(p, *_where(grad_y), sums.data_ptr())
    return grad_x, grad_bias


# How much of L2 a part of the convolution's output may take, so that the epilogue finds it there: half, since
# the part before is still being written back. By reasoning: bench/gpu.py times other shares.
_L2_SHARE = 0.5


@functools.cache
def _chunk_bytes(device: int) -> int:
    return int(_L2_SHARE * torch.cuda.get_device_properties(device).L2_cache_size)


def conv_block_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: Sequence[Any], stages: Stages, save: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x, weight, conv = faster(x, weight, conv)
    image = weight.shape[0] * math.prod(conv_output_size(x, weight, conv)) * x.dtype.itemsize
    images = max(1, _chunk_bytes(x.get_device()) // max(1, image))
    if images < x.shape[0] and x.dtype == weight.dtype:
        return in_chunks(empty_on(x.device), _run, x, weight, bias, conv, stages, save, images)
    return convolve_then(epilogue_forward, x, weight, bias, conv, stages, save)
