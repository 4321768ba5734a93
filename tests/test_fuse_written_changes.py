"""Models with state of all kinds: fused, they notice what changes, compiled and copied, too."""

import copy
import enum
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

import fastcnn
from fastcnn.fusion.fused import Fused, fusion_of

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Mode(enum.Enum):
    ONE = 1
    TWO = 2


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
    torch.default_generator.manual_seed(0)
    net = fastcnn.fuse(Whole().train(training))
    assert fusion_of(net).forwards[training].depends.changed() is None
    CHANGES[change](net)
    net.head = nn.Flatten()  # whatever the size
    torch.default_generator.manual_seed(0)
    found = net(IMAGES)
    torch.default_generator.manual_seed(0)
    torch.testing.assert_close(found, Whole.forward(net, IMAGES))


def test_another_head_stays_fused():
    net = fastcnn.fuse(Whole().eval())
    net.head = nn.Linear(100, 5)
    assert fusion_of(net).forwards[False].depends.changed() is None
    assert net(IMAGES).shape == (2, 5)


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
