"""`fastcnn.fuse` on weights that are computed, made later, or described by NumPy's numbers."""

import numpy as np
import pytest
import torch
from forwards import IMAGES
from small_nets import NETS
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastcnn

pytestmark = pytest.mark.usefixtures("one_thread")


def pruned(net):
    prune.l1_unstructured(net[0], "weight", 0.5)
    prune.random_unstructured(net[0], "bias", 0.3)


def pruning_removed(net):
    pruned(net)
    net(IMAGES)
    prune.remove(net[0], "weight")
    prune.remove(net[0], "bias")


def weight_norm_removed(net):
    parametrizations.weight_norm(net[0])
    net(IMAGES)
    parametrize.remove_parametrizations(net[0], "weight")


def spectral_norm_removed(net):
    parametrizations.spectral_norm(net[0])
    net(IMAGES)
    parametrize.remove_parametrizations(net[0], "weight", leave_parametrized=False)


class Symmetric(nn.Module):
    def forward(self, w):
        return (w + w.mT) / 2


def parametrization_cached(net):
    parametrize.register_parametrization(net[0], "weight", Symmetric())
    with parametrize.cached():
        net(IMAGES)


PARAMETRIZATIONS = {
    "pruned": pruned,
    "pruning removed": pruning_removed,
    "weight norm": lambda net: parametrizations.weight_norm(net[0]),
    "weight norm removed": weight_norm_removed,
    "older weight norm": lambda net: nn.utils.weight_norm(net[0]),
    "older weight norm removed": lambda net: nn.utils.remove_weight_norm(nn.utils.weight_norm(net[0])),
    "older spectral norm": lambda net: nn.utils.spectral_norm(net[0]),
    "spectral norm": lambda net: parametrizations.spectral_norm(net[0]),
    "spectral norm removed": spectral_norm_removed,
    "symmetric": lambda net: parametrize.register_parametrization(net[0], "weight", Symmetric()),
    "bias": lambda net: parametrize.register_parametrization(net[0], "bias", nn.Softplus()),
    "cached": parametrization_cached,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("before", [False, True], ids=["fused later", "fused before"])
@pytest.mark.parametrize("name", ["sequence", "normed"])
@pytest.mark.parametrize("how", PARAMETRIZATIONS)
def test_parametrizations(how, name, before, training):
    plain, net = (NETS[name]().train(training) for _ in range(2))
    if before:
        fastcnn.fuse(net, fold_bn=True)
        torch.testing.assert_close(net(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-4)
    for m in (net, plain):
        torch.default_generator.manual_seed(2)
        PARAMETRIZATIONS[how](m)
    if not before:
        fastcnn.fuse(net, fold_bn=True)
    for _ in range(2):
        grads = []
        for m in (net, plain):
            m.zero_grad()
            y = m(IMAGES)
            (0.1 * y).sin().sum().backward()
            grads.append([y, *(p.grad for p in m.parameters())])
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)
        with torch.no_grad():
            torch.testing.assert_close(net(IMAGES), plain(IMAGES), rtol=1e-3, atol=1e-3)
            for a, b in zip(net.parameters(), plain.parameters(), strict=True):
                a.mul_(1.1)
                b.mul_(1.1)
    assert net.state_dict().keys() == plain.state_dict().keys()


LAZY = {
    "convolution": lambda: nn.Sequential(nn.LazyConv2d(6, 3), nn.ReLU(), nn.MaxPool2d(2)),
    "norm": lambda: nn.Sequential(nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.MaxPool2d(2)),
    "head": lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("example", [False, True], ids=["", "example"])
@pytest.mark.parametrize("name", LAZY)
def test_lazy_layers(name, example, training):
    outputs = []
    for fuse in (False, True):
        torch.default_generator.manual_seed(0)
        net = LAZY[name]().train(training)
        torch.default_generator.manual_seed(0)
        if fuse:
            fastcnn.fuse(net, IMAGES if example else None, fold_bn=True)
            torch.default_generator.manual_seed(0)
        outputs.append([net(IMAGES)] if not example else [])
        if example:
            torch.default_generator.manual_seed(0)
            for m in net.modules():
                if hasattr(m, "reset_parameters") and not isinstance(m, nn.modules.lazy.LazyModuleMixin):
                    m.reset_parameters()
            net(IMAGES)
            torch.default_generator.manual_seed(0)
            for m in net.modules():
                if hasattr(m, "reset_parameters"):
                    m.reset_parameters()
        outputs[-1] += [net(IMAGES), net(IMAGES), net.state_dict()]
    torch.testing.assert_close(*outputs[::-1], rtol=1e-4, atol=1e-4)


NUMPY = {
    "all": lambda i: nn.Conv2d(i(3), i(6), i(3), stride=i(2), padding=i(1), dilation=i(1), groups=i(1)),
    "stride": lambda i: nn.Conv2d(3, 6, 3, stride=i(2)),
    "tuples": lambda i: nn.Conv2d(3, 6, (i(3), i(1)), stride=(i(1), i(2)), padding=(i(1), i(0))),
}


@pytest.mark.parametrize("integer", [int, np.int64, np.int32, np.uint8], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", NUMPY)
def test_numpys_integers(name, integer):
    nets = []
    for _ in range(2):
        torch.default_generator.manual_seed(0)
        pool = nn.MaxPool2d(integer(2), integer(1), integer(1))
        nets.append(
            nn.Sequential(NUMPY[name](integer), nn.ReLU(), nn.LocalResponseNorm(integer(3)), pool).eval()
        )
    plain, net = nets
    try:
        expected = plain(IMAGES)
    except Exception as error:
        fastcnn.fuse(net)
        with pytest.raises(type(error)):
            net(IMAGES)
        return
    fastcnn.fuse(net, IMAGES)
    torch.testing.assert_close(net(IMAGES), expected)
    fastcnn.explain(net)


@pytest.mark.parametrize("number", [float, np.float32, np.float64], ids=lambda kind: kind.__name__)
def test_numpys_numbers(number):
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.LocalResponseNorm(3, number(0.5), number(0.75), number(2.0))
    net = nn.Sequential(*layers)
    expected = net(IMAGES)
    torch.testing.assert_close(fastcnn.fuse(net, IMAGES)(IMAGES), expected)
