"""`fastcnn.fuse` on classes of every kind: what they do, copies of them, changes to them, calls of them."""

import contextlib
import copy
import functools
import io
import pickle

import module_classes
import pytest
import torch
from forwards import IMAGES, Base, assert_alike, pooled, results
from module_classes import (
    CLASSES,
    COPIED,
    Arguments,
    Cached,
    Containers,
    ForwardAttribute,
    ForwardSwitched,
    Inner,
    Property,
    SettingProperty,
    Slots,
    Static,
    TensorAttribute,
    build,
)
from torch import nn
from torch.nn import functional as F

import fastcnn

pytestmark = pytest.mark.usefixtures("one_thread")

SCALE = torch.tensor(1.5)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_classes(kind, training):
    expected = results(build(kind), training=training)
    net = fastcnn.fuse(build(kind), fold_bn=True)
    assert isinstance(net, kind)
    assert type(net).__name__ == kind.__name__
    assert_alike(results(net, training=training), expected)
    fastcnn.unfuse(net)
    assert type(net) is kind


@pytest.mark.parametrize("kind", COPIED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "copy"])
def test_copies_of_classes(kind, way):
    plain, net = build(kind).eval(), fastcnn.fuse(build(kind).eval())
    ways = {
        "deepcopy": copy.deepcopy,
        "pickle": lambda m: pickle.loads(pickle.dumps(m)),
        "torch.save": saved,
        "copy": copy.copy,
    }
    for called in (False, True):
        if called:
            net(IMAGES)
        twin = ways[way](net)
        assert isinstance(twin, kind)
        torch.testing.assert_close(twin(IMAGES), plain(IMAGES))
        torch.testing.assert_close(twin.state_dict(), plain.state_dict())


@pytest.mark.parametrize("kind", [ForwardAttribute, ForwardSwitched], ids=lambda kind: kind.__name__)
def test_deep_copies_of_bound_forwards(kind):
    """A copy's forward is the original's, bound to it, as in plain torch, or is right in another way."""
    plain, net = build(kind).eval(), fastcnn.fuse(build(kind).eval())
    expected = copy.deepcopy(plain)(IMAGES)
    torch.testing.assert_close(copy.deepcopy(net)(IMAGES), expected)


def saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def set_scale(net):
    net.plain_tensor = net.plain_tensor * 3


CLASS_CHANGES = {
    "a property's source": (Property, lambda net: setattr(net, "calls", 1)),
    "a property set": (SettingProperty, lambda net: setattr(net, "stride", 2)),
    "a cached property": (Cached, lambda net: vars(net).__setitem__("size", 3)),
    "a cached property forgotten": (Cached, lambda net: vars(net).pop("size", None)),
    "a slot": (Slots, lambda net: setattr(net, "extra", 3.0)),
    "a forward switched": (ForwardSwitched, lambda net: setattr(net, "forward", net.two)),
    "a tensor attribute": (TensorAttribute, set_scale),
    "a tensor in place": (TensorAttribute, lambda net: net.plain_tensor.mul_(3)),
    "a partial": (Base, lambda net: setattr(net, "act", functools.partial(pooled, kernel_size=3))),
    "a list of layers": (Base, lambda net: net.layers.append(nn.Tanh())),
    "a layer in a list": (Base, lambda net: net.layers.__setitem__(0, nn.Tanh())),
    "a layer in a list changed": (Base, lambda net: setattr(net.layers[1], "kernel_size", 3)),
    "a layer in a dict": (Base, lambda net: net.table.__setitem__("act", nn.Tanh())),
    "a parameter of a list": (
        Containers,
        lambda net: net.params.__setitem__(0, nn.Parameter(torch.ones(()))),
    ),
    "a layer of a ModuleDict": (Containers, lambda net: net.layers.__setitem__("b", nn.Tanh())),
    "a new layer of a ModuleDict": (Containers, lambda net: net.layers.__setitem__("c", nn.Tanh())),
}


class Everything(Base):
    def forward(self, x):
        x = self.conv(x)
        for layer in self.layers:
            x = layer(x)
        return self.act(self.table["act"](self.second(x)))


@pytest.mark.parametrize("called", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("change", CLASS_CHANGES)
def test_changes_of_classes(change, called):
    kind, apply = CLASS_CHANGES[change]
    kind = Everything if kind is Base else kind
    plain, net = build(kind).eval(), fastcnn.fuse(build(kind).eval())
    if called:
        torch.testing.assert_close(net(IMAGES), plain(IMAGES))
    for m in (net, plain):
        torch.default_generator.manual_seed(2)
        apply(m)
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))


@pytest.mark.parametrize(
    "changed", ["class attribute", "method", "static method", "global", "torch function"]
)
def test_changes_outside_the_net(changed, monkeypatch):
    plain, net = build(Static).eval(), fastcnn.fuse(build(Static).eval())
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))
    if changed == "class attribute":
        monkeypatch.setattr(Static, "size", 3)
    elif changed == "method":
        monkeypatch.setattr(Static, "reduce", lambda self, x: x + 1)
    elif changed == "static method":
        monkeypatch.setattr(Static, "act", staticmethod(torch.tanh))
    elif changed == "global":
        monkeypatch.setattr(module_classes, "Static", type("Other", (), {"act": staticmethod(torch.tanh)}))
    else:
        monkeypatch.setattr(F, "relu", torch.tanh)
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))


class Globals(Base):
    def forward(self, x):
        return self.pool(self.relu(self.conv(x))) * SCALE


def test_a_global_tensor_that_changes(monkeypatch):
    plain, net = build(Globals).eval(), fastcnn.fuse(build(Globals).eval())
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))
    monkeypatch.setitem(globals(), "SCALE", torch.tensor(4.0))
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))
    SCALE.mul_(2)
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))


CALLS = {
    "positional": ((IMAGES,), {}),
    "by name": ((), {"x": IMAGES}),
    "two": ((IMAGES, IMAGES * 2), {}),
    "two by name": ((), {"y": IMAGES, "x": IMAGES}),
    "the same twice": ((IMAGES, IMAGES), {}),
    "rest": ((IMAGES, IMAGES, 2.0, torch.tensor(3.0)), {}),
    "scale": ((IMAGES,), {"scale": 2.0}),
    "a tensor as scale": ((IMAGES,), {"scale": torch.tensor(2.0)}),
    "mask": ((IMAGES,), {"mask": torch.tensor(0.5)}),
    "options": ((IMAGES,), {"shift": 3}),
    "None": ((IMAGES, None), {"mask": None}),
    "missing": ((), {}),
    "unknown": ((IMAGES,), {"x": IMAGES}),
    "a list": (([1, 2],), {}),
    "a string": (("x",), {}),
    "None alone": ((None,), {}),
    "numpy": ((IMAGES.numpy(),), {}),
    "a parameter": ((nn.Parameter(IMAGES.clone()),), {}),
    "a subclass": ((IMAGES.as_subclass(type("Image", (torch.Tensor,), {})),), {}),
    "sparse": ((IMAGES.to_sparse(),), {}),
    "meta": ((IMAGES.to("meta"),), {}),
    "complex": ((IMAGES.to(torch.complex64),), {}),
    "empty": ((IMAGES[:0],), {}),
    "expanded": ((IMAGES[:1, :1].expand(2, 3, 12, 12),), {}),
    "strided": ((torch.stack([IMAGES, IMAGES], -1)[..., 1],), {}),
    "transposed": ((IMAGES.mT,), {}),
    "flipped": ((IMAGES.flip(2),), {}),
    "channels_last": ((IMAGES.to(memory_format=torch.channels_last),), {}),
    "negative": ((torch.view_as_complex(torch.stack([IMAGES, IMAGES], -1)).conj().imag,), {}),
    "too small": ((IMAGES[..., :2, :2],), {}),
    "one pixel left": ((IMAGES[..., :3, :3],), {}),
    "other channels": ((IMAGES[:, :2],), {}),
    "no numbers": ((IMAGES * float("nan"),), {}),
    "infinite": ((torch.full_like(IMAGES, float("inf")),), {}),
}


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", [Arguments, Inner], ids=lambda kind: kind.__name__)
def test_calls(kind, call, grad):
    args, kwargs = CALLS[call]
    plain, net = build(kind).eval(), fastcnn.fuse(build(kind).eval())
    for _ in range(2):
        outputs = []
        for m in (net, plain):
            try:
                with contextlib.nullcontext() if grad else torch.no_grad():
                    outputs.append(m(*args, **kwargs))
            except Exception as error:
                outputs.append(type(error))
        found, expected = outputs
        if isinstance(expected, type):
            assert found is expected
            continue
        assert type(found) is type(expected)
        assert found.requires_grad == expected.requires_grad
        assert found.is_contiguous(memory_format=torch.channels_last) == expected.is_contiguous(
            memory_format=torch.channels_last
        )
        if expected.device.type != "meta":
            torch.testing.assert_close(found, expected, equal_nan=True)
        assert found.shape == expected.shape
