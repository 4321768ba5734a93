"""Folded batch norms: values, gradients, shapes, layers used twice, norms with a forward of their own."""

import contextlib
import copy

import pytest
import torch
from normed_nets import (
    FOLDED,
    IMAGES,
    LEFT,
    NETS,
    TOLERANCES,
    chains,
    compare,
    conv,
    filled,
    fused,
    seq,
    step,
)
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")

MODES = {"no_grad": torch.no_grad, "inference": torch.inference_mode, "autograd": contextlib.nullcontext}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", NETS)
def test_values(name, dtype, mode):
    plain = NETS[name]().to(dtype)
    net = fused(copy.deepcopy(plain))
    with MODES[mode]():
        for _ in range(2):
            if dtype == torch.bfloat16:
                try:
                    plain(IMAGES.to(dtype))
                except NotImplementedError as error:
                    pytest.skip(str(error))
                # A result with fewer roundings than the layers' is right, too.
                found, expected = net(IMAGES.to(dtype)), plain.float()(IMAGES.to(dtype).float())
                plain.to(dtype)
                torch.testing.assert_close(found.float(), expected, rtol=0.06, atol=0.12)
                assert found.dtype == dtype
            else:
                compare(net, plain, IMAGES.to(dtype), dtype)


@pytest.mark.parametrize("name", FOLDED)
def test_norms_are_folded(name):
    assert any("bn" in kinds for kinds in chains(fused(NETS[name]())))


@pytest.mark.parametrize("name", LEFT)
def test_norms_are_left(name):
    assert not any("bn" in kinds for kinds in chains(fused(NETS[name]())))


@pytest.mark.parametrize("name", NETS)
def test_gradients_of_parameters(name):
    """Under autograd with parameters that require gradients, the layers run as written."""
    plain = NETS[name]()
    net = fused(copy.deepcopy(plain))
    for _ in range(2):
        results = []
        for m in (net, plain):
            x = IMAGES.clone().requires_grad_()
            y = m(x)
            results.append([y, *torch.autograd.grad(y.sin().sum(), [x, *m.parameters()])])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("before", [False, True], ids=["at first", "after a call"])
def test_gradients_at_the_input_of_a_frozen_net(name, before):
    plain = NETS[name]().requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    if before:
        with torch.inference_mode():
            net(IMAGES)
    results = []
    for m in (net, plain):
        x = IMAGES.clone().requires_grad_()
        y = m(x)
        results.append([y, *torch.autograd.grad(y.sin().sum(), x)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


FROZEN = {
    "convolution": lambda net: net[0].requires_grad_(False),
    "norm": lambda net: net[1].requires_grad_(False),
    "weight": lambda net: net[0].weight.requires_grad_(False),
    "all but the norm's bias": lambda net: net.requires_grad_(False)[1].bias.requires_grad_(True),
    "all but the convolution's bias": lambda net: net.requires_grad_(False)[0].bias.requires_grad_(True),
    "all but the norm's weight": lambda net: net.requires_grad_(False)[1].weight.requires_grad_(True),
}


@pytest.mark.parametrize("frozen", FROZEN)
def test_gradients_of_what_is_not_frozen(frozen):
    plain = NETS["relu"]()
    net = fused(copy.deepcopy(plain))
    with torch.no_grad():
        compare(net, plain)
    for m in (net, plain):
        FROZEN[frozen](m)
        m(IMAGES).sin().sum().backward()
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["relu", "timm's", "no relu", "lrn"])
@pytest.mark.parametrize(
    "shape", [(4, 12, 12), (12, 12), (1, 2, 4, 12, 12), (2, 3, 12, 12), (0, 4, 12, 12)], ids=str
)
def test_other_shapes_do_as_plain(name, shape):
    plain = NETS[name]().requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    try:
        expected = plain(x)
    except Exception as error:
        for _ in range(2):
            with pytest.raises(type(error)):
                net(x)
    else:
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["relu", "timm's", "no relu"])
def test_another_dtype_of_the_input_does_as_plain(name):
    plain = NETS[name]().requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    for dtype in (torch.float64, torch.bfloat16, torch.int64):
        with pytest.raises(RuntimeError):
            plain(IMAGES.to(dtype))
        with pytest.raises(RuntimeError):
            net(IMAGES.to(dtype))


@pytest.mark.parametrize("parts", ["convolution", "norm"])
def test_parts_of_two_dtypes_do_as_plain(parts):
    plain = NETS["relu"]().requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    compare(net, plain)
    results = []
    for m in (net, plain):
        m[0 if parts == "convolution" else 1].to(torch.bfloat16)
        x = IMAGES.bfloat16() if parts == "convolution" else IMAGES
        try:
            results.append(m(x))
        except RuntimeError:
            results.append(None)
    if results[1] is None:
        assert results[0] is None
    else:
        torch.testing.assert_close(*results, rtol=0.05, atol=0.05)


def test_autocast():
    plain = NETS["relu and pool"]()
    net = fused(copy.deepcopy(plain))
    for grad in (torch.no_grad, torch.enable_grad):
        with torch.autocast("cpu", torch.bfloat16), grad():
            found, expected = net(IMAGES), plain(IMAGES)
        torch.testing.assert_close(found, expected, rtol=0.06, atol=0.1)
        with grad():
            compare(net, plain)


class Twice(nn.Module):
    """One convolution with two norms; one norm with two convolutions."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        x = F.relu(self.one(self.conv(x)))
        x = F.relu(self.two(self.conv(x)))
        return F.relu(self.two(self.other(x)))


class Shared(nn.Module):
    """One weight of two convolutions; a norm whose input is read twice; statistics of another norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.other.weight = self.conv.weight
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.two.running_mean = self.one.running_mean

    def forward(self, x):
        x = F.relu(self.one(self.conv(x)))
        y = self.other(x)
        z = self.two(y)
        return F.relu(z) + y + self.one(self.conv(x))


class Functional(nn.Module):
    """Norms called as functions of the layers' tensors."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        bn = self.bn
        x = F.conv2d(x, self.conv.weight, self.conv.bias, padding=1)
        x = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training)
        x = self.conv(F.relu(x))
        return F.relu(F.batch_norm(x, bn.running_mean, bn.running_var, eps=0.1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.last = nn.BatchNorm2d(4)

    def forward(self, x):
        return F.relu(self.last(self.conv(F.relu(self.bn(self.conv(x))))) + x)


class WeightChanges(nn.Module):
    """The forward writes into the norm between two calls of it."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        with torch.no_grad():
            self.bn.running_mean.add_(0.5)
        return F.relu(self.bn(self.conv(x)))


@pytest.mark.parametrize("build", [Twice, Shared, Functional, Residual, WeightChanges])
def test_layers_used_more_than_once(build):
    plain = filled(build()).eval().requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    for _ in range(2):
        compare(net, plain, layers=4)
    for m in (net, plain):
        m.conv.weight.mul_(1.5)
        for norm in m.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.add_(0.5)
    for _ in range(2):
        compare(net, plain, layers=4)
    for m in (net, plain) if build is not WeightChanges else ():  # whose backward torch refuses
        m.requires_grad_().train()
        step(m)
    with torch.no_grad():
        compare(net, plain, layers=4)
    if build is WeightChanges:
        return
    results = [torch.autograd.grad(m(IMAGES).sin().sum(), list(m.parameters())) for m in (net, plain)]
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_a_norm_with_a_variance_of_zero():
    plain = NETS["relu"]().requires_grad_(False)
    for m in (plain[1],):
        m.running_var.zero_()
        m.weight[0] = 0
    net = fused(copy.deepcopy(plain))
    torch.testing.assert_close(net(IMAGES), plain(IMAGES), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["image", "weight", "mean", "norm's weight"])
def test_values_that_are_no_numbers(where, value):
    plain = NETS["relu and pool"]().requires_grad_(False)
    images = IMAGES.clone()
    tensors = {"image": images, "weight": plain[0].weight, "mean": plain[1].running_mean}
    tensors.get(where, plain[1].weight).view(-1)[1] = value
    net = fused(copy.deepcopy(plain))
    torch.testing.assert_close(net(images), plain(images), rtol=1e-4, atol=1e-4, equal_nan=True)


class Own(nn.BatchNorm2d):
    """A norm with a forward of its own, given as a function of it and the input."""

    def __init__(self, written):
        super().__init__(8)
        self.act, self.scale, self.written = nn.ReLU(), 1.0, written

    def normalised(self, x, eps=1e-5):
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, 0.1, eps)


def statistics_clamped(m, x):
    return m.act(F.batch_norm(x, m.running_mean, m.running_var.clamp(max=0.9), m.weight, m.bias))


def weight_of_one_more(m, x):
    return m.act(F.batch_norm(x, m.running_mean, m.running_var, m.weight + 1, m.bias))


def counts(m, x):
    m.num_batches_tracked.add_(1)
    return m.act(m.normalised(x))


OWN = {
    "as usual": lambda m, x: m.act(m.normalised(x)),
    "input clamped": lambda m, x: m.act(m.normalised(x.clamp(-50, 50))),
    "output clamped": lambda m, x: m.act(m.normalised(x).clamp(max=50)),
    "input detached": lambda m, x: m.act(m.normalised(x.detach())),
    "scaled": lambda m, x: m.act(m.normalised(x) * m.scale),
    "another eps": lambda m, x: m.act(m.normalised(x, 0.5)),
    "no weight": lambda m, x: m.act(F.batch_norm(x, m.running_mean, m.running_var)),
    "batch statistics": lambda m, x: m.act(F.batch_norm(x, None, None, m.weight, m.bias, True)),
    "residual": lambda m, x: m.act(m.normalised(x) + x),
    "in float32": lambda m, x: m.act(m.normalised(x.float()).to(x.dtype)),
    "torch's": lambda m, x: m.act(nn.BatchNorm2d.forward(m, x)),
    "statistics clamped": statistics_clamped,
    "weight and 1": weight_of_one_more,
    "counts": counts,
}


@pytest.mark.parametrize("own", OWN)
def test_norms_with_a_forward_of_their_own(own):
    kind = type("Norm", (Own,), {"forward": OWN[own]})
    plain = seq(conv(), kind(None), nn.MaxPool2d(2))
    net = fused(copy.deepcopy(plain))
    for scale in (1, 1000):
        with torch.no_grad():
            torch.testing.assert_close(
                net(IMAGES * scale), plain(IMAGES * scale), rtol=1e-3, atol=1e-4 * scale
            )
    for frozen in (False, True):
        found = []
        for m in (net, plain):
            m.requires_grad_(not frozen)
            x = IMAGES.clone().requires_grad_()
            y = m(x)
            if y.requires_grad:
                (y.sin().sum() + 0 * x.sum()).backward()
            found.append([y, x.grad])
        torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-3)
        assert (found[0][1] is None) == (found[1][1] is None)
        if found[1][1] is not None:
            torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-3)
    assert torch.equal(net[1].num_batches_tracked, plain[1].num_batches_tracked)
