"""The part of the image that each element of a tensor sees, and how windows and unions widen it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

NOTHING = -torch.inf


class Window(NamedTuple):
    """A layer's window along one dimension; ``padding`` is what comes before."""

    kernel: int
    stride: int
    padding: int
    dilation: int


class Extent(NamedTuple):
    """How far each element of a tensor sees to each side, in tensors of its shape.

    Signs are such that what sees all that two others see has the larger of each.

    Attributes:
        up: the first row, negated.
        down: the last row.
        left: the first column, negated.
        right: the last column.
    """

    up: Tensor
    down: Tensor
    left: Tensor
    right: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Extent:
        return Extent(*map(change, self))


@dataclass(frozen=True, eq=False)
class Reach:
    """The part of the image that each element of a tensor sees.

    Attributes:
        padded: with padding, which is rows and columns counted on beyond the edges.
        inside: without padding; NOTHING where none of the image is seen.
        jump: rows and columns from one unit to the next, also where a map has but one.
    """

    padded: Extent
    inside: Extent
    jump: tuple[int, int]

    @property
    def shape(self) -> torch.Size:
        return self.padded.up.shape

    @property
    def empty(self) -> bool:
        """Whether no element sees the image."""
        return bool((self.padded.up == NOTHING).all())

    def map(self, change: Callable[[Tensor], Tensor]) -> Reach:
        return Reach(self.padded.map(change), self.inside.map(change), self.jump)

    def same_as(self, other: Reach) -> bool:
        """Returns whether every element sees the same as in the other tensor, of the same shape."""
        return all(map(torch.equal, (*self.padded, *self.inside), (*other.padded, *other.inside)))


def of_pixels(image: Tensor) -> Reach:
    """Returns the reach of an image (1, C, H, W): each pixel sees itself."""
    height, width = image.shape[-2:]
    rows = torch.arange(height, dtype=torch.float, device=image.device).view(-1, 1)
    columns = torch.arange(width, dtype=torch.float, device=image.device)
    extent = Extent(-rows, rows, -columns, columns).map(lambda far: far.expand(image.shape))
    return Reach(extent, extent, (1, 1))


def distinct(far: Tensor, kept: int) -> Tensor:
    """One of those that an expanded tensor repeats, along all but its last dimensions."""
    return far[tuple(slice(1 if stride == 0 else None) for stride in far.stride()[:-kept])]


def even_step(far: Tensor, dim: int, single: int) -> Tensor | None:
    """Returns the step along a dimension, ``single`` where that has size 1; None if uneven or infinite."""
    if far.shape[dim] == 1:
        return far.new_tensor(single)
    steps = far.diff(dim=dim)
    first = steps.narrow(dim, 0, 1)
    return first if bool((steps - first == 0).all()) else None  # a difference of infinities is NaN


def through(reach: Reach, windows: Sequence[Window], sizes: Sequence[int]) -> Reach:
    """Returns the reach of windows over the last dimensions, which are of these sizes afterwards."""
    shape = (*reach.shape[: -len(windows)], *sizes)
    moves = list(zip(range(-len(windows), 0), windows, sizes, strict=True))

    def padded(far: Tensor, axis: int, jump: int) -> tuple[Tensor, int]:
        """Goes on with the map's step beyond its edges; returns the jump along the axis, too."""
        far, after = distinct(far, len(windows)), jump
        for dim, window, size in moves:
            step = even_step(far, dim, jump if dim == axis else 0)
            if dim == axis:
                after = 0 if step is None else int(step.flatten()[0]) * window.stride
            far = _slid(far, dim, window, size) if step is None else _stepped(far, dim, window, size, step)
        return far.expand(shape), after

    def inside(far: Tensor) -> Tensor:
        far = distinct(far, len(windows))
        for dim, window, size in moves:
            far = _slid(far, dim, window, size)
        return far.expand(shape)

    rows, columns = reach.jump
    up, _ = padded(reach.padded.up, -2, -rows)
    down, rows = padded(reach.padded.down, -2, rows)
    left, _ = padded(reach.padded.left, -1, -columns)
    right, columns = padded(reach.padded.right, -1, columns)
    return Reach(Extent(up, down, left, right), reach.inside.map(inside), (rows, columns))


def _stepped(far: Tensor, dim: int, window: Window, size: int, step: Tensor) -> Tensor:
    """Slides a window along a dimension with an even step, which goes on in the padding."""
    at = torch.arange(size, device=far.device) * window.stride - window.padding
    at = at.view(-1, *[1] * (-dim - 1))
    return far.narrow(dim, 0, 1) + step * at + (step * (window.kernel - 1) * window.dilation).clamp(min=0)


def _slid(far: Tensor, dim: int, window: Window, size: int) -> Tensor:
    """Slides a window along a dimension; padding sees nothing."""
    extent = (window.kernel - 1) * window.dilation + 1
    after = (size - 1) * window.stride + extent - far.shape[dim] - window.padding
    far = F.pad(far, [0, 0] * (-dim - 1) + [window.padding, after], value=NOTHING)
    return far.unfold(dim, extent, window.stride)[..., :: window.dilation].amax(-1)


def union(reaches: Sequence[Reach], shape: Sequence[int]) -> Reach:
    """Returns the reach of what is computed from one element of each, broadcast to a shape."""

    def largest(*fars: Tensor) -> Tensor:
        different = {id(far): far for far in fars}.values()
        return functools.reduce(torch.maximum, different).expand(shape)

    padded = Extent(*map(largest, *(reach.padded for reach in reaches)))
    inside = Extent(*map(largest, *(reach.inside for reach in reaches)))
    return Reach(padded, inside, jump_of(reaches))


def jump_of(reaches: Sequence[Reach]) -> tuple[int, int]:
    rows, columns = zip(*(reach.jump for reach in reaches), strict=True)
    return max(rows), max(columns)
