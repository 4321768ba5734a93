"""The ops as ONNX's own: Conv, Relu, LRN and MaxPool, for torch.onnx.export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends._convolution import padded
from .stages import LRN, MaxPool, Stages, check


def epilogue(x: Tensor, bias: Tensor | None, stages: Stages) -> Tensor:
    """The stages on x (N, C, H, W)."""
    check(x, bias, stages)
    return _stages(x if bias is None else x + bias.view(-1, 1, 1), stages)


def conv2d_block(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: Sequence[Any], stages: Stages
) -> Tensor:
    """The stages on the convolution of x (N, C, H, W); conv: stride, padding, dilation, groups."""
    x, conv, _ = padded(x, conv)
    a = F.conv2d(x, weight, bias, *conv)
    check(a, None, stages)
    return _stages(a, stages)


def _stages(v: Tensor, stages: Stages) -> Tensor:
    if stages.relu:
        v = v.relu()
    if stages.pool and stages.pool_first:
        v = _pooled(v, stages.pool)
    if stages.lrn:
        v = _normalised(v, stages.lrn)
    if stages.pool and not stages.pool_first:
        v = _pooled(v, stages.pool)
    return v


def _pooled(x: Tensor, pool: MaxPool) -> Tensor:
    return F.max_pool2d(x, *pool.pairs, ceil_mode=pool.ceil_mode)  # type: ignore[call-overload]


def _normalised(x: Tensor, lrn: LRN) -> Tensor:
    """By ONNX's LRN, an even window by its formula: ONNX's would reach one further forward, not back."""
    wide = x if x.dtype == torch.float64 else x.float()
    towers = wide.unflatten(1, (lrn.groups, x.shape[1] // lrn.groups)).flatten(0, 1)
    if lrn.size % 2:
        floats = {"alpha": float(lrn.alpha), "beta": float(lrn.beta), "bias": float(lrn.k)}
        attributes: dict[str, Any] = {"size": lrn.size, **floats}
        y = torch.onnx.ops.symbolic(
            "LRN", (towers,), attributes, dtype=towers.dtype, shape=towers.shape, version=13
        )
    else:
        squares = F.pad(towers * towers, (0, 0, 0, 0, lrn.before, lrn.after))
        windows = (squares[:, i : i + towers.shape[1]] for i in range(lrn.size))
        y = towers / (lrn.k + lrn.alpha / lrn.size * sum(windows)) ** lrn.beta
    return y.view(x.shape).to(x.dtype)
