"""Forwards that a graph does not say all of: fused, they must do as written, in every mode and context."""

import collections
import contextlib
import copy
import enum
import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

import fastcnn
from fastcnn import LRN
from fastcnn._plain import GroupedLRN
from fastcnn.fusion.fused import Fused, fusion_of

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


class Mode(enum.Enum):
    ONE = 1
    TWO = 2


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

    torch.manual_seed(0)
    return Net()


def results(net, context):
    """What two calls give, with gradients and buffers."""
    found = []
    torch.manual_seed(1)
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


class Smallest(nn.MaxPool2d):
    def forward(self, x):
        return -super().forward(-x)


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.p = nn.Conv2d(3, 4, 3), nn.MaxPool2d([2, 2]), 0.5

    def features(self, x):
        return F.dropout(self.pool(F.relu(self.conv(x))), self.p, self.training)


class Whole(nn.Module):
    """State of all kinds: of a class, an object, a function, a list, of a child whose method is called."""

    scale = 1.0

    def __init__(self):
        super().__init__()
        self.body, self.act, self.mode = Body(), torch.tanh, Mode.ONE
        self.settings, self.list = SimpleNamespace(shift=0.0), [1.0]
        self.head = nn.Linear(100, 2)

    def forward(self, x):
        x = self.act(self.body.features(x)) * self.scale * self.list[0]
        return self.head((x + self.settings.shift + self.mode.value).flatten(1))


CHANGES = {
    "a function": lambda net: setattr(net, "act", torch.sigmoid),
    "an enum": lambda net: setattr(net, "mode", Mode.TWO),
    "an object's attribute": lambda net: setattr(net.settings, "shift", 1.0),
    "a list's item": lambda net: net.list.__setitem__(0, 3.0),
    "an instance's over a class's": lambda net: setattr(net, "scale", 2.0),
    "a list in a layer": lambda net: setattr(net.body.pool, "kernel_size", [3, 3]),
    "a child whose method is called": lambda net: setattr(net.body, "p", 0.9),
    "a child's mode": lambda net: net.body.train(not net.body.training),
    "a child": lambda net: setattr(net, "body", Body()),
    "a layer's class": lambda net: setattr(net.body.pool, "__class__", Smallest),
    "a convolution's inside": lambda net: setattr(
        net.body.conv, "_conv_forward", lambda x, w, b: F.conv2d(x, w, b, dilation=2)[:, :, :9, :9]
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_noticed(change, training):
    torch.manual_seed(0)
    net = fastcnn.fuse(Whole().train(training))
    assert fusion_of(net).forwards[training].depends.changed() is None
    CHANGES[change](net)
    net.head = nn.Flatten()  # whatever the size
    torch.manual_seed(0)
    found = net(IMAGES)
    torch.manual_seed(0)
    torch.testing.assert_close(found, Whole.forward(net, IMAGES))


def test_another_head_stays_fused():
    net = fastcnn.fuse(Whole().eval())
    net.head = nn.Linear(100, 5)
    assert fusion_of(net).forwards[False].depends.changed() is None
    assert net(IMAGES).shape == (2, 5)


COMPILED = {
    "a pool": lambda net: setattr(net[2], "kernel_size", 3),
    "a stride": lambda net: setattr(net[0], "stride", (2, 2)),
    "a layer": lambda net: net.__setitem__(1, nn.Tanh()),
}


@pytest.mark.parametrize("change", COMPILED)
def test_what_changes_is_compiled_again(change):
    torch._dynamo.reset()
    net = fastcnn.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)))
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(IMAGES), net(IMAGES))
    COMPILED[change](net)
    torch.testing.assert_close(compiled(IMAGES), fastcnn.unfuse(copy.deepcopy(net))(IMAGES))


def test_each_copy_is_compiled_by_itself():
    torch._dynamo.reset()
    net = fastcnn.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)))
    hooked = copy.deepcopy(net)
    hooked[1].register_forward_hook(lambda m, x, y: y + 1)
    for m in (net, hooked):
        compiled = torch.compile(m, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(IMAGES), fastcnn.unfuse(copy.deepcopy(m))(IMAGES))


@pytest.mark.parametrize("name", [1, 3])
def test_one_object_under_two_names(name):
    act = nn.ReLU()
    net = fastcnn.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), act, nn.Conv2d(4, 4, 3), act))
    net[name] = nn.Tanh()
    torch.testing.assert_close(net(IMAGES), fastcnn.unfuse(copy.deepcopy(net))(IMAGES))


def test_global_hooks_see_every_layer():
    net, seen = fastcnn.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))), []
    handle = torch_module.register_module_forward_hook(lambda m, x, y: seen.append(type(m).__name__))
    try:
        net(IMAGES)
    finally:
        handle.remove()
    assert seen == ["Conv2d", "ReLU", "MaxPool2d", "Sequential"]


def test_copies_have_checks_of_their_own():
    net = fastcnn.fuse(Whole().eval())
    shallow, deep = copy.copy(net), copy.deepcopy(net)
    net.scale = 2.0
    with torch.no_grad():
        once = deep.head.weight @ (deep.act(deep.body.features(IMAGES)) + 1).flatten(1).T
        torch.testing.assert_close(deep(IMAGES), once.T + deep.head.bias)
        torch.testing.assert_close(net(IMAGES), Whole.forward(net, IMAGES))
        torch.testing.assert_close(shallow(IMAGES), Whole.forward(shallow, IMAGES))
    assert fusion_of(deep).forwards[False].depends.changed() is None


def test_names_of_ones_own_are_left_alone():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fusion, self.written = nn.Conv2d(3, 4, 3), "early", 3

        def forward(self, stages_0):
            return F.relu(self.conv(stages_0))

    net = fastcnn.fuse(Net())
    assert isinstance(fusion_of(net).forwards[True], Fused)
    assert (net.fusion, net.written) == ("early", 3)
    torch.testing.assert_close(type(net)()(IMAGES).shape, net(IMAGES).shape)
    torch.testing.assert_close(net(stages_0=IMAGES), fastcnn.unfuse(net)(IMAGES))


def test_a_class_that_keeps_track_of_subclasses_is_left():
    known = []

    class Registered(nn.Module):
        def __init_subclass__(cls, *, name):
            known.append(name)

    class Net(Registered, name="net"):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

        def forward(self, x):
            return self.block(x)

    net = fastcnn.fuse(Net())
    assert known == ["net"]
    assert fusion_of(net) is None
    assert fusion_of(net.block) is not None


def test_deep_models_are_copied_in_little_time():
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
    for _ in range(60):
        net = nn.Sequential(net, nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Tanh())
    fastcnn.fuse(net)
    torch.testing.assert_close(copy.deepcopy(net)(IMAGES), net(IMAGES))
