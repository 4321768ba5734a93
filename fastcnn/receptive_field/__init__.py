"""Receptive fields: what part of an image the units of each layer see, by arithmetic and as measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..nn import ConvBlock2d
from .follow import Layer, follow
from .reach import NOTHING, Extent, distinct, even_step

Pair: TypeAlias = tuple[int, int]  # rows, columns
Box: TypeAlias = tuple[int, int, int, int]  # top, left, bottom, right, of which the last two are outside

DRAWS = 8  # images that a measurement averages over


@dataclass(frozen=True)
class Row:
    """One layer of a model. Pairs are (rows, columns), lengths are in pixels of the image.

    The field of unit i, from 0, begins at pixel ``i * jump - padding`` and is ``size`` long. Where that is
    beyond an edge of what some layer reads, it is padding.

    Attributes:
        name: of the module that holds the layer's weight or called it, else the kind.
        kind: torch's name of the function: "conv2d", "max_pool2d", "avg_pool2d", "linear" and the like.
        output: units.
        size: of a unit's field.
        jump: from one unit's field to the next; 0 where all see the same.
        padding: how far the first unit's field lies beyond the image's top and left edge.
        box: what the centre unit sees of the image, padding left out: ``image[top:bottom, left:right]``.
        gradient: where it was measured, (image rows, image columns): the absolute gradient of the sum of the
            centre unit's channels, summed over the image's channels, the mean over random images.
    """

    name: str
    kind: str
    output: Pair
    size: Pair
    jump: Pair
    padding: Pair
    box: Box
    gradient: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def start(self) -> tuple[float, float]:
        """The centre of the first unit's field; that of the first pixel is 0."""
        rows, columns = ((s - 1) / 2 - p for s, p in zip(self.size, self.padding, strict=True))
        return rows, columns

    @property
    def centre(self) -> Pair:
        """The unit in the middle; of two, the second."""
        return self.output[0] // 2, self.output[1] // 2

    @property
    def measured_box(self) -> Box | None:
        """The smallest box with all that is not 0 of the gradient, where it was measured."""
        return None if self.gradient is None else _box_of(self.gradient)


class Table(tuple[Row, ...]):
    """A model's layers in the order of their calls; str() lays them out."""

    __slots__ = ()

    def __str__(self) -> str:
        head = ("layer", "kind", "output", "field", "jump", "start", "padding")
        lines = [head, *map(_cells, self)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(_line(line, widths) for line in lines)


def receptive_field(model: nn.Module, input_size: int | Sequence[int], *, measure: bool = False) -> Table:
    """Returns the part of an image that the units of each layer see: convolution, pooling, linear.

    A layer with kernel k, stride s, padding q and dilation d makes of a field's size r, jump j and padding p
    (of a pixel: 1, 1, 0) r + (k - 1) d j, s j and p + q j, rows and columns apart (Araujo, Norris & Sim 2019,
    "Computing receptive fields of convolutional neural networks"). Where branches meet, by addition or
    concatenation, a unit sees what any of them sees; the size is that of the box around it.

    Elementwise layers, batch norm, dropout and LRN see what their input sees. A linear layer on a flattened
    map is a convolution as large as the map. Adaptive and global poolings, and norms that take statistics
    from the image (group, instance), have no row, but what follows sees as much as they do.

    The model runs once, in evaluation, on a black image, and the operations that this comes down to are
    followed. So it may be written in any style; an ``if`` goes the way that this image takes it. Numbers that
    leave torch's tensors and come back are not followed.

    Args:
        model: takes images (1, C, H, W).
        input_size: H = W, or (H, W), where C is the first Conv2d's, or 3; or (C, H, W).
        measure: also measure the effective field (Luo, Li, Urtasun & Zemel 2016, "Understanding the effective
            receptive field in deep convolutional neural networks"): rows then have a ``gradient``.

    Returns:
        A tuple of rows that prints as a table.

    Raises:
        TypeError: model is not a module, or input_size is not ints.
        ValueError: input_size is below 1, or not one to three ints.
        RuntimeError: the model has an operation that can't be followed, such as a transposed convolution; a
            layer whose units differ in size or distance of their fields; no layer that sees the image; or, to
            measure, one without a gradient. The model's own errors, for an input that it does not take.
    """
    shape = _shape(model, input_size)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    with torch.inference_mode(False):
        image = torch.zeros(shape, dtype=like.dtype, device=like.device)
        rows = [_row(layer) for layer in follow(model, image)]
        if not rows:
            raise RuntimeError(f"receptive_field: no layer of {type(model).__name__} sees the image")
        if measure:
            gradients = _gradients(model, image, rows)
            rows = [replace(row, gradient=g) for row, g in zip(rows, gradients, strict=True)]
    return Table(rows)


def _shape(model: nn.Module, input_size: int | Sequence[int]) -> tuple[int, int, int, int]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"receptive_field: model must be a torch.nn.Module, but got {type(model).__name__}")
    sizes = list(input_size) if isinstance(input_size, Sequence) else [input_size] * 2
    if not all(isinstance(size, int) for size in sizes):
        raise TypeError(f"receptive_field: input_size must be an int or ints, but got {input_size!r}")
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise ValueError(
            "receptive_field: input_size must be H, (H, W) or (C, H, W), all at least 1, "
            f"but got {input_size!r}"
        )
    if len(sizes) == 2:
        channels = (m.in_channels for m in model.modules() if isinstance(m, (ConvBlock2d, nn.Conv2d)))
        sizes.insert(0, next(channels, 0) or 3)  # a lazy one has 0
    return 1, sizes[0], sizes[1], sizes[2]


def _row(layer: Layer) -> Row:
    """Returns a layer's row: what its units share, padding counted if they then share it, else without."""
    reach = layer.reach.map(lambda far: distinct(far, 2).flatten(0, -3).amax(0))
    height, width = reach.shape
    box = _box(reach.inside.map(lambda far: far[height // 2, width // 2]))
    for far in (reach.padded, reach.inside):
        sizes = far.up + far.down + 1, far.left + far.right + 1
        rows, columns = _jump(far.down, -2, reach.jump[0]), _jump(far.right, -1, reach.jump[1])
        if rows is not None and columns is not None and all(bool((s == s[0, 0]).all()) for s in sizes):
            size, padding = _first(*sizes), _first(far.up, far.left)
            return Row(layer.name, layer.kind, (height, width), size, (rows, columns), padding, box)
    raise RuntimeError(
        f"receptive_field: {layer.name} ({layer.kind}) has units whose fields differ in size or distance"
    )


def _box(unit: Extent) -> Box:
    if float(unit.up) == NOTHING:
        return 0, 0, 0, 0
    return int(-unit.up), int(-unit.left), int(unit.down) + 1, int(unit.right) + 1


def _jump(far: Tensor, dim: int, single: int) -> int | None:
    """Between units along one dimension, if it is always the same and there is none along the other."""
    along, across = even_step(far, dim, single), even_step(far, -3 - dim, 0)
    if along is None or across is None or bool(across.any()):
        return None
    return int(along.flatten()[0])


def _first(rows: Tensor, columns: Tensor) -> Pair:
    return int(rows[0, 0]), int(columns[0, 0])


def _gradients(model: nn.Module, image: Tensor, rows: Sequence[Row]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    totals = [torch.zeros(image.shape[-2:]) for _ in rows]
    for _ in range(DRAWS):
        drawn = torch.randn(image.shape, generator=generator).to(image).requires_grad_()
        for row, total, layer in zip(rows, totals, follow(model, drawn), strict=True):
            total += _gradient(row, layer.output, drawn) / DRAWS
    return totals


def _gradient(row: Row, output: Tensor | None, image: Tensor) -> Tensor:
    gradient = None
    if output is not None and output.requires_grad:
        unit = output if row.kind == "linear" else output[(..., *row.centre)]
        (gradient,) = torch.autograd.grad(unit.sum(), image, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise RuntimeError(f"receptive_field: {row.name} ({row.kind}) can't be measured: it has no gradient")
    return gradient.float().abs().sum((0, 1)).cpu()


def _box_of(gradient: Tensor) -> Box:
    rows, columns = (gradient.amax(dim).nonzero().flatten().tolist() for dim in (1, 0))
    return (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1) if rows else (0, 0, 0, 0)


def _cells(row: Row) -> tuple[str, ...]:
    rows, columns = row.output
    numbers = row.size, row.jump, row.start, row.padding
    return row.name, row.kind, f"{rows} × {columns}", *map(_both, numbers)


def _both(pair: tuple[float, float]) -> str:
    """Rows × columns, or the one number that both are."""
    rows, columns = pair
    return f"{rows:g}" if rows == columns else f"{rows:g} × {columns:g}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, numbers to the right."""
    padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    names = [cell.ljust(width) for cell, width in zip(cells[:2], widths, strict=False)]
    return "  ".join(names + padded[2:])
