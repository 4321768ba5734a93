"""A network, and the forwards that are tried on it."""

import contextlib
import functools
import itertools

from torch import nn
from torch.nn import functional as F


def pooled(x, kernel_size):
    return F.max_pool2d(x, kernel_size)


class Base(nn.Module):
    """A chain of layers; what a forward below needs besides."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
        self.lrn, self.pool = nn.LocalResponseNorm(3, 0.5), nn.MaxPool2d(2)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.layers = [nn.ReLU(), nn.MaxPool2d(2)]
        self.table = {"act": nn.ReLU(), "pool": nn.MaxPool2d(3, 1)}
        self.act = functools.partial(pooled, kernel_size=2)
        self.calls, self.last = 0, None
        self.drop, self.counter = nn.Dropout(0.5), itertools.count(1)

    @contextlib.contextmanager
    def entered(self):
        self.calls += 1
        yield

    def block(self, x):
        return self.pool(self.lrn(self.relu(self.bn(self.conv(x)))))

    def features(self, x):
        return F.relu(self.second(self.block(x)))


FORWARDS = {}


def forward(function):
    FORWARDS[function.__name__] = function
    return function
