"""Pictures of what a trained network answers: a sheet of photographs, a matrix of mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .._files import shown
from ..data.pictures import picture
from .evaluate import Evaluation

_INK, _QUIET, _BAR = "#222222", "#8a8a8a", "#2f6f9f"
_COLUMNS = 4
_SIDE = 256  # pixels of a photograph
_TOP = 3  # answers under a photograph
_NAMED = 30  # classes that have room for their names


def sheet(title: str, pictures: Sequence[tuple[Path, list[tuple[str, float]]]]) -> Figure:
    """Draws each picture with its best answers under it, and a bar as long as each one's probability."""
    columns = min(_COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure = Figure(figsize=(2.6 * columns + 0.4, 3.6 * rows + 0.6), layout="constrained")
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold", color=_INK)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[3, 1] * rows)
    for i, (path, answers) in enumerate(pictures):
        row, column = divmod(i, columns)
        axes = figure.add_subplot(grid[2 * row, column])
        axes.imshow(picture(path, _SIDE).numpy())
        axes.set_title(_short(path.name, 28), fontsize=8, color=_QUIET)
        axes.set_axis_off()
        axes = figure.add_subplot(grid[2 * row + 1, column])
        for place, (name, share) in enumerate(answers[:_TOP]):
            axes.barh(place, share, height=0.8, color=_BAR, alpha=0.35)
            axes.text(0.02, place, f"{share:.0%}  {_short(name, 24)}", fontsize=9, color=_INK, va="center")
        axes.set(xlim=(0, 1), ylim=(_TOP - 0.4, -0.6))
        axes.set_axis_off()
    return figure


def confusion(title: str, evaluation: Evaluation, classes: Sequence[str]) -> Figure:
    """Draws the share of each class's images (row) that got each answer (column)."""
    counts = evaluation.confusion
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = 4.5 + 0.22 * min(len(classes), _NAMED)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11, fontweight="bold", color=_INK)
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the class's images", shrink=0.8)
    axes.set(xlabel="answer", ylabel="class")
    if len(classes) <= _NAMED:
        names = [_short(name, 20) for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        for i, j, count in [(i, j, int(counts[i, j])) for i, j in counts.nonzero().tolist()]:
            pale = shares[i, j] > 0.5
            axes.text(j, i, str(count), ha="center", va="center", fontsize=7, color="w" if pale else _INK)
    return figure


def _short(name: str, length: int) -> str:
    """Returns text for a figure: no control characters, and no mathematics between dollars."""
    name = shown(name).replace("$", r"\$")
    return name if len(name) <= length else name[: length - 1] + "…"
