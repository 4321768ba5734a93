"""A form between a convolution and a pooling, and how two such networks compare."""

import torch
from torch import nn
from torch.nn import functional as F

from fastcnn.fusion.fused import Fused, fusion_of

from .base import FORMS

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(2, 3, 10, 10, generator=GENERATOR)
MAPS = torch.randn(2, 8, 7, 7, generator=GENERATOR)
OPTIONS = {
    "": {},
    "size 3": {"size": 3},
    "size 7": {"size": 7},
    "size 1": {"size": 1},
    "more than channels": {"size": 17},
    "twice the channels": {"size": 15},
    "even": {"size": 4},
    "even, padded more": {"size": 4, "padding": (2, 0, 0)},
    "no padding": {"padding": (0, 0, 0)},
    "padding 1": {"padding": (1, 0, 0)},
    "padding everywhere": {"padding": 2, "kernel_size": 5},
    "paddings left out": {"size": 5, "count_include_pad": False},
    "ceil": {"ceil_mode": True},
    "divisor": {"divisor_override": 3},
    "divisor of the size": {"divisor_override": 5},
    "a list": {"kernel_size": [5, 1, 1], "padding": [2, 0, 0]},
    "a cube": {"kernel_size": (5, 3, 1), "padding": (2, 1, 0)},
    "k 2": {"k": 2.0},
    "k 0.5": {"k": 0.5},
    "k an integer": {"k": 2},
    "alpha 0": {"alpha": 0.0},
    "alpha an integer": {"alpha": 1},
    "alpha below 0": {"alpha": -0.01},
    "beta 1": {"beta": 1.0},
    "beta an integer": {"beta": 2},
    "beta 0": {"beta": 0.0},
    "beta 0.5": {"beta": 0.5},
    "beta below 0": {"beta": -0.75},
    "tensors": {"alpha": torch.tensor(0.5), "beta": torch.tensor(0.75)},
    "a parameter": {"alpha": nn.Parameter(torch.tensor(0.5))},
    "the paper's": {"alpha": 1e-4, "beta": 0.75, "k": 2.0},
}


class Behind(nn.Module):
    """The norm between a convolution and a pooling."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(3, 8, 3), norm, nn.MaxPool2d(2)

    def forward(self, x):
        return self.pool(self.norm(F.relu(self.conv(x))))


def build(form="module", **options):
    torch.default_generator.manual_seed(0)
    return Behind(FORMS[form](**options))


def kinds(net):
    forwards = [f for m in net.modules() if fusion_of(m) is not None for f in fusion_of(m).forwards.values()]
    return {kind for f in forwards if isinstance(f, Fused) for chain, _ in f.chains for kind in chain}


def results(net, x, dtype=torch.float32, grad=True):
    """The value and the gradients, or the error's type."""
    x = x.to(dtype).clone().requires_grad_(grad)
    try:
        y = net(x)
        if not y.requires_grad:
            return [y]
        parameters = [x, *net.parameters()]
        return [y, *torch.autograd.grad(y.sin().sum(), parameters, allow_unused=True)]
    except Exception as error:
        return type(error)


def compare(net, plain, x, dtype=torch.float32, grad=True, or_else=None):
    """Both give the same or raise the same; where the plain one raises, the fused one may give another's."""
    found, expected = results(net, x, dtype, grad), results(plain, x, dtype, grad)
    if isinstance(expected, type):
        if or_else is None or isinstance(found, type):
            assert found is expected
            return
        expected = results(or_else, x, dtype, grad)
    assert not isinstance(found, type), found
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    for a, b in zip(found, expected, strict=True):
        if b is None:
            assert a is None or not a.any()
        else:
            assert a is not None
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
