"""Fused beside plain PyTorch: how far apart they are, how long they take, what they keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from rich import box
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from .. import functional
from ..measure import Timing, bytes_kept, compare
from ..models import alexnet
from ..nn import ConvBlock2d
from ..stages import LRN, MaxPool

CAPTION = (
    "error: largest difference from the plain result over the largest plain value; of the outputs, "
    "or, where there is a backward, of all gradients. A training step's comes from a few of "
    "millions of values so close that rounding decides which one a pooling picks: plain float32 is "
    "as far from float64.\n"
    "ms: medians, plus or minus half the distance between the quartiles; the two take turns.\n"
    "kept: held for backward when training, each storage once, parameters left out."
)


class Case(NamedTuple):
    """Two modules, and ``compute(module, input)`` that gives the tensors to compare."""

    name: str
    plain: torch.nn.Module
    fused: torch.nn.Module
    input: Tensor
    compute: Callable[[torch.nn.Module, Tensor], Sequence[Tensor]]


class Row(NamedTuple):
    name: str
    error: float
    plain: Timing
    fused: Timing
    plain_kept: int
    fused_kept: int


class Epilogue(torch.nn.Module):
    """:func:`fastcnn.functional.epilogue` as a module."""

    def __init__(self, lrn: LRN, pool: MaxPool) -> None:
        super().__init__()
        self.lrn, self.pool = lrn, pool

    def forward(self, input: Tensor) -> Tensor:
        return functional.epilogue(input, lrn=self.lrn, pool=self.pool)


@torch.no_grad()
def forward(module: torch.nn.Module, input: Tensor) -> list[Tensor]:
    return [module.eval()(input)]


def forward_backward(grad: Tensor) -> Callable[[torch.nn.Module, Tensor], list[Tensor]]:
    """The gradients that ``grad`` of the output gives the parameters."""

    def compute(module: torch.nn.Module, input: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(module(input), list(module.parameters()), grad))

    return compute


def training_step(labels: Tensor) -> Callable[[torch.nn.Module, Tensor], list[Tensor]]:
    """The parameters' gradients of one SGD step, the step included."""

    def compute(module: torch.nn.Module, input: Tensor) -> list[Tensor]:
        torch.manual_seed(0)  # drops the same values on either side
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
        optimizer.zero_grad()
        loss = F.cross_entropy(module.train()(input), labels)
        loss.backward()
        optimizer.step()
        return [p.grad for p in module.parameters() if p.grad is not None]

    return compute


def epilogue_case(shape: Sequence[int]) -> Case:
    """ReLU, LRN and pooling alone, on a tensor of shape (N, C, H, W)."""
    fused = Epilogue(LRN(5, k=2), MaxPool(3, 2))
    plain = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.LocalResponseNorm(5, k=2), torch.nn.MaxPool2d(3, 2))
    x = torch.randn(*shape, requires_grad=True)
    return Case("ReLU, LRN, max pool", plain, fused, x, forward)


def block_cases(plain: torch.nn.Module, fused: torch.nn.Module, images: Tensor) -> list[Case]:
    """One block's forward, then forward and backward, on (N, C, H, W)."""
    (output,) = forward(plain, images)
    backward = forward_backward(torch.randn_like(output))
    return [
        Case("conv1 block", plain, fused, images, forward),
        Case("conv1 with backward", plain, fused, images, backward),
    ]


def network_cases(plain: torch.nn.Module, fused: torch.nn.Module, images: Tensor) -> list[Case]:
    """A whole network's forward, then a step of training it, on (N, C, H, W)."""
    labels = torch.arange(len(images))
    return [
        Case("AlexNet", plain, fused, images, forward),
        Case("AlexNet training step", plain, fused, images, training_step(labels)),
    ]


def cases(batch: int = 32) -> list[Case]:
    """The demo's: from one epilogue up to a whole AlexNet-2012.

    Weights are torch's usual ones. With the paper's, values lie so close together that pooling
    decides by the rounding, and float32 gradients, plain or fused, are far off float64's.
    """
    torch.manual_seed(0)
    plain, fused = alexnet(fused=False), alexnet()
    for layer in (*fused.features, *fused.classifier):
        if isinstance(layer, (ConvBlock2d, torch.nn.Linear)):
            layer.reset_parameters()
    plain.load_state_dict(fused.state_dict())
    first = plain.features[:4]
    assert isinstance(first, torch.nn.Sequential)
    return [
        epilogue_case((batch, 96, 55, 55)),
        *block_cases(first, fused.features[0], torch.randn(batch, 3, 227, 227)),
        *network_cases(plain, fused, torch.randn(batch, 3, 224, 224)),
    ]


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """max |actual - expected| / max |expected|, each over all of the tensors."""
    differences = (a - e for a, e in zip(actual, expected, strict=True))
    return _largest(differences) / _largest(expected)


def _largest(tensors: Iterable[Tensor]) -> float:
    return max(tensor.abs().max().item() for tensor in tensors)


def measure(case: Case, repeats: int = 5) -> Row:
    """Errors first, while both sides still have the same weights; then bytes, then times."""
    _, plain, fused, x, compute = case
    error = relative_error(compute(fused, x), compute(plain, x))
    kept = [bytes_kept(lambda m=m: m(x), m.parameters()) for m in (plain, fused)]  # type: ignore[misc]
    times = compare({"plain": lambda: compute(plain, x), "fused": lambda: compute(fused, x)}, repeats)
    return Row(case.name, error, times["plain"], times["fused"], *kept)


def render(rows: Sequence[Row], title: str) -> Table:
    table = Table(
        title=title,
        caption=CAPTION,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for name in (
        "error",
        "plain\nms",
        "fused\nms",
        "times\nfaster",
        "plain\nkept MB",
        "fused\nkept MB",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> Iterator[str]:
    yield row.name
    yield f"{row.error:.0e}"
    yield _milliseconds(row.plain)
    yield _milliseconds(row.fused)
    yield f"{row.plain.median / row.fused.median:.1f}"
    yield f"{row.plain_kept / 1e6:.0f}"
    yield f"{row.fused_kept / 1e6:.0f}"


def _milliseconds(timing: Timing) -> str:
    median, spread = 1e3 * timing.median, 1e3 * (timing.high - timing.low) / 2
    digits = 0 if median >= 100 else 1
    return f"{median:.{digits}f} ± {spread:.{digits}f}"
