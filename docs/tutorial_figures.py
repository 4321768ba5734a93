"""The pictures of docs/tutorial.md, each a function of the page's variables that it is given by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor, nn
from torch.nn import functional

import fastcnn
from fastcnn.demo import data, pictures, train
from fastcnn.receptive_field import Row

BLUE, ORANGE, INK, QUIET, LINE = "#1f6f8b", "#e6a23c", "#222222", "#8a8a8a", "#dddddd"
WIDTH = 10  # inches, of every picture, so that their letters are of one size


def digits(lenet: nn.Module, digits: data.Split) -> Figure:
    probabilities = train.predict(lenet, digits.test_images)
    return pictures.digits(digits.test_images, digits.test_labels, probabilities)


def filters(lenet: nn.Module, digits: data.Split) -> Figure:
    first = lenet.get_submodule("features.c1")
    four = digits.test_images[digits.test_labels == 4][0]
    with torch.no_grad():
        return pictures.filters(first.get_parameter("weight"), four, first(four))


def shares(rows: Sequence[Row], weights: Sequence[int], work: Sequence[int]) -> Figure:
    figure = _figure(3.6, "Where the weights are, and where the work is")
    left, right = (figure.add_axes((x, 0.03, 0.41, 0.72)) for x in (0.08, 0.54))
    names = [row.name.rpartition(".")[2] for row in rows]
    for axes, title, counts, colour in (
        (left, "weights, millions", weights, BLUE),
        (right, "multiply-adds for one image, millions", work, ORANGE),
    ):
        millions = [count / 1e6 for count in counts]
        bars = axes.barh(names, millions, 0.7, color=colour)
        axes.bar_label(bars, [f"{m:.0f}" if m > 10 else f"{m:.2f}" for m in millions], padding=4, **_VALUE)
        axes.set_title(title, loc="left", fontsize=10.5, color=QUIET)
        axes.set(xticks=[], xlim=(0, 1.15 * max(millions)))
        axes.invert_yaxis()
        _bare(axes)
    right.set_yticklabels([])
    return figure


def column(column: Tensor, damped: Tensor) -> Figure:
    figure = _figure(3.4, "A strong channel damps its neighbours")
    axes = figure.add_axes((0.06, 0.16, 0.92, 0.62))
    before, after = column.flatten().tolist(), damped.flatten().tolist()
    axes.axvspan(4.5, 9.5, color="#f4f4f4", linewidth=0)
    for offset, values, colour, name in ((-0.2, before, BLUE, "before"), (0.2, after, ORANGE, "after")):
        places = [i + offset for i in range(len(values))]
        bars = axes.bar(places, values, 0.38, color=colour, label=name)
        axes.bar_label(bars, [f"{value:.0f}" for value in values], padding=2, **_VALUE)
    axes.text(9.4, 300, "windows that hold\nthe peak", ha="right", va="top", fontsize=9, color=QUIET)
    axes.set(xticks=range(len(before)), yticks=[], xlim=(-0.6, len(before) - 0.4), ylim=(0, 330))
    axes.set_xlabel("channel", fontsize=9, color=QUIET)
    axes.legend(frameon=False, fontsize=10.5, loc="upper right")
    _bare(axes)
    return figure


def edges(photograph: Tensor, edges: Tensor, before: Tensor, after: Tensor) -> Figure:
    figure = _figure(5.9, "Edges in three directions, before and after LRN")
    grid = figure.add_gridspec(2, 4, left=0.02, right=0.98, top=0.86, bottom=0.02, hspace=0.11, wspace=0.05)
    framed = functional.pad(edges - edges.min(), (1, 1, 1, 1), value=-float(edges.min()))
    filters = framed.view(4, 4, 9, 9).transpose(1, 2).reshape(36, 36)
    shown = {"photograph": photograph[0, 0], "filters of channels 0 to 15": filters}
    for row, (title, values) in enumerate(shown.items()):
        _image(figure.add_subplot(grid[row, 0]), values, "gray").set_title(title, **_SMALL)
    for row, (maps, name) in enumerate(((before, "before"), (after, "after"))):
        brightest = float(maps.max())
        for column, channel in enumerate((0, 2, 4), 1):
            axes = _image(figure.add_subplot(grid[row, column]), maps[0, channel], "magma", brightest)
            axes.set_title(f"channel {channel}, {name}", **_SMALL)
    return figure


def towers(net: nn.Module, crossed: Mapping[str, int]) -> Figure:
    figure = _figure(3.7, "Two GPUs, and what crosses between them for one image")
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.8))
    axes.set(xlim=(-0.75, 8.4), ylim=(-0.95, 1.1))
    axes.axis("off")
    _box(axes, (0, 0), "image", "224 × 224", QUIET)
    layers = {name: len(p) for name, p in net.named_parameters() if name.endswith("weight")}
    for x, (place, width) in enumerate(layers.items(), 1):
        name = place.split(".")[1]
        halves, unit = (0.6,) if name == "fc8" else (0.6, -0.6), "maps" if "conv" in name else "units"
        for y in halves:
            _box(axes, (x, y), name, f"{width // len(halves)} {unit}", BLUE)
            _arrow(axes, (x - 1, y if x > 1 else 0), (x, y), BLUE)
            if name in crossed:
                _arrow(axes, (x - 1, -0.75 * y), (x, 0.75 * y), ORANGE)
        if name in crossed:
            size = f"{crossed[name] / 1e3:.0f} kB"
            axes.text(x - 0.5, 0.95, size, fontsize=10.5, fontweight="bold", color=ORANGE, ha="center")
    for y, name in ((0.6, "GPU 1"), (-0.6, "GPU 2")):
        axes.text(-0.7, y, name, fontsize=10.5, color=QUIET, va="center")
    return figure


def _box(axes: Axes, middle: tuple[float, float], name: str, note: str, colour: str) -> None:
    x, y = middle
    shape = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch((x - 0.34, y - 0.23), 0.68, 0.46, shape, color=colour, linewidth=0))
    axes.text(x, y + 0.08, name, fontsize=10.5, fontweight="bold", color="white", ha="center", va="center")
    axes.text(x, y - 0.09, note, fontsize=8, color="white", ha="center", va="center")


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    path = (start[0] + 0.34, start[1]), (end[0] - 0.34, end[1])
    arrow = FancyArrowPatch(*path, arrowstyle="-|>", mutation_scale=10, shrinkA=0, shrinkB=0, linewidth=1.4)
    arrow.set_color(colour)
    axes.add_patch(arrow)


def fields(large: nn.Module, stack: nn.Module) -> Figure:
    figure = _figure(3.9, "Both may see 11 × 11; five layers make use of the middle")
    profile = figure.add_axes((0.67, 0.14, 0.31, 0.64))
    for x, model, colour, name in ((0.02, large, BLUE, "one 11 × 11"), (0.335, stack, ORANGE, "five 3 × 3")):
        percent = _gradient(fastcnn.receptive_field(model, 33, measure=True)[-1])
        axes = _image(figure.add_axes((x, 0.04, 0.29, 0.74)), percent, "magma", 2.5)
        axes.set_title(f"{name}: gradient", **_SMALL)
        profile.plot(range(-5, 6), percent.sum(0), color=colour, linewidth=2, label=name)
    profile.set(ylim=(0, None), xlim=(-5, 5), xticks=range(-5, 6, 5))
    profile.set_title("% of the gradient in each column", **_SMALL)
    profile.set_xlabel("pixels from the middle", fontsize=9, color=QUIET)
    profile.spines[["top", "right"]].set_visible(False)
    profile.spines[["left", "bottom"]].set_color("#bbbbbb")
    profile.tick_params(labelsize=9, colors=QUIET)
    profile.legend(frameon=False, fontsize=9, loc="lower center")
    return figure


def _gradient(row: Row) -> Tensor:
    """Returns each pixel's share of the gradient in the field, in %."""
    assert row.gradient is not None
    top, left, bottom, right = row.box
    gradient = row.gradient[top:bottom, left:right]
    return 100 * gradient / gradient.sum()


def alexnet_fields(net: nn.Module, photograph: Tensor) -> Figure:
    rows = fastcnn.receptive_field(net.get_submodule("features"), 227, measure=True)
    rows = [row for row in rows if row.kind == "conv2d"]
    figure = _figure(4.95, "What a unit may see, and what it makes use of")
    seen, used = (figure.add_axes((x, 0.02, 0.4, 0.808)) for x in (0.02, 0.58))
    image = functional.interpolate(photograph, (227, 227), mode="bilinear")[0, 0]
    _image(seen, 100 + 0.6 * image, "gray", 255).set_title("fields of the units in the middle", **_SMALL)
    assert rows[-1].gradient is not None
    _image(used, functional.avg_pool2d(rows[-1].gradient[None], 4)[0], "magma")
    used.set_title("gradient of conv5's unit, in squares of 4 × 4 pixels", **_SMALL)
    for i, row in enumerate(rows):
        colour = _between(ORANGE, BLUE, i / (len(rows) - 1))
        _outline(seen, row.box, colour)
        size, y = f"{row.size[0]} × {row.size[1]}", 0.18 + 0.12 * i
        figure.text(0.435, y, size, fontsize=10.5, fontweight="bold", color=colour)
        figure.text(0.53, y, row.name, fontsize=9, color=QUIET)
    return figure


def _outline(axes: Axes, box: Sequence[int], colour: tuple[float, ...]) -> None:
    top, left, bottom, right = box
    corner = left - 0.5, top - 0.5
    axes.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, color=colour, linewidth=2.2))


def _between(first: str, last: str, share: float) -> tuple[float, ...]:
    """A colour so far from the first to the last."""
    return tuple((1 - share) * a + share * b for a, b in zip(to_rgb(first), to_rgb(last), strict=True))


_VALUE = {"fontsize": 9, "color": INK}
_SMALL = {"fontsize": 9, "color": QUIET, "loc": "left", "pad": 3}


def _figure(height: float, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height))
    figure.text(0.02, 1 - 0.3 / height, title, fontsize=15, fontweight="bold", color=INK, va="center")
    return figure


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(LINE)
    axes.tick_params(length=0, labelsize=9, colors=INK)


def _image(axes: Axes, values: Tensor, cmap: str, brightest: float | None = None) -> Axes:
    axes.imshow(values.numpy(), cmap=cmap, vmin=0, vmax=brightest, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=LINE, linewidth=0.8)
    return axes
