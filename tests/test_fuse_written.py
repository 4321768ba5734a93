"""Forwards that a graph does not say all of: fused, they must do as written, in every mode and context."""

import collections
import contextlib
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastcnn
from fastcnn import LRN
from fastcnn._plain import GroupedLRN

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Reverse(torch.autograd.Function):
    """The gradient turned round; its forward makes no new value."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad):
        return -grad


class Doubling(nn.Conv2d):
    def __call__(self, x):
        return super().__call__(x) * 2


def counts(net, x):
    net.count += 1
    return F.relu(net.conv(x)) * net.count


def averages(net, x):
    net.mean.mul_(0.9).add_(0.1 * x.detach().mean())
    return F.relu(net.conv(x)) - net.mean


def reads_a_buffer(net, x):
    return F.relu(net.conv(x)) * net.mean.item()


def takes_a_parameters_dtype(net, x):
    return F.relu(net.conv(x.to(next(net.parameters()).dtype)))


def adds_in_place(net, x):
    x = F.relu(net.conv(x)) * 1
    before = x
    x += 1
    return x * before


def scales_a_view(net, x):
    y = x * 1
    part = y[:, :2]
    part *= 0
    return F.relu(net.conv(y))


def asks_for_gradients_at_the_input(net, x):
    x.requires_grad = True
    return F.relu(net.conv(x))


def renormalises(net, x):
    net.conv.weight.data = torch.renorm(net.conv.weight.data, 2, 0, 0.1)
    return F.relu(net.conv(x))


def asks_for_the_type(net, x):
    if not isinstance(x, torch.Tensor):
        x = x[0]
    return F.relu(net.conv(x))


def asks_torch_for_the_type(net, x):
    return F.relu(net.conv(x if torch.is_tensor(x) else x[0]))


def compares_by_identity(net, x):
    return F.relu(net.conv(x)) * (2 if x.dtype is torch.float32 else 3)


def looks_a_dtype_up(net, x):
    return F.relu(net.conv(x)) * {torch.float32: 3}.get(x.dtype, 1)


def has_no_such_attribute(net, x):
    return F.relu(net.conv(x.tensors if hasattr(x, "tensors") else x))


def swallows(net, x):
    try:
        factor = 2 if x.shape[0] > 1 else 3
    except Exception:
        factor = 5
    return F.relu(net.conv(x)) * factor


def leaves_autocast(net, x):
    with torch.autocast("cpu", enabled=False):
        return F.relu(net.conv(x.float()))


def turns_gradients_on(net, x):
    with torch.enable_grad():
        return F.relu(net.conv(x))


def turns_gradients_off(net, x):
    with torch.no_grad():
        y = net.conv(x)
    return F.relu(net.conv(y[:, :3]))


def asks_for_gradient_mode(net, x):
    return F.relu(net.conv(x)) * (1 if torch.is_grad_enabled() else 2)


def turns_the_gradient_round(net, x):
    return Reverse.apply(F.relu(net.conv(x)))


def calls_its_own_way(net, x):
    return net.doubling(F.relu(net.conv(x)))


def flips_a_coin(net, x):
    return F.relu(net.conv(x)) * net.random.random()


def gives_an_ordered_dict(net, x):
    return collections.OrderedDict(y=F.relu(net.conv(x)))


def drops_in_place(net, x):
    return F.dropout(F.max_pool2d(F.relu(net.conv(x)), 2), 0.5, net.training, inplace=True)


def pools_padding_alone(net, x):
    return F.relu(F.max_pool2d(net.conv(x)[:, :, :2, :2], 2, padding=1, dilation=3))


def pools_whole_numbers(net, x):
    return F.max_pool2d((net.conv(x).detach() * 2**40).long(), 2)


def normalises_an_image(net, x):
    return net.grouped(F.relu(net.conv(x[0])))


FORWARDS = [
    counts,
    averages,
    reads_a_buffer,
    takes_a_parameters_dtype,
    adds_in_place,
    scales_a_view,
    asks_for_gradients_at_the_input,
    renormalises,
    asks_for_the_type,
    asks_torch_for_the_type,
    compares_by_identity,
    looks_a_dtype_up,
    has_no_such_attribute,
    swallows,
    leaves_autocast,
    turns_gradients_on,
    turns_gradients_off,
    asks_for_gradient_mode,
    turns_the_gradient_round,
    calls_its_own_way,
    flips_a_coin,
    gives_an_ordered_dict,
    drops_in_place,
    pools_padding_alone,
    pools_whole_numbers,
    normalises_an_image,
]


CONTEXTS = {
    "plain": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def made(forward):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.doubling = Doubling(4, 4, 1)
            self.grouped = GroupedLRN(LRN(3, 0.5, groups=2))
            self.random = random.Random(0)
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("mean", torch.ones(()))

        def forward(self, x):
            return forward(self, x)

    torch.default_generator.manual_seed(0)
    return Net()


def results(net, context):
    """Returns what two calls give, with gradients and buffers."""
    found = []
    torch.default_generator.manual_seed(1)
    for _ in range(2):
        with CONTEXTS[context]():
            y = net(IMAGES.clone())
        found.append(y)
        y = y["y"] if isinstance(y, dict) else y
        if y.requires_grad:
            y.float().sin().sum().backward()
    return [*found, *(p.grad for p in net.parameters() if p.grad is not None), *net.buffers()]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("forward", FORWARDS, ids=lambda forward: forward.__name__)
def test_it_does_as_written(forward, context, training):
    net = made(forward).train(training)
    state = torch.get_rng_state()
    fastcnn.fuse(net)
    assert torch.equal(torch.get_rng_state(), state)
    expected = results(made(forward).train(training), context)
    for a, b in zip(results(net, context), expected, strict=True):
        assert type(a) is type(b)
        tolerance = 2e-2 if context == "autocast" else 1e-4
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
