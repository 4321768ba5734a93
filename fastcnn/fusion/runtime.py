"""What a fused forward calls: blocks and epilogues that give what the original calls would have given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _calls
from ..backends import plain
from ..stages import DTYPES, LRN, Stages


def _apart_is_right(x: Tensor, stages: Stages, per_image: bool) -> bool:
    """Whether torch's functions one by one see something else than a block: LRN in (C, H, W) goes over H.

    And for types that a block has no kernels for.
    """
    return (x.dim() != 4 and stages.lrn is not None and not per_image) or x.dtype not in DTYPES


def _apart(x: Tensor, stages: Stages) -> Tensor:
    """Returns the stages by torch's functions, each as the original calls it."""

    def normalise(x: Tensor, lrn: LRN) -> Tensor:
        return F.local_response_norm(x, lrn.size, lrn.alpha, lrn.beta, lrn.k)

    return plain.after_bias(x, stages, normalise=normalise)


def epilogue(input: Tensor, stages: Stages, per_image: bool) -> Tensor:
    if _apart_is_right(input, stages, per_image):
        return _apart(input, stages)
    return _calls.epilogue(input, None, stages)


def block(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stages: Stages,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    per_image: bool = False,
) -> Tensor:
    conv = (stride, padding, dilation, groups)
    if _apart_is_right(input, stages, per_image):
        return _apart(F.conv2d(input, weight, bias, *conv), stages)
    return _calls.block(input, weight, bias, *conv, stages)


def folded(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> Sequence[Tensor]:
    """Weight and bias of a convolution with a batch norm's running statistics worked into them.

    y = (conv(x) - mean) s + beta with s = gamma / sqrt(var + eps) (Ioffe & Szegedy 2015, §3.1): each
    filter times its s. Made again at each call, so that it can't be out of date.
    """
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None  # or the forward would be another
    scale = torch.rsqrt(var.float() + norm.eps) if var.dtype != torch.float64 else torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = (-mean if bias is None else bias - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return (weight * scale.view(-1, 1, 1, 1)).to(weight.dtype), shift.to(weight.dtype)
