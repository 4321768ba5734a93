"""C++ on the CPU: vectorised for the processor it runs on, on torch's own threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..stages import DTYPES, Stages, check, memory_format
from ._launch import params
from .reference import convolve


def missing_reason() -> str | None:
    return _native.missing_reason()


def unsupported_reason(x: Tensor, stages: Stages) -> str | None:
    if x.device.type != "cpu":
        return f"input is on {x.device}, not on the CPU"
    if x.dtype not in DTYPES:
        return f"input is {x.dtype}, not one of {DTYPES}"
    return missing_reason()


def epilogue_forward(
    x: Tensor, bias: Tensor | None, stages: Stages, save: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    format = memory_format(x)
    shape = stages.output_shape(x.shape)
    y = torch.empty(shape, dtype=x.dtype, memory_format=format)
    r = offsets = None
    if save and stages.residual(bias is not None) == "r":
        kept = shape if stages.pool_first else x.shape
        r = torch.empty(kept, dtype=x.dtype, memory_format=format)
    if save and stages.pool:
        offsets = torch.empty(shape, dtype=stages.pool.offset_dtype, memory_format=format)
    _forward(x, bias, stages, format, y, r, offsets)
    return y, r, offsets


def _forward(
    x: Tensor,
    bias: Tensor | None,
    stages: Stages,
    format: torch.memory_format,
    y: Tensor,
    r: Tensor | None,
    offsets: Tensor | None,
) -> None:
    if x.numel() == 0:
        return
    if bias is not None:
        bias = bias.contiguous()
    p = params(x, y, r, offsets, bias, stages, format)
    p.threads = torch.get_num_threads()
    _native.load().epilogue_forward(p)


def epilogue_backward(
    grad_y: Tensor,
    r: Tensor | None,
    offsets: Tensor | None,
    stages: Stages,
    size: Sequence[int],
    format: torch.memory_format,
    need_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    grad_x = torch.empty(size, dtype=grad_y.dtype, memory_format=format)
    grad_bias = grad_y.new_zeros(size[1]) if need_bias else None
    if grad_x.numel():
        p = params(grad_x, grad_y, r, offsets, grad_bias, stages, format)
        p.threads = torch.get_num_threads()
        _native.load().epilogue_backward(p)
    return grad_x, grad_bias


def conv_block_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: Sequence[Any], stages: Stages, save: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    a = convolve(x, weight, conv)
    check(a, bias, stages)
    y, r, offsets = epilogue_forward(a, bias, stages, save)
    return y, a if save and stages.lrn and r is None else r, offsets
