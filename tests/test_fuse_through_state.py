"""`fuse` looks through modules that keep, count, register and share: they run as written."""

import copy

import pytest
import torch
from looked_through import IMAGES, compare
from torch import nn
from torch.nn import functional as F

import fastcnn
from fastcnn.fusion.fused import fusion_of


def convolution():
    return nn.Conv2d(3, 3, 3, padding=1)


def pooled(conv, x):
    return F.max_pool2d(F.relu(conv(x)), 2)


class Root(nn.Module):
    """A block, then what a case does."""

    def __init__(self, then, **attributes):
        super().__init__()
        self.conv, self.then = convolution(), then
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.then(self, pooled(self.conv, x))


class Keeps(nn.Module):
    """Is no graph, and appends to a list."""

    def forward(self, x, found):
        with torch.enable_grad():
            found.append(x + 1)
        return x


class Counts(nn.Module):
    n = 1

    def forward(self, x):
        self.n += 1
        return x


class Registered(nn.Module):
    def __init_subclass__(cls, *, key, **rest):
        super().__init_subclass__(**rest)

    def forward(self, x):
        return x * 2


class Keyed(Registered, key="a"):
    pass


class Adds:
    n = 0

    def __call__(self, x):
        self.n += 1
        return x + self.n


class Box(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = convolution()


class Own(nn.Module):
    def __getattribute__(self, name):
        return 3 if name == "factor" else super().__getattribute__(name)

    def forward(self, x):
        return x * self.factor


def lists(m, x):
    found = []
    m.part(m.part(x, found), found)
    return sum(found)


def unless_identity(m, x):
    for layer in m.layers:
        if not isinstance(layer, nn.Identity):
            x = layer(x)
    return x


def each_child(m, x):
    for child in m.box.children():
        x = child(x)
    return x


def each_key(m, x):
    for key, layer in m.layers.items():
        if key != "aux":
            x = layer(x)
    return x


def counted(m, x):
    x = m.part(x)
    return x * m.part.n


def shared():
    box = Box()
    box.again = box.conv
    return box


class Scales(nn.Module):
    factor = 2

    def forward(self, x):
        return x * self.factor


SCALES = Scales()


def enclosing():
    layer = SCALES
    return lambda x: layer(x)


def scaled_otherwise(m):
    SCALES.factor = 3


def replaced(name, make):
    def change(m):
        parent, _, last = name.rpartition(".")
        torch.default_generator.manual_seed(3)
        setattr(m.get_submodule(parent), last, make())

    return change


def act_a_function(m):
    del m.act
    m.act = torch.sin


def key_renamed(m):
    m.layers["more"] = m.layers.pop("aux")


def config_changed(m):
    m.config["scale"]["by"] = 3


def one_more(x, found=[]):  # noqa: B006
    found.append(1)
    return x * len(found)


CASES = {
    "a list given to a call": (lambda: Root(lists, part=Keeps()), None),
    "a class that knows its subclasses": (lambda: Root(lambda m, x: m.part(x), part=Keyed()), None),
    "a part's container is replaced": (
        lambda: Root(lambda m, x: pooled(m.box.conv, x), box=Box()),
        replaced("box", Box),
    ),
    "an item of a list is replaced": (
        lambda: Root(lambda m, x: pooled(m.boxes[0].conv, x), boxes=nn.ModuleList([Box()])),
        replaced("boxes.0", Box),
    ),
    "a layer becomes a function": (
        lambda: Root(lambda m, x: m.act(x), act=nn.Tanh()),
        act_a_function,
    ),
    "an identity is replaced": (
        lambda: Root(unless_identity, layers=nn.ModuleList([nn.Identity(), convolution()])),
        replaced("layers.0", convolution),
    ),
    "a child is there": (
        lambda: Root(lambda m, x: x if m.extra is None else x * 2, extra=nn.Identity()),
        replaced("extra", lambda: None),
    ),
    "a key": (
        lambda: Root(each_key, layers=nn.ModuleDict({"a": convolution(), "aux": convolution()})),
        key_renamed,
    ),
    "children are distinct": (lambda: Root(each_child, box=shared()), None),
    "a function encloses a layer": (
        lambda: Root(lambda m, x: m.act(x), act=enclosing()),
        scaled_otherwise,
    ),
    "a callable counts": (lambda: Root(lambda m, x: m.act(x), act=Adds()), None),
    "a call sets what is read": (lambda: Root(counted, part=Counts()), None),
    "a nested container": (
        lambda: Root(lambda m, x: x * m.config["scale"]["by"], config={"scale": {"by": 2}}),
        config_changed,
    ),
    "a default that changes": (lambda: Root(lambda m, x: m.act(x), act=one_more), None),
    "attributes of its own": (lambda: Root(lambda m, x: m.part(x), part=Own()), None),
}


@pytest.mark.parametrize("name", CASES)
def test_as_written(name):
    make, change = CASES[name]
    torch.default_generator.manual_seed(0)
    plain = make().eval()
    net = fastcnn.fuse(copy.deepcopy(plain), fold_bn=True)
    one_more.__defaults__[0].clear()
    expected = [plain(IMAGES) for _ in range(3)]
    one_more.__defaults__[0].clear()
    for y in expected:
        torch.testing.assert_close(net(IMAGES), y)
    if change:
        change(plain), change(net)
        torch.testing.assert_close(net(IMAGES), plain(IMAGES))


def test_a_copy_of_a_timed_model_that_was_changed():
    net = fastcnn.fuse(nn.Sequential(convolution(), nn.ReLU(), nn.MaxPool2d(2)).eval(), IMAGES)
    (chain,) = fusion_of(net).forwards[False].calls
    chain.is_left = True
    net[2] = net[1] = nn.Identity()
    compare(copy.deepcopy(net), nn.Sequential(copy.deepcopy(net[0])))
