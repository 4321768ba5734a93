"""Receptive fields drawn on an image, beside the field that a unit makes use of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor
from torch.nn import functional as F

from . import Box, Row

_INK, _QUIET, _ACCENT = "#222222", "#8a8a8a", "#4fd1c5"
_CASING = withStroke(linewidth=4, foreground="#ffffffb0")
_SHADE = withStroke(linewidth=2.5, foreground="black")
_PITCH = 0.07  # of labels, in heights of the image


def read(path: Path, size: int) -> Tensor:
    """The middle square of a picture file, size × size: (size, size, 3), 0 to 1.

    Raises:
        OSError: it can't be read, or is no picture.
    """
    pixels = torch.tensor(imread(path))
    pixels = pixels / 255 if pixels.dtype == torch.uint8 else pixels.float()
    pixels = pixels.expand(*pixels.shape[:2], 3) if pixels.dim() == 2 else pixels[..., :3]
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    square = pixels[top : top + side, left : left + side].permute(2, 0, 1)[None]
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0)


def leaves(size: int) -> Tensor:
    """Discs over discs, small ones more often, as things lie over things in photographs: (size, size, 3).

    Lee, Mumford & Huang 2001, "Occlusion models for natural images": radii of density r**-3.
    """
    generator = torch.Generator().manual_seed(1)
    at = torch.arange(size) / size
    picture = torch.ones(size, size, 3)
    for x, y, u, *colour in torch.rand(1000, 6, generator=generator).tolist():
        radius = 0.04 / (1 - 0.98 * u) ** 0.5
        inside = (at[:, None] - y).square() + (at - x).square() < radius**2
        picture[inside] = 0.25 + 0.6 * torch.tensor(colour)
    return picture


def picture(title: str, rows: Sequence[Row], image: Tensor) -> Figure:
    """On the image, what the centre unit of each map may see; beside it, what the last of them makes use of.

    Args:
        title: the model, in words.
        rows: of :func:`fastcnn.receptive_field`, measured; linear layers are left out.
        image: (H, W, 3), 0 to 1, of the size that rows are for.
    """
    maps = [row for row in rows if row.kind != "linear"]
    figure = Figure(figsize=(13.5, 5.7))
    _boxes(figure.add_axes((0.02, 0.04, 0.345, 0.81)), maps, image)
    _effective(figure.add_axes((0.635, 0.04, 0.345, 0.81)), maps[-1])
    for x, headline, note in (
        (0.02, f"What one unit of {title} may see", "Receptive fields of the units in the middle"),
        (0.635, "What it makes use of", _note(maps[-1])),
    ):
        figure.text(x, 0.955, headline, fontsize=15, fontweight="bold", color=_INK, va="center")
        figure.text(x, 0.893, note, fontsize=10.5, color=_QUIET, va="center")
    return figure


def _boxes(axes: Axes, maps: Sequence[Row], image: Tensor) -> None:
    """The largest first, each with a line from its upper right corner to its label beside the image."""
    height, width = image.shape[:2]
    pale = 0.35 + 0.3 * image + 0.3 * image.mean(2, keepdim=True)
    axes.imshow(pale.numpy(), interpolation="nearest")
    _frame(axes)
    colours = colormaps["plasma"](torch.linspace(0.8, 0, len(maps)).tolist())
    y = 0.0
    for row, colour in reversed(list(zip(maps, colours, strict=True))):
        top, _, _, right = row.box
        y = max(top, y + _PITCH * height)
        path = [right, width, 1.05 * width, 1.08 * width], [top, top, y, y]
        axes.plot(*(torch.tensor(p) - 0.5 for p in path), color=colour, linewidth=1, clip_on=False)
        axes.add_patch(_outline(row.box, edgecolor=colour, linewidth=2, path_effects=[_CASING]))
        size = f"{row.size[0]} × {row.size[1]}"
        axes.text(1.09 * width, y - 0.5, size, fontsize=11, fontweight="bold", color=colour, va="center")
        axes.text(1.29 * width, y - 0.5, f"{row.name} {row.kind}", fontsize=8.5, color=_INK, va="center")


def _effective(axes: Axes, row: Row) -> None:
    """The gradient's square root, of which the eye sees more."""
    assert row.gradient is not None
    axes.imshow(row.gradient.sqrt().numpy(), cmap="magma", vmin=0, interpolation="nearest")
    _frame(axes)
    for box, text, linestyle in ((row.box, "may see", "--"), (_half(row), "half of the gradient", "-")):
        axes.add_patch(_outline(box, edgecolor=_ACCENT, linewidth=1.5, linestyle=linestyle))
        axes.annotate(
            text,
            (box[1] - 0.5, box[0] - 0.5),
            xytext=(5, -5),
            textcoords="offset points",
            fontsize=10,
            color=_ACCENT,
            va="top",
            path_effects=[_SHADE],
        )


def _note(row: Row) -> str:
    top, left, bottom, right = _half(row)
    outer = row.box
    share = (bottom - top) * (right - left) / ((outer[2] - outer[0]) * (outer[3] - outer[1]))
    return f"Gradient of the largest field's unit, half of it in {share:.0%} of the field"


def _half(row: Row) -> Box:
    """The smallest box around the middle of the field that holds half of its gradient."""
    assert row.gradient is not None
    top, left, bottom, right = row.box
    for trim in reversed(range(min(bottom - top, right - left) // 2)):
        box = top + trim, left + trim, bottom - trim, right - trim
        inside = row.gradient[box[0] : box[2], box[1] : box[3]]
        if inside.sum() >= row.gradient.sum() / 2:
            return box
    return row.box


def _outline(box: Box, **style: Any) -> Rectangle:
    top, left, bottom, right = box
    return Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, clip_on=False, **style)


def _frame(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[], autoscale_on=False)
    for spine in axes.spines.values():
        spine.set(color="#dddddd", linewidth=0.8)
