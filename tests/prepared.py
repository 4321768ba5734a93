"""Holds modules beside plain twins of the same parameters, and compares the results of both.

A module may remember, after some calls, that its checks passed. The tests in test_prepared*.py
call a module until it could, change something, and expect what the twin gives.
"""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import fastcnn
from fastcnn import MaxPool, models
from fastcnn.models._blocks import Conv, ConvNet, Dense, Table
from fastcnn.stages import Stages
from fastcnn.testing import assert_close


class PlainBlock(nn.Conv2d):
    """Stands for ConvBlock2d, by torch's own functions."""

    def __init__(self, *args, pool):
        super().__init__(*args)
        self.stages, self.recompute = Stages(True, None, pool), False

    def forward(self, input):
        y = super().forward(input)
        y = y.relu() if self.stages.relu else y
        pool = self.stages.pool
        return nn.functional.max_pool2d(y, *pool.pairs, ceil_mode=pool.ceil_mode) if pool else y


def sequential(fused):
    convs = [[nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)] for _ in range(2)]
    denses = [nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)]
    model = nn.Sequential(*convs[0], *convs[1], *denses)
    return fastcnn.fuse(model) if fused else model


def wide(fused):
    """Returns a network with many weights: its dense layers are a call of their own."""
    conv = Conv("conv1", 64, 3, padding=1, pool=MaxPool(1))
    denses = Dense("fc2", 300, dropout=True), Dense("fc3")
    return ConvNet("wide", Table((conv,), 8, denses, published=(8,), adaptive=True), 10, 0, 3, fused)


class Subject(NamedTuple):
    """Names build(fused), which gives a module in training mode, and the shape of an input."""

    build: Callable[[bool], nn.Module]
    shape: tuple[int, ...]


SUBJECTS = {
    "relu": Subject(lambda fused: models.lenet5("relu", fused=fused), (3, 1, 28, 28)),
    "caffe": Subject(lambda fused: models.lenet5("caffe", fused=fused), (3, 1, 28, 28)),
    "adaptive": Subject(lambda fused: models.lenet5("relu", adaptive=True, fused=fused), (3, 1, 30, 37)),
    "fuse": Subject(sequential, (3, 4, 16, 16)),
    "dense": Subject(wide, (3, 3, 8, 8)),
    "block": Subject(
        lambda fused: (fastcnn.nn.ConvBlock2d if fused else PlainBlock)(4, 6, 3, pool=MaxPool(2)),
        (3, 4, 11, 9),
    ),
    "pool": Subject(lambda fused: (fastcnn.nn if fused else nn).MaxPool2d(3, 2, 1), (3, 4, 11, 9)),
    "lrn": Subject(lambda fused: (fastcnn.nn if fused else nn).LocalResponseNorm(3, 1.0), (3, 4, 11, 9)),
}
MODELS = ("relu", "caffe", "adaptive", "dense")
NETS = (*MODELS, "fuse")
CONVS = (*NETS, "block")


def pair(name):
    """Returns the module after some calls in evaluation, its plain twin, and an input."""
    torch.default_generator.manual_seed(0)
    subject = SUBJECTS[name]
    plain, ours = subject.build(False).eval(), subject.build(True).eval()
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(subject.shape)
    warm(ours, x)
    return ours, plain, x


def warm(m, x):
    m(x)
    with torch.no_grad():
        for _ in range(3):
            m(x)


def convs(m):
    return [child for child in m.modules() if isinstance(child, (nn.Conv2d, fastcnn.nn.ConvBlock2d))]


def conv(m):
    return convs(m)[0]


def dense(m):
    """Returns the first dense layer."""
    return next(child for child in m.modules() if isinstance(child, nn.Linear))


def classifier(m):
    """Returns the Sequential that has the dense layers; of fuse's subject, all layers."""
    return m if isinstance(m, nn.Sequential) else m.classifier


def parent(m, child):
    """Returns the module that child is in, and its name there."""
    found = ((p, name) for p in m.modules() for name, c in p.named_children() if c is child)
    return next(found)


def outcome(call):
    """Returns what a call gives, or the class of what it raises."""
    torch.default_generator.manual_seed(1)  # for dropout; torch.manual_seed takes longer than a call
    try:
        return call()
    except Exception as error:
        return type(error)


def alike(ours, plain, factor=10.0):
    """Checks for the same exception; or tensors of the same kind, with values close beside the largest."""
    if isinstance(ours, type) or isinstance(plain, type):
        assert ours is plain
        return
    ours, plain = pytree.tree_leaves(ours), pytree.tree_leaves(plain)
    assert len(ours) == len(plain)
    for a, b in zip(ours, plain, strict=True):
        assert type(a) is type(b)
        if not isinstance(a, torch.Tensor):
            assert a == b
            continue
        assert kind(a) == kind(b)
        if not a.is_meta:
            scale = 1 / b.detach().double().abs().clamp(1, 1e30).amax().item() if b.numel() else 1
            assert_close(*(t.detach().as_subclass(torch.Tensor) * scale for t in (a, b)), factor)


def kind(t):
    recorded = (t.requires_grad, t.grad_fn is None, t.is_inference())
    return t.dtype, t.device, t.shape, t.stride(), recorded


def recorded(m, x):
    """Returns the output where gradients are recorded; those of the input and of all that require one."""
    leaf = x.detach().clone().requires_grad_(x.is_floating_point())
    y = m(leaf)
    wanted = [leaf, *(p for p in m.parameters() if p.requires_grad)]
    loss = (y / y.detach().abs().max().clamp(1)).sin().sum()
    loss.backward()  # which lays a gradient out as its parameter is
    grads = [t.grad for t in wanted]
    for t in wanted:
        t.grad = None
    return y, grads


def fit(m, x):
    """Returns the input in the dtype and on the device of the module's first parameter."""
    first = next(m.parameters(), x)
    return x.to(first.device, first.dtype)


def same(ours, plain, x, name=""):
    """Checks that both give the same, called again and again in each grad mode.

    name: of the change; one that ends in "!" makes every call fail, one that ends in "?" may.
    """
    x = fit(plain, x)
    for mode in (torch.no_grad, torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            expected = outcome(lambda: plain(x))
            assert name.endswith("?") or isinstance(expected, type) == name.endswith("!"), expected
            alike(outcome(lambda: ours(x)), expected)
    # In 16 bits, of windows whose values are nearly the same another may be the largest.
    factor = 50 if x.dtype.itemsize == 2 else 10
    alike(outcome(lambda: recorded(ours, x)), outcome(lambda: recorded(plain, x)), factor)
    with torch.no_grad():
        alike(outcome(lambda: ours(x)), outcome(lambda: plain(x)))


@contextlib.contextmanager
def reset(get, put, value):
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def shifted(x, by=1):
    return torch.cat([x.new_ones(by), x.flatten()])[by:].view(x.shape)


def cases(names, table, failing):
    """Returns all pairs as parameters; those that fail today are expected to, with the reason."""
    for name in names:
        for key in table:
            reason = failing.get((name, key))
            marks = pytest.mark.xfail(reason=reason, strict=False) if reason else ()
            yield pytest.param(name, key, id=f"{name}-{key}", marks=marks)
