"""Epilogues: which kernels take them, and their memory.

Like :mod:`.pixels`, each module of kernels has ``takes``, ``forward`` and ``backward``.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ...stages import Stages, memory_format
from .._launch import Results, allocate, empty_on
from . import general, pixels, planes


def kernels(x: Tensor, stages: Stages, backward: bool = False) -> ModuleType:
    """Returns those with vectors where they take it; the others take all, a value a lane."""
    return next((module for module in (pixels, planes) if module.takes(x, stages, backward)), general)


def forward(x: Tensor, bias: Tensor | None, stages: Stages, save: bool, keep_r: bool = True) -> Results:
    format, makes_r = memory_format(x), keep_r and stages.makes_r(bias is not None)
    y, r, argmax = allocate(empty_on(x.device), x.shape, x.dtype, format, stages, save, makes_r)
    if x.numel():
        bias = bias if bias is None else bias.contiguous()
        kernels(x, stages).forward(x, bias, stages, y, r, argmax)
    return y, r, argmax


def backward(
    grad_y: Tensor,
    r: Tensor | None,
    argmax: Tensor | None,
    stages: Stages,
    size: Sequence[int],
    format: torch.memory_format,
    need_bias: bool,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    grad_x = torch.empty(size, dtype=grad_y.dtype, device=grad_y.device, memory_format=format)
    if not grad_x.numel():
        return grad_x, grad_y.new_zeros(size[1]) if need_bias else None
    argmax = argmax if argmax is None else argmax.contiguous(memory_format=format)
    bias = bias if bias is None else bias.contiguous()
    ours = kernels(grad_x, stages, backward=True)
    if ours is not general:
        # After a flatten, say, in another format: vectors need the channels side by side.
        grad_y = grad_y.contiguous(memory_format=format)
        r = r if r is None else r.contiguous(memory_format=format)
    grad_bias = ours.backward(grad_y, r, bias, argmax, stages, grad_x, need_bias)
    return grad_x, grad_bias if grad_bias is None else grad_bias.to(grad_x.dtype)
