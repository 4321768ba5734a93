"""LeNet-5 as published: LeCun, Bottou, Bengio & Haffner 1998, §II.B and appendix A."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._blocks import Unscriptable

# Which maps of S2 each map of C3 sees: table I.
C3 = (
    *("012", "123", "234", "345", "045", "015"),
    *("0123", "1234", "2345", "0345", "0145", "0125", "0134", "1245", "0235"),
    "012345",
)

# What F6 should look like for each digit, 7 x 12 with a row above and one below, drawn after figure 3.
DIGITS = """
    ..###.. ...#... .#####. ####### .....#.
    .#...#. ..##... #.....# ......# ....##.
    #.....# .#.#... ......# .....#. ...#.#.
    #.....# ...#... .....#. ....#.. ..#..#.
    #.....# ...#... ....#.. ..####. .#...#.
    #.....# ...#... ...#... ......# #....#.
    #.....# ...#... ..#.... ......# #######
    #.....# ...#... .#..... ......# .....#.
    .#...#. ...#... #...... #.....# .....#.
    ..###.. .#####. ####### .#####. .....#.

    ####### ...###. ####### ..###.. ..###..
    #...... ..#.... ......# .#...#. .#...#.
    #...... .#..... ......# #.....# #.....#
    #.###.. #...... .....#. .#...#. #.....#
    ##...#. #.###.. .....#. ..###.. .#...##
    ......# ##...#. ....#.. .#...#. ..###.#
    ......# #.....# ....#.. #.....# ......#
    #.....# #.....# ...#... #.....# .....#.
    .#...#. .#...#. ...#... .#...#. ....#..
    ..###.. ..###.. ...#... ..###.. .###...
"""


def bitmaps() -> Tensor:
    """Returns the digits (10, 84), each 12 rows of 7: 1 in the figure, -1 around it."""
    rows = [line.split() for line in DIGITS.strip().splitlines()]
    halves = rows[:10], rows[11:]
    digits = ["." * 7 + "".join(row[i] for row in half) + "." * 7 for half in halves for i in range(5)]
    return torch.tensor([[1.0 if c == "#" else -1.0 for c in digit] for digit in digits])


class Squash(nn.Module):
    """f(a) = 1.7159 tanh(2a/3), so that f(1) = 1 and f(-1) = -1. Any shape to the same."""

    def forward(self, input: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(input * (2 / 3))


class Subsample(nn.Module):
    """The sum of each 2x2 square, times a trainable coefficient of its map, plus a bias.

    Shape: (N, channels, H, W) to (N, channels, H/2, W/2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        bound = 2.4 / 4
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        sums = F.avg_pool2d(input, 2, divisor_override=1)
        return sums * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)

    def extra_repr(self) -> str:
        return str(len(self.weight))


class PartialConv2d(nn.Module):
    """A convolution whose maps see some of the input's maps each.

    Shape: (N, in_channels, H, W) to (N, len(table), H-4, W-4). Only the links in the table have weights.
    """

    links: Tensor

    def __init__(self, in_channels: int, table: tuple[str, ...]) -> None:
        super().__init__()
        places = [out * in_channels + int(i) for out, seen in enumerate(table) for i in seen]
        self.register_buffer("links", torch.tensor(places), persistent=False)
        self.shape = (len(table), in_channels, 5, 5)
        self.weight = nn.Parameter(torch.empty(len(places), 5, 5))
        self.bias = nn.Parameter(torch.zeros(len(table)))
        fan_in = torch.tensor([25.0 * len(seen) + 1 for seen in table for _ in seen])
        with torch.no_grad():
            self.weight.uniform_(-2.4, 2.4).div_(fan_in.view(-1, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        maps, channels, *kernel = self.shape
        empty = self.weight.new_zeros(maps * channels, *kernel)
        return F.conv2d(input, empty.index_copy(0, self.links, self.weight).view(self.shape), self.bias)

    def extra_repr(self) -> str:
        return f"{self.shape[1]}, {self.shape[0]}, kernel_size=(5, 5), links={len(self.links)}"


class RBF(nn.Module):
    """-y for the paper's y[i] = sum over j of (x[j] - w[i, j])^2: the nearest bitmap has the highest score.

    Shape: (N, 84) to (N, 10).
    """

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", bitmaps(), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return -(input.unsqueeze(-2) - self.weight).square().sum(-1)


class LeNet1998(Unscriptable):
    """See :func:`fastcnn.models.lenet5`. Shape: (N, 1, 28 or 32, 28 or 32) to (N, 10)."""

    name = "lenet5('1998')"

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.s2 = nn.Conv2d(1, 6, 5), Subsample(6)
        self.c3, self.s4 = PartialConv2d(6, C3), Subsample(16)
        self.c5, self.f6 = nn.Conv2d(16, 120, 5), nn.Linear(120, 84)
        self.squash, self.output = Squash(), RBF()
        for layer in (self.c1, self.c5, self.f6):
            bound = 2.4 / (layer.weight[0].numel() + 1)  # appendix A: by the number of inputs
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.constant_(cast(Tensor, layer.bias), 0)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() not in (3, 4) or tuple(input.shape[-2:]) not in ((28, 28), (32, 32)):
            raise RuntimeError(
                f"{self.name}: input must be (N, C, H, W) or (C, H, W) with H and W 28 or 32, "
                f"but got shape {tuple(input.shape)}"
            )
        margin = (32 - input.shape[-1]) // 2
        # Mean about 0 and variance about 1: background -0.1, foreground 1.175 (§II.B).
        x = F.pad(input, [margin] * 4) * 1.275 - 0.1
        for layer in (self.c1, self.s2, self.c3, self.s4, self.c5):
            x = self.squash(layer(x))
        return self.output(self.squash(self.f6(x.flatten(-3))))


def map_loss(scores: Tensor, labels: Tensor, j: float = 0.1) -> Tensor:
    """Computes the paper's loss (eq. 9): mean of y[D] + log(exp(-j) + sum over i of exp(-y[i])), y = -scores.

    A rubbish class of penalty j is in the sum, beyond which wrong classes need not be pushed.

    Args:
        scores: (N, 10), of ``lenet5("1998")``.
        labels: (N,), the right class D of each.
        j: positive; the paper gives no value.

    Returns:
        A scalar.
    """
    rubbish = scores.new_full((len(scores), 1), -j)
    return F.cross_entropy(torch.cat([scores, rubbish], 1), labels)
