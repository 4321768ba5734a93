"""A network as a table, and each of its rows as a fused block or as plain torch layers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import contains
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import small
from .._plain import GroupedLRN
from ..backends import cpu
from ..fusion import fuse
from ..nn import ConvBlock2d
from ..stages import LRN, MaxPool
from .towers import TwoTowers

Named = list[tuple[str, torch.nn.Module]]


@dataclass(frozen=True)
class Conv:
    """A convolution, and a ReLU; weights drawn from N(0, std), or as torch does where std is None."""

    name: str
    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    lrn: LRN | None = None
    pool: MaxPool | None = None
    order: str = "lrn_pool"
    relu: bool = True
    batch_norm: bool = False  # before the ReLU
    std: float | None = None
    bias: float = 0


@dataclass(frozen=True)
class Dense:
    """A dense layer with ReLU, or one output per class and no ReLU where features is None."""

    name: str
    features: int | None = None
    dropout: bool = False  # on what comes in
    std: float | None = None
    bias: float = 0


def no_margins(size: int) -> tuple[int, int]:
    return 0, 0


@dataclass(frozen=True)
class Table:
    """A network: its rows, and which images it takes."""

    convs: tuple[Conv, ...]
    map_size: int  # rows and columns of the last map
    denses: tuple[Dense, ...]
    published: tuple[int, ...]  # rows and columns of the images
    margins: Callable[[int], tuple[int, int]] = no_margins  # zeros before and after a size
    near: bool = False  # other sizes that give the same map are taken, too
    adaptive: bool = False  # average whatever the last map is to map_size: any size is taken that leaves one


class Sizes(NamedTuple):
    """Rows and columns of the images that a network takes."""

    taken: Callable[[int], bool]
    words: str


def sizes(table: Table) -> Sizes:
    """Computes the sizes from the rows of the table."""
    published = " or ".join(map(str, table.published))
    if not (table.near or table.adaptive):
        return Sizes(partial(contains, table.published), published)
    last_map = partial(_last_map, table)
    least = bisect_left(_POSSIBLE, 1 if table.adaptive else table.map_size, key=last_map)
    most = None if table.adaptive else bisect_right(_POSSIBLE, table.map_size, key=last_map) - 1
    span = f"from {least} to {most}" if most else f"at least {least}"
    return Sizes(partial(_between, least, most), f"{span} ({published} as published)")


_POSSIBLE = range(1024)  # far more than any table's least and most


def _last_map(table: Table, size: int) -> int:
    """Rows of the last map for so many rows of the image; below 1 where there is none."""
    size += sum(table.margins(size))
    for row in table.convs:
        size = (size + 2 * row.padding - row.kernel) // row.stride + 1
        if row.pool:
            size = row.pool.windows(size, 0)
    return size


def _between(least: int, most: int | None, size: int) -> bool:
    return size >= least and (most is None or size <= most)


def _fill(layer: ConvBlock2d | torch.nn.Conv2d | torch.nn.Linear, row: Conv | Dense) -> None:
    if row.std is not None and layer.bias is not None:
        torch.nn.init.normal_(layer.weight, std=row.std)
        torch.nn.init.constant_(layer.bias, row.bias)


def block(row: Conv, in_channels: int, fused: bool) -> Named:
    """Builds one row as a ConvBlock2d, or as plain layers whose convolution has the same name."""
    conv = (in_channels, row.channels, row.kernel, row.stride, row.padding, 1, row.groups)
    fused = fused and not row.batch_norm
    layer = (
        ConvBlock2d(*conv, relu=row.relu, lrn=row.lrn, pool=row.pool, order=row.order)
        if fused
        else torch.nn.Conv2d(*conv)
    )
    _fill(layer, row)
    if fused:
        return [(row.name, layer)]
    batch_norm: Named = [(f"{row.name}_norm", torch.nn.BatchNorm2d(row.channels))] if row.batch_norm else []
    norm: Named = [(f"{row.name}_norm", GroupedLRN(row.lrn))] if row.lrn else []
    pool: Named = [(f"{row.name}_pool", _plain_pool(row.pool))] if row.pool else []
    after = norm + pool if row.order == "lrn_pool" else pool + norm
    relu: Named = [(f"{row.name}_relu", torch.nn.ReLU(inplace=True))] if row.relu else []
    return [(row.name, layer), *batch_norm, *relu, *after]


def _plain_pool(pool: MaxPool) -> torch.nn.MaxPool2d:
    return torch.nn.MaxPool2d(
        pool.kernel_size,  # type: ignore[arg-type]
        pool.stride,  # type: ignore[arg-type]
        pool.padding,  # type: ignore[arg-type]
        pool.dilation,  # type: ignore[arg-type]
        ceil_mode=pool.ceil_mode,
    )


def dense(row: Dense, in_features: int, num_classes: int, dropout: float) -> Named:
    """Builds one row as plain layers, the same for fused and plain networks."""
    last = row.features is None
    layer = torch.nn.Linear(in_features, num_classes if row.features is None else row.features)
    _fill(layer, row)
    before: Named = [(f"{row.name}_dropout", torch.nn.Dropout(dropout))] if row.dropout else []
    after: Named = [] if last else [(f"{row.name}_relu", torch.nn.ReLU(inplace=True))]
    return [*before, (row.name, layer), *after]


class Unscriptable(torch.nn.Module):
    """Mixed into networks, of which torch.jit.script would say that it can't compile some line of ours."""

    def __prepare_scriptable__(self) -> torch.nn.Module:
        raise RuntimeError(
            f"torch.jit.script can't compile fastcnn's {type(self).__name__}: use torch.export or "
            "torch.jit.trace, or script its layers in a torch.nn.Sequential"
        )


class ConvNet(Unscriptable):
    """A table's network: ``features`` (convolutions), ``avgpool``, ``classifier`` (dense layers).

    Shape: (N, in_channels, H, W) to (N, num_classes), or without N.

    Raises:
        RuntimeError: an H or W that the table does not take; torch's own for wrong channels.
    """

    fused = False

    def __init__(
        self,
        name: str,
        table: Table,
        num_classes: int,
        dropout: float,
        in_channels: int,
        fused: bool,
    ) -> None:
        super().__init__()
        self.name, self.fused = name, fused
        features: Named = []
        for row in table.convs:
            features += block(row, in_channels, fused)
            in_channels = row.channels
        self.margins = partial(margins_of, name, table.margins, sizes(table))
        classifier: Named = []
        width = in_channels * table.map_size**2
        for line in table.denses:
            classifier += dense(line, width, num_classes, dropout)
            width = line.features or width
        container = Features if isinstance(features[0][1], ConvBlock2d) else torch.nn.Sequential
        self.features = container(OrderedDict(features))
        if fused and any(row.batch_norm for row in table.convs):
            fuse(self.features)
        self.avgpool = torch.nn.AdaptiveAvgPool2d(table.map_size) if table.adaptive else torch.nn.Identity()
        self.classifier = (Classifier if fused else torch.nn.Sequential)(OrderedDict(classifier))

    def forward(self, input: Tensor) -> Tensor:
        if self.fused:
            y = small.run(self, input, _prepare)
            if y is not None:
                return y
        if isinstance(self.features, Features):
            margins = self.margins(input)
            maps = self.features(_in_faster_format(input), margins)
        else:
            maps = self.features(self.with_margins(input))
        return self.classifier(self.avgpool(maps).flatten(-3))

    def with_margins(self, input: Tensor) -> Tensor:
        """Pads the image with the network's own zeros; raises for a size that it does not take."""
        top, left, bottom, right = self.margins(input)
        return F.pad(input, (left, right, top, bottom)) if top or left or bottom or right else input

    def split(self, first: torch.device | str, second: torch.device | str) -> TwoTowers:
        """Splits ``alexnet("2012")`` over two devices, half of each layer on either, as the paper does.

        conv3 and the dense layers see both halves, and only there activations cross: ``crossing(images)``
        of what is returned counts the bytes. It has the same outputs and gradients; state dicts load both
        ways; parameters are copies.

        Args:
            first, second: two CUDA devices; or "cpu" twice, each tower in a thread of its own.

        Raises:
            ValueError: another network.
        """
        if self.name != "alexnet('2012')" or not isinstance(self.features, Features):
            raise ValueError(f"split: only alexnet('2012'), fused, has two towers, but this is {self.name}")
        devices = torch.device(first), torch.device(second)
        towers = TwoTowers(self.with_margins, self.features, self.avgpool, self.classifier, devices)
        return towers.train(self.training)


class Features(Unscriptable, torch.nn.Sequential):
    """Blocks, the first of which adds zeros around the image: it may do so without a copy of it."""

    def forward(self, input: Tensor, margins: Sequence[int] = ()) -> Tensor:
        if not isinstance(input, Tensor):  # torch.fx's Proxy; it traces a root with a Proxy for margins, too
            return super().forward(input)
        for layer in self:
            input = layer(input, margins) if any(margins) else layer(input)
            margins = ()
        return input

    def _get_name(self) -> str:
        return "Sequential"


def _in_faster_format(input: Tensor) -> Tensor:
    """Returns images in the format that the processor is faster in; what the maps are in nobody sees."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not input.is_cpu or input.dim() != 4:
        return input
    wanted = cpu.prefers_channels_last(input.dtype)
    return input.contiguous(memory_format=torch.channels_last) if wanted else input


class Classifier(Unscriptable, torch.nn.Sequential):
    """Dense layers; of few images they are one call, which waits for nothing but their weights."""

    def forward(self, input: Tensor) -> Tensor:
        y = small.run(self, input, small.sequence)
        return super().forward(input) if y is None else y

    def _get_name(self) -> str:
        return "Sequential"


def _called(net: ConvNet) -> list[torch.nn.Module]:
    """Returns what a network calls, one after another."""
    return [net.features, net.avgpool, _FLATTEN, net.classifier]


_FLATTEN = torch.nn.Flatten()
_prepare = partial(small.chain, _called, ("margins",))
small.know(sequences=[Features, Classifier])


def margins_of(
    name: str, margins: Callable[[int], tuple[int, int]], sizes: Sizes, input: Tensor
) -> tuple[int, int, int, int]:
    """Rows and columns of zeros at the top, left, bottom and right; a size that is not taken is refused."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: input must be a Tensor, but got {type(input).__name__}")
    height, width = input.shape[-2:] if input.dim() in (3, 4) else (0, 0)
    if not (sizes.taken(height) and sizes.taken(width)):
        raise RuntimeError(
            f"{name}: input must be (N, C, H, W) or (C, H, W) with H and W {sizes.words}, "
            f"but got shape {tuple(input.shape)}"
        )
    (top, bottom), (left, right) = margins(height), margins(width)
    return top, left, bottom, right
