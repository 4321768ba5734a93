"""`fastcnn.fuse(fold_bn=True)`: norms folded once give what the layers give, whatever changes later."""

import collections
import contextlib
import copy
import functools
import importlib.util
import io
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

import fastcnn
from fastcnn.fusion.fused import Fused, fusion_of

IMAGES = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 6e-2}


@pytest.fixture(autouse=True)
def one_thread():
    """Keeps small convolutions from waiting for threads of a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Activated(nn.BatchNorm2d):
    """A norm with its activation, as timm's BatchNormAct2d."""

    def __init__(self, features, act=nn.ReLU, drop=nn.Identity):
        super().__init__(features)
        self.drop, self.act = drop(), act()

    def forward(self, x):
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        if self.momentum is None:  # noqa: SIM108 (as timm writes it)
            factor = 0.0
        else:
            factor = self.momentum
        if self.training and self.track_running_stats:  # noqa: SIM102
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
                if self.momentum is None:  # noqa: SIM108
                    factor = 1.0 / float(self.num_batches_tracked)
                else:
                    factor = self.momentum
        if self.training:  # noqa: SIM108
            bn_training = True
        else:
            bn_training = (self.running_mean is None) and (self.running_var is None)
        x = F.batch_norm(
            x,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            self.weight,
            self.bias,
            bn_training,
            factor,
            self.eps,
        )
        x = self.drop(x)
        x = self.act(x)
        return x


def filled(net, seed=0):
    """The net, with every parameter and running statistic drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                if m.running_mean is not None:
                    m.running_mean.copy_(torch.randn(m.num_features, generator=generator) * 0.3)
                    m.running_var.copy_(torch.rand(m.num_features, generator=generator) + 0.5)
                if m.weight is not None:
                    m.weight.copy_(torch.randn(m.num_features, generator=generator))
                    m.bias.copy_(torch.randn(m.num_features, generator=generator))
            elif isinstance(m, nn.Conv2d):
                m.weight.copy_(torch.randn(m.weight.shape, generator=generator) / m.weight[0].numel() ** 0.5)
                if m.bias is not None:
                    m.bias.copy_(torch.randn(m.bias.shape, generator=generator))
    return net


def conv(**options):
    return nn.Conv2d(4, 8, 3, **options)


def seq(*layers):
    return filled(nn.Sequential(*layers)).eval()


NETS = {
    "relu": lambda: seq(conv(), nn.BatchNorm2d(8), nn.ReLU()),
    "relu in place": lambda: seq(conv(), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
    "relu and pool": lambda: seq(conv(), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
    "pool": lambda: seq(conv(), nn.BatchNorm2d(8), nn.MaxPool2d(2)),
    "lrn": lambda: seq(conv(), nn.BatchNorm2d(8), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(2)),
    "no relu": lambda: seq(conv(), nn.BatchNorm2d(8)),
    "no relu, then another": lambda: seq(
        conv(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)
    ),
    "another activation": lambda: seq(conv(), nn.BatchNorm2d(8), nn.SiLU()),
    "relu6": lambda: seq(conv(), nn.BatchNorm2d(8), nn.ReLU6()),
    "identity": lambda: seq(conv(), nn.Identity(), nn.BatchNorm2d(8), nn.Identity(), nn.ReLU()),
    "dropout": lambda: seq(conv(), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.ReLU()),
    "dropout before": lambda: seq(conv(), nn.Dropout(0.5), nn.BatchNorm2d(8), nn.ReLU()),
    "dropout in place": lambda: seq(conv(), nn.BatchNorm2d(8), nn.Dropout(0.5, inplace=True), nn.ReLU()),
    "dropout of 1": lambda: seq(conv(), nn.BatchNorm2d(8), nn.Dropout(1.0), nn.ReLU()),
    "dropout2d": lambda: seq(conv(), nn.BatchNorm2d(8), nn.Dropout2d(0.5), nn.ReLU()),
    "alpha dropout": lambda: seq(conv(), nn.BatchNorm2d(8), nn.AlphaDropout(0.5), nn.ReLU()),
    "feature alpha": lambda: seq(conv(), nn.BatchNorm2d(8), nn.FeatureAlphaDropout(0.5), nn.ReLU()),
    "not affine": lambda: seq(conv(), nn.BatchNorm2d(8, affine=False), nn.ReLU()),
    "eps": lambda: seq(conv(), nn.BatchNorm2d(8, eps=0.5), nn.ReLU()),
    "momentum None": lambda: seq(conv(), nn.BatchNorm2d(8, momentum=None), nn.ReLU()),
    "batch statistics": lambda: seq(conv(), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU()),
    "no bias": lambda: seq(conv(bias=False), nn.BatchNorm2d(8), nn.ReLU()),
    "neither": lambda: seq(conv(bias=False), nn.BatchNorm2d(8, affine=False), nn.ReLU()),
    "groups": lambda: seq(conv(groups=2), nn.BatchNorm2d(8), nn.ReLU()),
    "depthwise": lambda: seq(conv(groups=4, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
    "dilation": lambda: seq(conv(dilation=2), nn.BatchNorm2d(8), nn.ReLU()),
    "stride": lambda: seq(conv(stride=(2, 1), padding=(0, 1)), nn.BatchNorm2d(8), nn.ReLU()),
    "same": lambda: seq(conv(padding="same"), nn.BatchNorm2d(8), nn.ReLU()),
    "valid": lambda: seq(conv(padding="valid"), nn.BatchNorm2d(8), nn.ReLU()),
    "reflect": lambda: seq(conv(padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), nn.ReLU()),
    "circular": lambda: seq(conv(padding=1, padding_mode="circular"), nn.BatchNorm2d(8), nn.ReLU()),
    "sync": lambda: seq(conv(), nn.SyncBatchNorm(8), nn.ReLU()),
    "two norms": lambda: seq(conv(), nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.ReLU()),
    "norm behind relu": lambda: seq(conv(), nn.ReLU(), nn.BatchNorm2d(8), nn.MaxPool2d(2)),
    "norm behind pool": lambda: seq(conv(), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU()),
    "norm first": lambda: seq(nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(8), nn.ReLU()),
    "timm's": lambda: seq(conv(bias=False), Activated(8)),
    "timm's, then a pool": lambda: seq(conv(bias=False), Activated(8), nn.MaxPool2d(3, 2, 1)),
    "timm's SiLU": lambda: seq(conv(bias=False), Activated(8, nn.SiLU)),
    "timm's Identity": lambda: seq(conv(bias=False), Activated(8, nn.Identity)),
    "timm's dropout": lambda: seq(conv(bias=False), Activated(8, nn.ReLU, nn.Dropout)),
    "timm's in place": lambda: seq(conv(), Activated(8, functools.partial(nn.ReLU, inplace=True))),
}
LEFT = {"batch statistics", "reflect", "circular", "norm behind relu", "norm behind pool"}
FOLDED = [name for name in NETS if name not in {*LEFT, "sync"}]
NORMED = {"relu", "no bias", "timm's", "not affine", "groups", "lrn", "dropout", "no relu"}


def fused(net):
    return fastcnn.fuse(net, fold_bn=True)


def chains(net):
    """The kinds of each chain in evaluation."""
    forwards = [fusion_of(m).forwards.get(False) for m in net.modules() if fusion_of(m) is not None]
    return [" ".join(kinds) for f in forwards if isinstance(f, Fused) for kinds, _ in f.chains]


def compare(net, plain, x=IMAGES, dtype=torch.float32, layers=1):
    tolerance = layers * TOLERANCES[dtype]
    torch.testing.assert_close(net(x), plain(x), rtol=tolerance, atol=tolerance)


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


def step(net, optimizer=torch.optim.SGD, mode=True):
    net.train(mode)
    optimizer = optimizer(net.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        net(IMAGES).sin().sum().backward()
        optimizer.step()
    net.zero_grad()
    net.eval()


def in_place(change):
    def changed(net):
        with torch.no_grad():
            change(net)

    return changed


def other_state(net):
    return filled(copy.deepcopy(fastcnn.unfuse(copy.deepcopy(net))), seed=1).state_dict()


def replaced(name, tensor):
    def change(net):
        layer, _, parameter = name.partition(".")
        setattr(net[int(layer)], parameter, tensor())

    return change


def swapped(net):
    net[0].weight.data, other = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(5)), 1
    return other


def written_by_numpy(net):
    net[1].running_mean.numpy()[:] = 2.0


def dropped(net):
    net[1].weight = net[1].bias = None


def tied(net):
    net[0].bias = net[1].bias


def as_buffers(net):
    for name in ("weight", "bias"):
        value = getattr(net[1], name).detach() * 2
        delattr(net[1], name)
        net[1].register_buffer(name, value)


def to_half_and_back(net):
    net.to(torch.bfloat16)
    net(IMAGES.bfloat16())
    net.to(torch.float32)


def moved_through_double(net):
    net.double()
    net(IMAGES.double())
    net.float()


def resets(net):
    net[1].reset_running_stats()


def averages(net):
    """Sets the statistics anew, as before an average of weights is used."""
    momenta = net[1].momentum
    net[1].momentum = None
    net[1].reset_running_stats()
    net.train()
    with torch.no_grad():
        net(IMAGES)
        net(IMAGES * 2)
    net.eval()
    net[1].momentum = momenta


def many_steps(net):
    for _ in range(3):
        step(net)
        with torch.no_grad():
            net(IMAGES)


CHANGES = {
    "weight in place": in_place(lambda net: net[0].weight.mul_(2)),
    "weight's view in place": in_place(lambda net: net[0].weight[0].zero_()),
    "weight's older view": in_place(lambda net: net[0].weight.view(-1)[3:].add_(1)),
    "bias in place": in_place(lambda net: net[0].bias.add_(1)),
    "norm's weight in place": in_place(lambda net: net[1].weight.mul_(-1)),
    "norm's bias in place": in_place(lambda net: net[1].bias.add_(1)),
    "mean in place": in_place(lambda net: net[1].running_mean.add_(1)),
    "variance in place": in_place(lambda net: net[1].running_var.mul_(3)),
    "mean's item": in_place(lambda net: net[1].running_mean.__setitem__(0, 7.0)),
    "detached": lambda net: net[0].weight.detach().mul_(2),
    "foreach": in_place(lambda net: torch._foreach_mul_(list(net.parameters()), 2.0)),
    "init": lambda net: nn.init.constant_(net[1].weight, 0.3),
    "inference mode": lambda net: net[1].bias.detach().add_(1),
    "load": lambda net: net.load_state_dict(other_state(net)),
    "load by assignment": lambda net: net.load_state_dict(other_state(net), assign=True),
    "load a part": lambda net: net[1].load_state_dict(
        {k[2:]: v for k, v in other_state(net).items() if k.startswith("1.")}
    ),
    "load twice": lambda net: [
        net.load_state_dict(other_state(net)),
        net(IMAGES),
        net.load_state_dict(other_state(net), assign=True),
    ],
    "sgd in training": step,
    "sgd in evaluation": functools.partial(step, mode=False),
    "adam": functools.partial(step, optimizer=torch.optim.Adam),
    "foreach adam": functools.partial(step, optimizer=functools.partial(torch.optim.Adam, foreach=True)),
    "fused sgd": functools.partial(step, optimizer=functools.partial(torch.optim.SGD, fused=True)),
    "fused adam": functools.partial(step, optimizer=functools.partial(torch.optim.Adam, fused=True)),
    "many steps": many_steps,
    "a training call": lambda net: (net.train()(IMAGES), net.eval()),
    "a training call without gradients": in_place(lambda net: (net.train()(IMAGES), net.eval())),
    "the norm alone trained": lambda net: (net[1].train(), net(IMAGES), net[1].eval()),
    "the norm alone called": lambda net: (net[1].train()(torch.randn(2, 8, 5, 5).sin()), net[1].eval()),
    "statistics reset": resets,
    "statistics averaged": averages,
    "eps": lambda net: setattr(net[1], "eps", 0.7),
    "weight replaced": replaced("0.weight", lambda: nn.Parameter(torch.ones(8, 4, 3, 3))),
    "weight of another size": replaced("0.weight", lambda: nn.Parameter(torch.ones(8, 4, 5, 5))),
    "bias replaced": replaced("0.bias", lambda: nn.Parameter(torch.ones(8))),
    "bias removed": replaced("0.bias", lambda: None),
    "norm's weight replaced": replaced("1.weight", lambda: nn.Parameter(torch.full((8,), 0.5))),
    "norm's weights removed": dropped,
    "norm's weights as buffers": as_buffers,
    "mean replaced": replaced("1.running_mean", lambda: torch.ones(8)),
    "variance replaced": replaced("1.running_var", lambda: torch.full((8,), 4.0)),
    "a tie": tied,
    "another norm": lambda net: net.__setitem__(1, filled(nn.BatchNorm2d(8), 3).eval()),
    "another convolution": lambda net: net.__setitem__(0, nn.Conv2d(4, 8, 1).requires_grad_(False).eval()),
    "an instance norm": lambda net: net.__setitem__(1, nn.InstanceNorm2d(8)),
    "no norm": lambda net: net.__setitem__(1, nn.Identity()),
    "no statistics": lambda net: (
        setattr(net[1], "running_mean", None) or setattr(net[1], "running_var", None)
    ),
    "in bfloat16 and back": to_half_and_back,
    "in float64 and back": moved_through_double,
    "channels_last": lambda net: net.to(memory_format=torch.channels_last),
    "channels_last and back": lambda net: net.to(memory_format=torch.channels_last).to(
        memory_format=torch.contiguous_format
    ),
    "frozen": lambda net: net.requires_grad_(False),
    "a hook on the norm": lambda net: net[1].register_forward_hook(lambda m, x, y: y + 1),
    "a hook before the norm": lambda net: net[1].register_forward_pre_hook(lambda m, x: (x[0] * 2,)),
    "a hook on the convolution": lambda net: net[0].register_forward_hook(lambda m, x, y: y + 1),
    "a hook that sees": lambda net: net[1].register_forward_hook(lambda m, x, y: None),
    "a forward": lambda net: setattr(net[1], "forward", lambda x: x * 2),
    "training mode": lambda net: net.train(),
    "training mode of the norm": lambda net: net[1].train(),
    "pruned": lambda net: prune.l1_unstructured(net[0], "weight", 0.5),
    "pruned for good": lambda net: prune.remove(prune.l1_unstructured(net[0], "weight", 0.5), "weight"),
    "weight norm": lambda net: nn.utils.parametrizations.weight_norm(net[0]),
    "weight norm, older": lambda net: nn.utils.weight_norm(net[0]),
}
WARNS = {"weight norm, older"}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("frozen", [False, True], ids=["no_grad", "frozen"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_two_calls(change, frozen):
    plain = seq(conv(), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    if frozen and ("sgd" in change or "adam" in change or "step" in change):
        pytest.skip("a frozen net is not trained")
    plain.requires_grad_(not frozen)
    net = fused(copy.deepcopy(plain))
    with contextlib.nullcontext() if frozen else torch.no_grad():
        compare(net, plain)
        compare(net, plain)
    for m in (net, plain):
        torch.manual_seed(1)
        CHANGES[change](m)
    with contextlib.nullcontext() if frozen else torch.no_grad():
        compare(net, plain)
        compare(net, plain)
    if not plain.training:
        with torch.inference_mode():
            compare(net, plain)
    for (name, a), (_, b) in zip(net.state_dict().items(), plain.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "change", ["weight in place", "mean in place", "load", "eps", "in bfloat16 and back"]
)
def test_timms_norm_that_changes(change):
    plain = seq(conv(), Activated(8), nn.MaxPool2d(2)).requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    compare(net, plain)
    for m in (net, plain):
        CHANGES[change](m)
    compare(net, plain)


@pytest.mark.parametrize("act", [nn.SiLU(), nn.Identity(), nn.Tanh(), nn.ReLU6()], ids=lambda act: str(act))
def test_timms_norm_of_another_activation_later(act):
    plain = seq(conv(), Activated(8), nn.MaxPool2d(2)).requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    compare(net, plain)
    net[1].act, plain[1].act = act, copy.deepcopy(act)
    compare(net, plain)


def test_timms_norm_in_training():
    plain = seq(conv(), Activated(8, nn.ReLU, nn.Dropout), nn.MaxPool2d(2)).train()
    net = fused(copy.deepcopy(plain))
    for m in (net, plain):
        torch.manual_seed(1)
        m(IMAGES).sum().backward()
        m.eval()
    torch.testing.assert_close(net.state_dict(), plain.state_dict())
    compare(net, plain)
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
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


class Noting(TorchDispatchMode):
    """Notes the operators that torch runs."""

    def __init__(self):
        super().__init__()
        self.names = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func.overloadpacket._qualified_op_name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["relu", "relu and pool", "no relu", "timm's", "groups", "not affine"])
@pytest.mark.parametrize("grad", ["no_grad", "frozen"])
def test_no_weight_is_multiplied_at_the_second_call(name, grad):
    net = fused(NETS[name]().requires_grad_(grad != "frozen"))
    with contextlib.nullcontext() if grad == "frozen" else torch.no_grad():
        net(IMAGES)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            net(IMAGES)
    names = {event.name for event in profile.events()}
    assert not names & {
        "aten::mul",
        "aten::rsqrt",
        "aten::batch_norm",
        "aten::native_batch_norm",
        "aten::sqrt",
    }


def test_calls_under_a_mode_give_the_same():
    plain = NETS["relu and pool"]().requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    with Noting():
        found = net(IMAGES)
    torch.testing.assert_close(found, plain(IMAGES), rtol=1e-4, atol=1e-4)
    for m in (net, plain):
        m[1].running_mean.add_(1)
    compare(net, plain)


def test_data_written_is_seen_when_fused_again():
    plain = NETS["relu"]().requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    compare(net, plain)
    for m in (net, plain):
        m[0].weight.data.mul_(2)
        m[1].running_var.data.mul_(2)
    compare(fused(net), plain)


@pytest.mark.parametrize("made", [torch.inference_mode, torch.no_grad], ids=["inference_mode", "no_grad"])
@pytest.mark.parametrize("name", ["relu", "timm's", "lrn"])
def test_parameters_made_in_a_mode(made, name):
    with made():
        plain = NETS[name]()
        net = copy.deepcopy(plain)
    net = fused(net)
    for mode in (torch.no_grad, torch.inference_mode, made):
        with mode():
            compare(net, plain)
    with made():
        for m in (net, plain):
            m[1].running_mean.add_(1)
            m[0].weight.mul_(2)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            compare(net, plain)


def test_folded_in_inference_mode_is_good_for_gradients():
    plain = NETS["relu"]().requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    with torch.inference_mode():
        compare(net, plain)
    grads = []
    for m in (net, plain):
        x = IMAGES.clone().requires_grad_()
        m(x).sin().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_statistics_written_in_inference_mode():
    plain = NETS["relu"]()
    net = fused(copy.deepcopy(plain))
    with torch.no_grad():
        compare(net, plain)
    for m in (net, plain):
        with torch.inference_mode():
            m.train()(IMAGES)
            m.eval()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            compare(net, plain)


def test_functional_call():
    plain = NETS["relu and pool"]()
    net = fused(copy.deepcopy(plain))
    with torch.no_grad():
        compare(net, plain)
        state = filled(copy.deepcopy(plain), seed=1).state_dict()
        expected = functional_call(plain, state, (IMAGES,))
        torch.testing.assert_close(functional_call(net, state, (IMAGES,)), expected, rtol=1e-4, atol=1e-4)
        part = {"1.running_mean": state["1.running_mean"]}
        expected = functional_call(plain, part, (IMAGES,))
        torch.testing.assert_close(functional_call(net, part, (IMAGES,)), expected, rtol=1e-4, atol=1e-4)
        compare(net, plain)


def apply(transform):
    def run(net):
        parameters = {k: v.detach().clone() for k, v in net.named_parameters()}
        return transform(net, parameters)

    return run


TRANSFORMS = {
    "grad": apply(
        lambda net, p: torch.func.grad(lambda p: functional_call(net, p, (IMAGES,)).sin().sum())(p)
    ),
    "grad at the input": apply(lambda net, p: torch.func.grad(lambda x: net(x).sin().sum())(IMAGES)),
    "vmap": apply(lambda net, p: torch.func.vmap(net)(IMAGES[:, None])),
    "vmap of parameters": apply(
        lambda net, p: torch.func.vmap(lambda p: functional_call(net, p, (IMAGES,)))(
            {k: torch.stack([v, v * 2]) for k, v in p.items()}
        )
    ),
    "jacrev": apply(lambda net, p: torch.func.jacrev(lambda x: net(x).sum((0, 2, 3)))(IMAGES[:1, :, :6, :6])),
    "jacrev of parameters": apply(
        lambda net, p: torch.func.jacrev(lambda p: functional_call(net, p, (IMAGES,)).sum((0, 2, 3)))(p)
    ),
    "jvp": apply(lambda net, p: torch.func.jvp(net, (IMAGES,), (IMAGES.cos(),))),
    "per-sample gradients": apply(
        lambda net, p: torch.func.vmap(
            torch.func.grad(lambda p, x: functional_call(net, p, (x[None],)).sin().sum()),
            (None, 0),
        )(p, IMAGES)
    ),
}


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("called", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform, called, frozen):
    plain = NETS["relu"]().requires_grad_(not frozen)
    net = fused(copy.deepcopy(plain))
    if called:
        with torch.no_grad():
            net(IMAGES)
    run = TRANSFORMS[transform]
    torch.testing.assert_close(run(net), run(plain), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        compare(net, plain)


@pytest.mark.parametrize("called", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("name", ["relu", "no relu", "timm's", "lrn"])
def test_export(name, called):
    plain = NETS[name]()
    net = fused(copy.deepcopy(plain))
    with torch.no_grad():
        if called:
            net(IMAGES)
        program = torch.export.export(net, (IMAGES,))
        torch.testing.assert_close(program.module()(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-4)
        compare(net, plain)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="needs onnxruntime"
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["relu and pool", "timm's"])
def test_onnx(name):
    onnxruntime = importlib.import_module("onnxruntime")
    plain = NETS[name]()
    net = fused(copy.deepcopy(plain))
    with torch.no_grad():
        net(IMAGES)
        program = torch.onnx.export(net, (IMAGES,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), plain(IMAGES).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("called", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("name", ["relu and pool", "no relu", "timm's"])
def test_compile(name, called):
    torch._dynamo.reset()
    plain = NETS[name]()
    net = fused(copy.deepcopy(plain))
    if called:
        with torch.no_grad():
            net(IMAGES)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    for grad in (torch.no_grad, torch.enable_grad):
        with grad():
            compare(compiled, plain)
            for m in (net, plain):
                with torch.no_grad():
                    m[0].weight.mul_(1.5)
                    m[1].running_mean.add_(0.5)
            compare(compiled, plain)
            compare(net, plain)
    for m in (net, plain):
        m.load_state_dict(other_state(m), assign=True)
    with torch.no_grad():
        compare(compiled, plain)
        compare(net, plain)


def saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": saved,
}


@pytest.mark.parametrize("called", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("name", NORMED)
@pytest.mark.parametrize("copied", COPIES)
def test_copies(copied, name, called):
    plain = NETS[name]().requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    if called:
        net(IMAGES)
    other, other_plain = COPIES[copied](net), copy.deepcopy(plain)
    compare(other, plain)
    with torch.no_grad():
        other[0].weight.mul_(2)
        other_plain[0].weight.mul_(2)
    compare(other, other_plain)
    compare(net, plain)
    with torch.no_grad():
        net[0].weight.mul_(3)
        plain[0].weight.mul_(3)
    compare(net, plain)
    compare(other, other_plain)


def test_a_shallow_copy():
    plain = NETS["relu"]().requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    compare(net, plain)
    other = copy.copy(net)
    compare(other, plain)
    for m in (net, plain):
        m[1].running_mean.add_(1)
    compare(other, plain)
    compare(net, plain)


def test_state_parameters_and_buffers_stay():
    plain = NETS["relu"]()
    net = copy.deepcopy(plain)
    tensors = [*net.parameters(), *net.buffers()]
    with torch.no_grad():
        fused(net)(IMAGES)
    assert [id(t) for t in (*net.parameters(), *net.buffers())] == [id(t) for t in tensors]
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert len(pickle.dumps(net)) < len(pickle.dumps(plain)) * 2


def test_fold_asked_for_and_taken_back():
    plain = NETS["relu"]().requires_grad_(False)
    net = copy.deepcopy(plain)
    for fold in (True, False, True, True, False):
        fastcnn.fuse(net, fold_bn=fold)
        assert any("bn" in kinds for kinds in chains(net)) == fold
        compare(net, plain)
        for m in (net, plain):
            m[1].running_mean.add_(0.3)
        compare(net, plain)
    fastcnn.unfuse(net)
    assert torch.equal(net(IMAGES), plain(IMAGES))


def test_two_models_with_one_convolution():
    shared = conv()
    plains = [filled(nn.Sequential(shared, nn.BatchNorm2d(8), nn.ReLU()), seed).eval() for seed in (0, 1)]
    nets = [fused(nn.Sequential(*plain)).eval() for plain in plains]
    with torch.no_grad():
        for _ in range(2):
            for net, plain in zip(nets, plains, strict=True):
                compare(net, plain)
            shared.weight.mul_(1.5)


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
