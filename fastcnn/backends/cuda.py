"""CUDA C++ on a GPU: launched on torch's current stream, in memory from torch's allocator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..stages import DTYPES, Stages, memory_format
from ._launch import allocate, params
from .reference import convolve_then


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
    return None if x.dtype in DTYPES else f"input is {x.dtype}, not one of {DTYPES}"


def _where(x: Tensor) -> tuple[int, int]:
    """x's device, and torch's current stream there."""
    return x.get_device(), torch.cuda.current_stream(x.device).cuda_stream


def epilogue_forward(
    x: Tensor, bias: Tensor | None, stages: Stages, save: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    def empty(shape: Sequence[int], dtype: torch.dtype, format: torch.memory_format) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device, memory_format=format)

    keep = save and stages.residual(bias is not None) == "r"
    format = memory_format(x)
    y, r, offsets = allocate(empty, x.shape, x.dtype, format, stages, keep, save)
    if x.numel():
        bias = bias if bias is None else bias.contiguous()
        p = params(x, y, r, offsets, bias, stages, format)
        _native.load().cuda_epilogue_forward(p, *_where(x))
    return y, r, offsets


def epilogue_backward(
    grad_y: Tensor,
    r: Tensor | None,
    offsets: Tensor | None,
    stages: Stages,
    size: Sequence[int],
    format: torch.memory_format,
    need_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    grad_x = torch.empty(size, dtype=grad_y.dtype, device=grad_y.device, memory_format=format)
    grad_bias = grad_y.new_zeros(size[1]) if need_bias else None
    if grad_x.numel():
        native = _native.load()
        p = params(grad_x, grad_y, r, offsets, grad_bias, stages, format)
        parts = size[1] * native.cuda_bias_parts(p) if need_bias else 0
        sums = grad_y.new_empty(parts, dtype=torch.float64)
        native.cuda_epilogue_backward(p, *_where(grad_y), sums.data_ptr())
    return grad_x, grad_bias


def conv_block_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: Sequence[Any], stages: Stages, save: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return convolve_then(epilogue_forward, x, weight, bias, conv, stages, save)
