"""Three pictures of a trained network: what it answers, what it looks for, and how it got there."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from torch import Tensor

from .train import Epoch

_INK, _QUIET, _RIGHT, _WRONG = "#222222", "#8a8a8a", "#2f6f9f", "#c8402f"
_ROWS, _CLASSES = 4, 10
_DIGITS_NOTE = (
    "Three drawn at random of each class, then the right answer it was least sure of. "
    "Under each: the answer, and its probability"
)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def digits(images: Tensor, labels: Tensor, probabilities: Tensor, seed: int = 0) -> Figure:
    """Draws three random digits of each class and its least sure right one; then the surest mistakes.

    Args:
        images: (N, 1, H, W); labels: (N,); probabilities: (N, 10), the network's.
        seed: draws the digits.
    """
    confidence, answers = probabilities.max(1)
    wrong = (answers != labels).nonzero().flatten()
    mistakes = wrong[confidence[wrong].argsort(descending=True)][:_CLASSES]
    figure = Figure(figsize=(10, 7.4))
    grid = figure.add_gridspec(
        _ROWS + 2,
        _CLASSES,
        height_ratios=[1] * _ROWS + [0.42, 1],
        left=0.02,
        right=0.98,
        top=0.87,
        bottom=0.045,
        hspace=0.42,
        wspace=0.24,
    )
    right = 1 - len(wrong) / len(labels)
    _headline(figure, f"LeNet-5 reads {right:.1%} of {len(labels):,} unseen digits right", 0.955)
    _note(figure, _DIGITS_NOTE, 0.915)
    _note(figure, _mistakes_title(len(wrong), len(mistakes)), 0.2)
    columns = [_shown(labels, answers, confidence, label, seed) for label in range(_CLASSES)]
    places = [(row, column, i) for column, shown in enumerate(columns) for row, i in shown]
    places += [(_ROWS + 1, column, i) for column, i in enumerate(mistakes.tolist())]
    for row, column, i in places:
        axes = figure.add_subplot(grid[row, column])
        _digit(axes, images[i], int(labels[i]), int(answers[i]), float(confidence[i]))
    return figure


def _shown(
    labels: Tensor, answers: Tensor, confidence: Tensor, label: int, seed: int
) -> list[tuple[int, int]]:
    """Returns (row, index) of one class's digits: random ones, and last the least sure that is right."""
    members = (labels == label).nonzero().flatten()
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed))
    drawn, rest = members[order].tensor_split([_ROWS - 1])
    right = rest[answers[rest] == label]
    hardest = right[confidence[right].argsort()][:1]
    return [*enumerate(drawn.tolist()), *((_ROWS - 1, i) for i in hardest.tolist())]


def _mistakes_title(wrong: int, shown: int) -> str:
    if not wrong:
        return "No mistakes"
    which = f"All {wrong} mistakes" if shown == wrong else f"{shown} of {wrong} mistakes"
    return f"{which}, the surest first"


def _headline(figure: Figure, text: str, y: float) -> None:
    figure.text(0.02, y, text, fontsize=15, fontweight="bold", color=_INK, va="center")


def _note(figure: Figure, text: str, y: float) -> None:
    figure.text(0.02, y, text, fontsize=10.5, color=_QUIET, va="center")


def _digit(axes: Axes, image: Tensor, label: int, answer: int, confidence: float) -> None:
    """Draws one digit; under it a bar of confidence and the answer, in red with the truth if wrong."""
    right = answer == label
    colour = _RIGHT if right else _WRONG
    axes.imshow(image.squeeze(0).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#dddddd" if right else _WRONG, linewidth=0.8 if right else 2)
    low: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 8, "va": "top"}
    axes.text(0, -0.12, str(answer), color=colour, fontweight="bold", ha="left", **low)
    axes.text(0.12, -0.12, "" if right else f"not {label}", color=colour, ha="left", **low)
    axes.text(1, -0.12, f"{confidence:.1%}", color=_QUIET, ha="right", **low)
    bar: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "linewidth": 2.2}
    axes.plot([0, 1], [-0.06, -0.06], color=to_rgba(colour, 0.18), **bar)
    axes.plot([0, confidence], [-0.06, -0.06], color=colour, **bar)


def filters(weight: Tensor, image: Tensor, maps: Tensor) -> Figure:
    """Draws the first layer's filters above what each makes of one digit.

    Args:
        weight: (C, 1, k, k); image: (1, H, W); maps: (C, h, w), the layer's output for the image.
    """
    count = len(weight)
    figure = Figure(figsize=(1.45 * (count + 1), 3.9))
    grid = figure.add_gridspec(
        2, count + 1, left=0.02, right=0.98, top=0.79, bottom=0.06, hspace=0.2, wspace=0.12
    )
    _headline(figure, "What the first layer looks for", 0.93)
    _note(
        figure,
        "Above: filters; red counts for, blue against. Below: what each finds in the digit",
        0.855,
    )
    reach, brightest = float(weight.abs().max()), float(maps.max())
    digit = _picture(figure.add_subplot(grid[1, 0]), image.squeeze(0), "gray_r", (0, 1))
    digit.set_title("input", fontsize=9, color=_QUIET)
    for i in range(count):
        top = figure.add_subplot(grid[0, i + 1])
        _picture(top, weight[i, 0], "RdBu_r", (-reach, reach))
        _picture(figure.add_subplot(grid[1, i + 1]), maps[i], "magma", (0, brightest))
    return figure


def _picture(axes: Axes, values: Tensor, cmap: str, limits: tuple[float, float]) -> Axes:
    axes.imshow(values.numpy(), cmap=cmap, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#dddddd", linewidth=0.8)
    return axes


def training(history: Sequence[Epoch]) -> Figure:
    """Draws the loss of each step and its mean by epoch, above the test accuracy after each epoch."""
    figure = Figure(figsize=(8, 5.6))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.5, 1])
    figure.subplots_adjust(left=0.1, right=0.9, top=0.86, bottom=0.1, hspace=0.14)
    figure.text(0.1, 0.93, "Training", fontsize=15, fontweight="bold", color=_INK, va="center")
    losses = [loss for epoch in history for loss in epoch.losses]
    epochs = range(1, len(history) + 1)
    per_epoch = len(losses) / len(history)
    times = [(i + 1) / per_epoch for i in range(len(losses))]
    top.plot(times, losses, color=to_rgba(_RIGHT, 0.3), linewidth=0.7)
    middles = [epoch - 0.5 for epoch in epochs]
    top.plot(middles, [epoch.loss for epoch in history], color=_RIGHT, linewidth=2)
    top.set(ylabel="loss (smoothed labels)", ylim=(0, None))
    percents = [100 * epoch.accuracy for epoch in history]
    bottom.plot(epochs, percents, color=_WRONG, linewidth=2)
    bottom.set(ylabel="test accuracy, %", xlabel="epoch", xlim=(0, len(history)))
    bottom.set_ylim(math.floor(min(percents[len(percents) // 8 :])), 100)
    _end_label(top, len(history), history[-1].loss, f"{history[-1].loss:.3f}", _RIGHT)
    _end_label(bottom, len(history), percents[-1], f"{percents[-1]:.1f} %", _WRONG)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#bbbbbb")
        axes.tick_params(colors=_QUIET, labelsize=9)
        axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.align_ylabels()
    return figure


def _end_label(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """Writes the last value beside the end of its line."""
    axes.annotate(
        text,
        (x, y),
        xytext=(7, 0),
        textcoords="offset points",
        color=colour,
        fontweight="bold",
        va="center",
        annotation_clip=False,
    )
