"""Which layers and calls make a chain, and which don't: ``chains.find`` on small graphs."""

import pytest
import torch
from normed_nets import FunctionNorm
from torch import nn
from torch.fx import Tracer
from torch.nn import functional as F

import fastcnn
from fastcnn import LRN, MaxPool
from fastcnn._plain import GroupedLRN
from fastcnn.fusion import chains, runtime
from fastcnn.fusion.guard import Guard
from fastcnn.stages import Stages


def conv(**options):
    return nn.Conv2d(4, 4, 3, **options)


class Layers(Tracer):
    proxy_buffer_attributes = True

    def is_leaf_module(self, m, name):
        return True


def found(model, training=False, fold_bn=True):
    graph = Layers().trace(model.train(training))
    made, left = chains.find(graph, model, training, fold_bn)
    return made, [reason for _, reason in left]


def kinds(*given):
    return [" ".join(chain.kinds) for chain in found(*given)[0]]


RELU, LRN_, POOL, BN = nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(2), nn.BatchNorm2d(4)


@pytest.mark.parametrize(("layers", "expected"), [
    ([conv(), RELU], ["conv relu"]),
    ([conv(), RELU, POOL, LRN_], ["conv relu pool lrn"]),
    ([conv(), RELU, LRN_, POOL, nn.Tanh()], ["conv relu lrn pool"]),
    ([conv()], []),
    ([RELU], []),
    ([RELU, POOL], ["relu pool"]),
    ([nn.ReLU(inplace=True), POOL], ["pool"]),  # which overwrites what others may read
    ([conv(), nn.ReLU(inplace=True)], ["conv relu"]),
    ([POOL, RELU], ["pool relu"]),
    ([POOL, POOL], ["pool", "pool"]),
    ([LRN_, RELU], ["lrn"]),
    ([LRN_, POOL, LRN_], ["lrn pool", "lrn"]),
    ([conv(), RELU, RELU, POOL], ["conv relu", "relu pool"]),
    ([conv(), POOL, conv(), RELU], ["conv pool", "conv relu"]),
    ([LRN_, conv(), RELU], ["lrn", "conv relu"]),
    # A window of padding alone has the maximum -inf: no ReLU may go before it.
    ([nn.MaxPool2d(3, padding=1), RELU], ["pool relu"]),
    ([nn.MaxPool2d(3, dilation=2), RELU], ["pool relu"]),
    ([nn.MaxPool2d(3, padding=1, dilation=2), RELU], ["pool"]),
    ([nn.MaxPool2d(3, padding=(1, 0), dilation=(2, 1)), RELU], ["pool"]),
    ([nn.MaxPool2d(3, padding=(0, 1), dilation=(1, 2)), RELU], ["pool"]),
    ([conv(), nn.MaxPool2d(3, padding=1, dilation=2), RELU], ["conv pool"]),
    ([conv(), BN], ["conv bn"]),
    ([conv(), BN, RELU, POOL], ["conv bn relu pool"]),
    ([conv(), RELU, BN], ["conv relu"]),
    ([conv(), BN, BN], ["conv bn"]),
    ([RELU, BN], []),
    ([POOL, BN], ["pool"]),
    ([conv(), nn.BatchNorm2d(8)], []),  # which raises
    ([conv(), nn.BatchNorm2d(4, track_running_stats=False)], []),
    ([conv(), nn.Identity(), RELU, nn.Identity()], ["conv relu"]),
    ([conv(), nn.Dropout(), nn.Dropout1d(), nn.Dropout2d(), nn.AlphaDropout(), RELU], ["conv relu"]),
    ([nn.LazyConv2d(4, 3), RELU], ["conv relu"]),
    ([conv(padding_mode="reflect"), RELU], []),
    ([fastcnn.nn.MaxPool2d(2), fastcnn.nn.LocalResponseNorm(3)], ["pool lrn"]),
    ([fastcnn.nn.ConvBlock2d(4, 4, 3), POOL], ["pool"]),
    ([nn.MaxPool2d(2, return_indices=True)], []),
])  # fmt: skip
def test_chains_of_layers(layers, expected):
    assert kinds(nn.Sequential(*layers)) == expected


@pytest.mark.parametrize(("layers", "training", "fold_bn", "expected"), [
    ([conv(), BN, RELU], True, True, []),
    ([conv(), BN, RELU], False, False, []),
    ([conv(), nn.Dropout(), RELU], True, True, []),
    ([conv(), nn.Identity(), RELU], True, True, ["conv relu"]),
])  # fmt: skip
def test_what_runs_otherwise_in_training(layers, training, fold_bn, expected):
    assert kinds(nn.Sequential(*layers), training, fold_bn) == expected


class Called(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call, self.conv, self.bn, self.weight = call, conv(), BN, nn.Parameter(torch.ones(4, 4, 3, 3))
        self.bare = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        return self.call(self, x)


def norm(m, **options):
    given = {"weight": m.bn.weight, "bias": m.bn.bias, "eps": m.bn.eps, "training": False} | options
    return lambda x: F.batch_norm(x, m.bn.running_mean, m.bn.running_var, **given)


@pytest.mark.parametrize(("call", "expected"), [
    (lambda m, x: F.relu(F.conv2d(x, m.weight, None, 2, 1, 1, 1)), ["conv relu"]),
    (lambda m, x: torch.relu(torch.conv2d(x, m.weight, stride=2)), ["conv relu"]),
    (lambda m, x: torch.relu_(m.conv(x)), ["conv relu"]),
    (lambda m, x: m.conv(x).relu(), ["conv relu"]),
    (lambda m, x: m.conv(x).relu_(), ["conv relu"]),
    (lambda m, x: F.max_pool2d(torch.relu(x), 2, 1, 0, 1, True), ["relu pool"]),
    (lambda m, x: F.max_pool2d(torch.relu_(x), 2), ["pool"]),
    (lambda m, x: F.max_pool2d(F.relu(x, inplace=True), 2), ["pool"]),
    (lambda m, x: F.max_pool2d(x.relu_(), 2), ["pool"]),
    (lambda m, x: torch.max_pool2d(x, 2, 1, 0, 1, True), ["pool"]),
    (lambda m, x: F.local_response_norm(x, 3, 0.1, 0.5, 2.0), ["lrn"]),
    (lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0], []),
    (lambda m, x: F.relu(F.dropout(m.conv(x), 0.5, False, False)), ["conv relu"]),
    (lambda m, x: F.relu(F.dropout(m.conv(x), training=True)), []),
    (lambda m, x: F.relu(F.dropout(m.conv(x))), []),  # for which training is the default
    (lambda m, x: F.relu(m.conv(x) + 1), []),
    (lambda m, x: F.relu(m.conv(x, 1)), []),  # which raises, as the next two do
    (lambda m, x: F.max_pool2d(x.relu(1), 2), ["pool"]),
    (lambda m, x: F.max_pool2d(x.relu(other=1), 2), ["pool"]),
    (lambda m, x: [y := m.conv(x), F.relu(y)], []),
    (lambda m, x: F.max_pool2d(x, x.size(2)), []),
    (lambda m, x: norm(m)(m.conv(x)), ["conv bn"]),
    (lambda m, x: norm(m, training=True)(m.conv(x)), []),
    (lambda m, x: norm(m, eps=1e-3)(m.conv(x)), []),
    (lambda m, x: norm(m, weight=m.bn.bias)(m.conv(x)), []),
    (lambda m, x: norm(m, weight=None)(m.conv(x)), []),
    (lambda m, x: F.batch_norm(m.conv(x), None, None, m.bare.weight, m.bare.bias, False), []),
    (lambda m, x: norm(m)(F.conv2d(x, m.weight)), []),  # nobody keeps what was folded
    (lambda m, x: [m.bn.running_mean.mul_(0.9), norm(m)(m.conv(x))], []),
    (lambda m, x: [m.bn.running_mean.add_(x.mean()), norm(m)(m.conv(x))], []),
    (lambda m, x: norm(m)(m.conv(x.add_(1))), ["conv bn"]),
])  # fmt: skip
def test_chains_of_calls(call, expected):
    assert kinds(Called(call)) == expected


@pytest.mark.parametrize(("call", "reason"), [
    (lambda m, x: m.conv(x), "nothing follows"),
    (lambda m, x: m.bn(m.conv(x).tanh()), "tanh follows"),
    (lambda m, x: m.bn(m.conv(x)), "BatchNorm2d follows"),
    (lambda m, x: torch.tanh(m.conv(x)), "tanh follows"),
    (lambda m, x: (lambda y: y.tanh() + y)(m.conv(x)), "its output has 2 readers"),
    (lambda m, x: F.max_pool2d(x, x.size(2)), "its arguments depend on what is computed"),
    (lambda m, x: F.max_pool2d(x, 2, padding=2), "max_pool2d: padding should be at most half of kernel size, "
     "but got padding=(2, 2), kernel_size=(2, 2)"),
])  # fmt: skip
def test_the_reason_why_a_call_is_in_no_chain(call, reason):
    made, left = found(Called(call), fold_bn=False)
    assert not made and left == [reason]


class OwnConv(nn.Conv2d):
    pass


class OwnNorm(nn.LocalResponseNorm):
    pass


class OwnPool(nn.MaxPool2d):
    pass


def hooked():
    layer = conv()
    layer.register_forward_hook(print)
    return layer


@pytest.mark.parametrize(("layer", "reason"), [
    (conv(padding_mode="reflect"), "padding_mode is 'reflect'"),
    (OwnConv(4, 4, 3), "OwnConv is a subclass of Conv2d"),
    (OwnNorm(5), "OwnNorm is a subclass of LocalResponseNorm"),
    (OwnPool(2), "OwnPool is a subclass of MaxPool2d"),
    (hooked(), "it has hooks"),
    (nn.BatchNorm2d(4, track_running_stats=False), "it keeps no running statistics"),
    (nn.MaxPool2d(2, return_indices=True), "it returns indices"),
    (nn.LocalResponseNorm(0), "LRN: size must be at least 1, but got 0"),
    (nn.LocalResponseNorm(2.5), "LRN: size must be an int, but got 2.5"),
])  # fmt: skip
def test_the_reason_why_a_layer_is_in_no_chain(layer, reason):
    assert found(nn.Sequential(layer, RELU)) == ([], [reason])


def test_of_other_layers_nothing_is_said():
    block = fastcnn.nn.ConvBlock2d(4, 4, 3)
    block.register_forward_hook(print)
    assert found(nn.Sequential(block, nn.Tanh(), RELU)) == ([], [])


@pytest.mark.parametrize(("lrn", "expected"), [(GroupedLRN(LRN(3)), True), (LRN_, False)])
def test_an_image_by_itself_is_one_to_a_grouped_lrn(lrn, expected):
    (chain,), _ = found(nn.Sequential(RELU, lrn, POOL))
    assert chain.per_image is expected


@pytest.mark.parametrize(("layers", "expected"), [
    ([conv(), RELU, POOL, nn.LocalResponseNorm(3, 0.1, 0.5, 2.0)],
     Stages(True, LRN(3, 0.1, 0.5, 2.0), MaxPool(2), "pool_lrn")),
    ([LRN_, nn.MaxPool2d(3, 2, 1, 1, ceil_mode=True)], Stages(False, LRN(), MaxPool(3, 2, 1, 1, True))),
    ([conv(), POOL], Stages(False, None, MaxPool(2))),
    ([conv(), RELU], Stages()),
])  # fmt: skip
def test_the_stages_of_a_chain(layers, expected):
    (chain,), left = found(nn.Sequential(*layers))
    assert chain.stages == expected and not left
    assert chain.calls == [str(i) for i in range(len(layers))]


def test_the_settings_of_which_changes_are_to_be_noticed():
    (chain,), _ = found(nn.Sequential(conv(), BN, nn.ReLU(), nn.Dropout(), POOL))
    assert {part.path: part.settings for part in chain.parts} == {
        "0": ("stride", "padding", "dilation", "groups", "padding_mode"),
        "1": ("training", "eps"),
        "2": ("inplace",),
        "3": ("training",),
        "4": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    }
    (chain,), _ = found(Called(lambda m, x: norm(m)(m.conv(x))))
    assert (chain.parts[1].path, chain.parts[1].settings) == ("bn", ("eps",))


def test_one_call_takes_the_place_of_a_chain():
    model = nn.Sequential(RELU, nn.Dropout(), POOL).train()
    graph, guard = Layers().trace(model), Guard()
    (chain,), _ = chains.find(graph, model, training=False, fold_bn=True)
    chains.replace(graph, chain, model, False, guard)
    assert [node.op for node in graph.nodes] == ["placeholder", "call_function", "output"]
    assert not guard.holds()  # in training
    model.eval()
    assert guard.changed() is None


@pytest.mark.parametrize(("model", "kind"), [
    (nn.Sequential(conv(), RELU), runtime.LayerBlock),
    (nn.Sequential(nn.LazyConv2d(4, 3), RELU), runtime.LazyBlock),  # which calls the layer once more
    (Called(lambda m, x: F.relu(F.conv2d(x, m.weight))), runtime.FunctionBlock),
    (nn.Sequential(RELU, POOL), runtime.Epilogue),
])  # fmt: skip
def test_the_kind_of_call(model, kind):
    graph = Layers().trace(model.eval())
    (chain,), _ = chains.find(graph, model, training=False, fold_bn=True)
    assert type(chains.replace(graph, chain, model, False, Guard())) is kind


def test_a_block_is_left_without_a_word(capsys):
    fastcnn.explain(nn.Sequential(fastcnn.nn.ConvBlock2d(3, 4, 3), nn.ReLU()))
    printed = capsys.readouterr().out
    assert "\n0 blocks, 0 batch norms folded, 0 left as written" in printed
    assert len(printed.splitlines()) == 2


class NormalisesItself(nn.Module):
    """By no layer's statistics."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return F.relu(F.batch_norm(self.conv(x), None, None, training=True))


def test_a_norm_without_tensors_is_left():
    net, x = fastcnn.fuse(NormalisesItself(), fold_bn=True), torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(net(x), NormalisesItself.forward(net, x))


class FrozenNorm(nn.Module):
    """Has a norm's tensors, and is none: detection models have such."""

    def __init__(self):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(4))
        self.eps = 1e-5

    forward = FunctionNorm.forward


@pytest.mark.parametrize("norm", [FunctionNorm(4), FunctionNorm(4, affine=False), FrozenNorm()], ids=repr)
def test_norms_that_call_the_function(norm, capsys):
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU()).eval(), torch.randn(2, 3, 5, 5)
    expected = net(x)
    torch.testing.assert_close(fastcnn.fuse(net, fold_bn=True)(x), expected)
    fastcnn.explain(net)
    folded = isinstance(norm, nn.BatchNorm2d)
    assert f"\n{folded:d} blocks, {folded:d} batch norms folded" in capsys.readouterr().out
