"""Fused beside plain PyTorch: how far apart they are, how long they take, what they keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor, nn

from ..bench.cases import Epilogue, Kind, plain_epilogue
from ..bench.contenders import Run, differentiating, inferring, stepping
from ..bench.race import difference
from ..bench.table import grid, with_spread
from ..measure import Timing, bytes_kept, compare
from ..models import alexnet
from ..stages import LRN, MaxPool

CAPTION = (
    "error: norm of the difference from the plain result over that of the plain result; of the outputs, "
    "or, where there is a backward, of the gradients. A training step's comes from a few of "
    "millions of values so close that rounding decides which one a pooling picks: plain float32 is "
    "as far from float64.\n"
    "ms: medians, plus or minus half the distance between the quartiles; the two take turns.\n"
    "kept: held for backward when training, each storage once, parameters left out."
)
_COLUMNS = ("error", "plain\nms", "fused\nms", "times\nfaster", "plain\nkept MB", "fused\nkept MB")


class Case(NamedTuple):
    """Two modules, and ``run(module, input)``, which returns a function that computes what to compare."""

    name: str
    plain: nn.Module
    fused: nn.Module
    input: Tensor
    run: Callable[[nn.Module, Tensor], Run]


class Row(NamedTuple):
    name: str
    error: float
    plain: Timing
    fused: Timing
    plain_kept: int
    fused_kept: int

    @property
    def cells(self) -> tuple[str, ...]:
        times = (with_spread(timing, 1e3) for timing in (self.plain, self.fused))
        kept = (f"{n / 1e6:.0f}" for n in (self.plain_kept, self.fused_kept))
        return self.name, f"{self.error:.0e}", *times, f"{self.plain.median / self.fused.median:.1f}", *kept


def epilogue_case(shape: Sequence[int]) -> Case:
    """ReLU, LRN and pooling alone, on a tensor of shape (N, C, H, W)."""
    stages = True, LRN(5, k=2), MaxPool(3, 2)
    x = torch.randn(*shape, requires_grad=True)
    return Case("ReLU, LRN, max pool", plain_epilogue(*stages), Epilogue(*stages), x, inferring)


def block_cases(plain: nn.Module, fused: nn.Module, images: Tensor) -> list[Case]:
    """One block's forward, then forward and backward, on (N, C, H, W)."""
    return [
        Case("conv1 block", plain, fused, images, inferring),
        Case("conv1 with backward", plain, fused, images, differentiating),
    ]


def network_cases(plain: nn.Module, fused: nn.Module, images: Tensor) -> list[Case]:
    """A whole network's forward, then a step of training it, on (N, C, H, W)."""
    step = partial(stepping, labels=torch.arange(len(images)))
    return [
        Case("AlexNet", plain, fused, images, inferring),
        Case("AlexNet training step", plain, fused, images, step),
    ]


def cases(batch: int = 32) -> list[Case]:
    """The demo's: from one epilogue up to a whole AlexNet-2012, without dropout."""
    plain, fused = (net.eval() for net in Kind().pair(partial(alexnet, dropout=0)))
    features: tuple[Any, Any] = plain.features, fused.features
    return [
        epilogue_case((batch, 96, 55, 55)),
        *block_cases(features[0][:4], features[1][0], torch.randn(batch, 3, 227, 227)),
        *network_cases(plain, fused, torch.randn(batch, 3, 224, 224)),
    ]


def measure(case: Case, repeats: int = 5) -> Row:
    """Errors first, while both sides still have the same weights; then bytes, then times."""
    sides = {"plain": case.plain, "fused": case.fused}
    runs = {name: case.run(module, case.input) for name, module in sides.items()}
    error = difference(runs["fused"](), runs["plain"]())
    kept = [bytes_kept(partial(m, case.input), m.parameters()) for m in sides.values()]
    times = compare(runs, repeats)
    return Row(case.name, error, times["plain"], times["fused"], *kept)


def render(rows: Sequence[Row], title: str) -> Table:
    table = grid(_COLUMNS, CAPTION, title)
    for row in rows:
        table.add_row(*row.cells)
    return table
