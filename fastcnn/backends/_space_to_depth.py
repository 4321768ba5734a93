"""A strided convolution of few channels as one without stride of many: squares of pixels become channels.

AlexNet's first layer, 11x11 with stride 4 over 3 channels, is one of 3x3 over 48: 432 products for an output
instead of 363, but of a length that matrix units take whole. Which is faster depends on the GPU and on cuDNN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..stages import memory_format
from ._fastest import fastest
from .reference import conv_output_size, convolve

_FEW = 4  # channels; with more, a convolution fills matrix units by itself


def space_to_depth(x: Tensor, side: int, padding: Sequence[int] = (0, 0)) -> Tensor:
    """(N, C, H, W) to (N, C*side**2, ., .) in x's format, with zeros around it to fill the last squares."""
    height, width = (size + 2 * p for size, p in zip(x.shape[2:], padding, strict=True))
    padded = F.pad(x, (padding[1], padding[1] + -width % side, padding[0], padding[0] + -height % side))
    n, c, h, w = padded.shape
    squares = padded.unflatten(3, (w // side, side)).unflatten(2, (h // side, side))
    if memory_format(x) == torch.channels_last:
        rows = squares.permute(0, 2, 4, 1, 3, 5).reshape(n, h // side, w // side, c * side**2)
        return rows.permute(0, 3, 1, 2)
    return squares.permute(0, 1, 3, 5, 2, 4).reshape(n, c * side**2, h // side, w // side)


def applies(x: Tensor, weight: Tensor, conv: Sequence[Any]) -> bool:
    """Whether there are few channels, and squares of stride by stride cover x with no window too many."""
    (side, other), padding, dilation, groups = conv
    if side != other or side == 1 or set(dilation) != {1} or groups != 1 or weight.shape[1] > _FEW:
        return False
    sizes = zip(x.shape[2:], padding, weight.shape[2:], strict=True)
    return conv_output_size(x, weight, conv) == [
        -(-(s + 2 * p) // side) + -k // side + 1 for s, p, k in sizes
    ]


def rearranged(x: Tensor, weight: Tensor, conv: Sequence[Any]) -> tuple[Tensor, Tensor, Sequence[Any]]:
    """Another convolution with the same result, up to rounding."""
    (side, _), padding, dilation, groups = conv
    # Not kept from call to call: a write through weight.data, or a replayed graph, would not be noticed.
    parts = space_to_depth(x, side, padding), space_to_depth(weight, side)
    return *parts, ((1, 1), (0, 0), dilation, groups)


def faster(x: Tensor, weight: Tensor, conv: Sequence[Any]) -> tuple[Tensor, Tensor, Sequence[Any]]:
    """The convolution as it is, or rearranged where that was faster; x: on a GPU."""
    if not applies(x, weight, conv):
        return x, weight, conv
    ways = [lambda: convolve(x, weight, conv), lambda: convolve(*rearranged(x, weight, conv))]
    key = ("space to depth", weight.shape, memory_format(weight), *conv[0], *conv[1], *conv[2])
    return rearranged(x, weight, conv) if fastest(key, x, ways) else (x, weight, conv)
