"""Squares of an image's pixels as channels, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..stages import memory_format


def space_to_depth(x: Tensor, side: int, padding: Sequence[int] = (0, 0, 0, 0)) -> Tensor:
    """Returns what F.pixel_unshuffle gives for x with zeros around it, in x's format.

    Args:
        x: (N, C, H, W), in any strides.
        side: rows and columns of a square.
        padding: rows and columns of zeros at the top, left, bottom and right; at the bottom and right as
            many more as fill the last squares.

    Returns:
        (N, C * side**2, rows of squares, columns of squares).
    """
    from . import cuda  # which imports this module

    return (cuda.space_to_depth if cuda.copies(x, side) else by_torch)(x, side, padding)


def by_torch(x: Tensor, side: int, padding: Sequence[int]) -> Tensor:
    """Computes the same by torch's own functions, which copy x up to three times."""
    (top, left), (rows, columns) = padding[:2], squares(x, side, padding)
    bottom, right = rows * side - top - x.shape[2], columns * side - left - x.shape[3]
    padded = F.pad(x, (left, right, top, bottom))
    parts = padded.unflatten(3, (columns, side)).unflatten(2, (rows, side))  # N, C, rows, side, columns, side
    if memory_format(x) == torch.channels_last:
        return parts.permute(0, 2, 4, 1, 3, 5).flatten(3).permute(0, 3, 1, 2)
    return parts.permute(0, 1, 3, 5, 2, 4).flatten(1, 3).contiguous()


def squares(x: Tensor, side: int, padding: Sequence[int]) -> tuple[int, int]:
    """Returns the rows and columns of squares that cover x and its padding."""
    top, left, bottom, right = padding
    return -(-(x.shape[2] + top + bottom) // side), -(-(x.shape[3] + left + right) // side)


def depth_to_space(
    x: Tensor, side: int, size: Sequence[int], padding: Sequence[int] = (0, 0, 0, 0)
) -> Tensor:
    """Returns the tensor of this size, (N, C, H, W), of which x is the space to depth with this padding."""
    parts = x.unflatten(1, (size[1], side, side)).permute(0, 1, 4, 2, 5, 3)  # N, C, rows, side, columns, side
    (top, left), whole = padding[:2], parts.flatten(4).flatten(2, 3)
    return whole[:, :, top : top + size[2], left : left + size[3]]
