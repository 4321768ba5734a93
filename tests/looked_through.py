"""A model with blocks, and what `fuse` makes of it."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

import fastcnn
from fastcnn.fusion.fused import Fused, fusion_of

IMAGES = torch.randn(2, 3, 12, 12)


class Block(nn.Module):
    """Not a line: its input is read twice."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.norm.running_mean.uniform_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return x + F.relu(self.norm(self.conv(x)))


class Opaque(Block):
    """Counts calls, which no graph records."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Net(nn.Module):
    def __init__(self, make=Block):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.body = nn.Sequential(Block(), make(), Block())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def fused(make=Block):
    plain = Net(make).eval()
    return fastcnn.fuse(copy.deepcopy(plain), fold_bn=True), plain


def compare(net, plain, x=IMAGES):
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(net(x), plain(x))


def kinds(net):
    """Returns the kinds of the chains, by the module whose forward they are in."""
    found = {name: fusion_of(m) for name, m in net.named_modules()}
    made = {name: f.forwards.get(False) for name, f in found.items() if f is not None and not f.is_inner}
    return {name: [kinds for kinds, _ in f.chains] for name, f in made.items() if isinstance(f, Fused)}


FOLDED = ("conv", "bn", "relu")
