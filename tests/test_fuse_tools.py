"""Fused models in PyTorch's tools, and of classes that are written in unusual ways."""

import abc
import collections
import contextlib
import copy
import functools
import gc
import io
import pickle
import types
import weakref

import numpy as np
import pytest
import torch
import torch.distributed as dist
from test_fuse_forwards import IMAGES, Base, Doubling, assert_alike, pooled, results
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

import fastcnn
from fastcnn.fusion.fused import Fused, fusion_of

SCALE = torch.tensor(1.5)


@pytest.fixture(autouse=True)
def one_thread():
    """Keeps small convolutions from waiting for threads of a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Getting(Base):
    def forward(self, x):
        return self.pool(self.relu(self.conv(x))) * self.no_such_thing

    def __getattr__(self, name):
        if name == "no_such_thing":
            return 2.0
        return super().__getattr__(name)


class Setting(Base):
    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        object.__setattr__(self, "sets", vars(self).get("sets", 0) + 1)

    def forward(self, x):
        return self.pool(self.relu(self.conv(x)))


class Calling(Base):
    def forward(self, x):
        return self.pool(self.relu(self.conv(x)))

    def __call__(self, x):
        return super().__call__(x * 2) + 1


class CallingInside(Base):
    def __init__(self):
        super().__init__()
        self.relu = Doubling()

    def forward(self, x):
        return self.pool(self.relu(self.conv(x)))


class Property(Base):
    @property
    def size(self):
        return 2 if self.calls == 0 else 3

    def forward(self, x):
        return F.max_pool2d(self.relu(self.conv(x)), self.size)


class SettingProperty(Base):
    def __init__(self):
        super().__init__()
        self._stride = 2

    @property
    def stride(self):
        return self._stride

    @stride.setter
    def stride(self, value):
        self._stride = value * 2

    def forward(self, x):
        return F.max_pool2d(self.relu(self.conv(x)), 2, self.stride)


class Cached(Base):
    @functools.cached_property
    def size(self):
        return 2

    def forward(self, x):
        return F.max_pool2d(self.relu(self.conv(x)), self.size)


class Slots(Base):
    __slots__ = ("extra",)

    def __init__(self):
        super().__init__()
        self.extra = 2.0

    def forward(self, x):
        return self.pool(self.relu(self.conv(x))) * self.extra


class Static(Base):
    @staticmethod
    def act(x):
        return F.relu(x)

    @classmethod
    def reduce(cls, x):
        return F.max_pool2d(x, cls.size)

    size = 2

    def forward(self, x):
        return self.reduce(Static.act(self.conv(x)))


class Abstract(Base, abc.ABC):
    @abc.abstractmethod
    def body(self, x): ...

    def forward(self, x):
        return self.pool(self.relu(self.body(x)))


class Concrete(Abstract):
    def body(self, x):
        return self.conv(x)


class Meta(type):
    made = 0

    def __call__(cls, *args, **kwargs):
        Meta.made += 1
        return super().__call__(*args, **kwargs)


class Metaclassed(Base, metaclass=Meta):
    def forward(self, x):
        return self.pool(self.relu(self.conv(x)))


class Mixin:
    def forward(self, x):
        return super().forward(x) * 2


class Inner(Base):
    def forward(self, x):
        return self.pool(self.relu(self.conv(x)))


class Cooperative(Mixin, Inner):
    pass


class Super(Inner):
    def forward(self, x):
        return F.relu(self.second(super().forward(x)))


class Comparing(Inner):
    """Equal to every other of its class, and with no hash but its name's."""

    def __eq__(self, other):
        return isinstance(other, Comparing)

    def __hash__(self):
        return 3


class Truthless(Inner):
    def __len__(self):
        return 0


class Truthful(nn.Sequential):
    def __bool__(self):
        raise RuntimeError("not a bool")


class Iterable(Inner):
    def __iter__(self):
        raise TypeError("not to be iterated over")

    def __getitem__(self, index):
        raise KeyError(index)


class Dir(Inner):
    def __dir__(self):
        raise RuntimeError("not to be listed")


class Repr(Inner):
    def __repr__(self):
        raise RuntimeError("not to be shown")


class ExtraRepr(Inner):
    def extra_repr(self):
        self.calls += 1
        return "extra"


class Reduced(Inner):
    """Pickled in its own way."""

    def __reduce__(self):
        return restored, (type(self), self.state_dict())


def restored(kind, state):
    net = kind()
    net.load_state_dict(state)
    return net


class Stated(Inner):
    def __getstate__(self):
        return {**super().__getstate__(), "packed": True} if hasattr(super(), "__getstate__") else vars(self)

    def __setstate__(self, state):
        super().__setstate__(state)
        self.unpacked = True


class ForwardAttribute(Base):
    def __init__(self):
        super().__init__()
        self.forward = self.block


class ForwardSwitched(Base):
    def __init__(self):
        super().__init__()
        self.forward = self.one

    def one(self, x):
        return self.pool(self.relu(self.conv(x)))

    def two(self, x):
        return self.relu(self.conv(x))


class ForwardDecorated(Base):
    @torch.no_grad()
    def forward(self, x):
        return self.pool(self.relu(self.conv(x)))


def twice(function):
    @functools.wraps(function)
    def wrapped(self, *args, **kwargs):
        return function(self, *args, **kwargs) * 2

    return wrapped


class ForwardWrapped(Base):
    @twice
    def forward(self, x):
        return self.pool(self.relu(self.conv(x)))


class ForwardPartial(Base):
    def scaled(self, x, scale):
        return self.pool(self.relu(self.conv(x))) * scale

    forward = functools.partialmethod(scaled, scale=3.0)


class ForwardLambda(Base):
    forward = lambda self, x: self.pool(self.relu(self.conv(x)))  # noqa: E731


class TensorAttribute(Base):
    def __init__(self):
        super().__init__()
        self.plain_tensor = torch.full((6, 1, 1), 0.7)

    def forward(self, x):
        return self.pool(self.relu(self.conv(x)) * self.plain_tensor)


class Containers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"a": nn.Conv2d(3, 6, 3), "b": nn.ReLU()})
        self.rest = nn.ModuleList([nn.MaxPool2d(2), nn.Sequential(nn.Conv2d(6, 6, 3), nn.ReLU())])
        self.params = nn.ParameterList([nn.Parameter(torch.full((6, 1, 1), 0.5))])
        self.named = nn.ParameterDict({"shift": nn.Parameter(torch.ones(6, 1, 1))})
        self.last, self.calls, self.table = None, 0, {}

    def forward(self, x):
        for layer in self.layers.values():
            x = layer(x)
        for layer in self.rest:
            x = layer(x)
        return x * self.params[0] + self.named["shift"]


class Itself(Base):
    """A reference to itself, hidden from torch's tree."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "me", self)

    def forward(self, x):
        return self.me.pool(self.me.relu(self.me.conv(x)))


class Parented(Base):
    """A child that knows its parent by a list."""

    def __init__(self):
        super().__init__()
        self.child = Base()
        self.child.parent = [self]
        self.child.forward = lambda x: self.pool(self.relu(self.conv(x)))

    def forward(self, x):
        return self.child(x)


CLASSES = [
    Getting,
    Setting,
    Calling,
    CallingInside,
    Property,
    SettingProperty,
    Cached,
    Slots,
    Static,
    Concrete,
    Metaclassed,
    Cooperative,
    Super,
    Comparing,
    Truthless,
    Iterable,
    Dir,
    Repr,
    ExtraRepr,
    Reduced,
    Stated,
    ForwardAttribute,
    ForwardSwitched,
    ForwardDecorated,
    ForwardWrapped,
    ForwardPartial,
    ForwardLambda,
    TensorAttribute,
    Containers,
    Itself,
    Parented,
]


def build(kind, seed=0):
    torch.manual_seed(seed)
    return kind()


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


COPIED = [k for k in CLASSES if k not in {Itself, Parented, ForwardAttribute, ForwardSwitched, Slots}]


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
        torch.manual_seed(2)
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
        monkeypatch.setitem(globals(), "Static", type("Other", (), {"act": staticmethod(torch.tanh)}))
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


class Arguments(Base):
    def forward(self, x, y=None, *rest, scale=1.0, mask=None, **options):
        out = self.pool(self.relu(self.conv(x))) * scale
        if y is not None:
            out = out + self.pool(self.relu(self.conv(y)))
        for r in rest:
            out = out * r
        if mask is not None:
            out = out * mask
        return out + options.get("shift", 0)


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


def sequence(*layers):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.LocalResponseNorm(3, 0.5), nn.MaxPool2d(2), *layers
    )


def normed():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.ReLU()
    )
    with torch.no_grad():
        net[1].running_mean.normal_()
    return net


NETS = {"sequence": sequence, "normed": normed, "module": lambda: build(Inner), "super": lambda: build(Super)}


@pytest.mark.parametrize("fold", [False, True], ids=["", "fold"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NETS)
def test_fx(name, training, fold):
    plain, net = NETS[name]().train(training), fastcnn.fuse(NETS[name]().train(training), fold_bn=fold)
    graph, traced = torch.fx.symbolic_trace(net), torch.fx.symbolic_trace(plain)
    torch.testing.assert_close(graph(IMAGES), traced(IMAGES))
    assert [n.op for n in graph.graph.nodes] == [n.op for n in traced.graph.nodes]
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))
    torch.testing.assert_close(graph.state_dict(), traced.state_dict())
    fused = fastcnn.fuse(graph.eval(), fold_bn=fold)
    torch.testing.assert_close(fused(IMAGES), plain.eval()(IMAGES))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("called", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("fold", [False, True], ids=["", "fold"])
@pytest.mark.parametrize("name", NETS)
def test_jit_trace(name, fold, called):
    plain, net = NETS[name]().eval(), fastcnn.fuse(NETS[name]().eval(), fold_bn=fold)
    if called:
        net(IMAGES)
    for grad in (torch.no_grad, torch.enable_grad):
        with grad():
            traced = torch.jit.trace(net, IMAGES)
        torch.testing.assert_close(traced(IMAGES * 2), plain(IMAGES * 2), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(net(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fold", [False, True], ids=["", "fold"])
@pytest.mark.parametrize("name", ["sequence", "normed"])
def test_jit_script(name, fold):
    """Scripts as the plain model does, or says that fastcnn cannot be scripted."""
    plain, net = NETS[name]().eval(), fastcnn.fuse(NETS[name]().eval(), fold_bn=fold)
    try:
        scripted = torch.jit.script(net)
    except Exception as error:
        assert "fastcnn" in str(error)
        assert "script" in str(error).lower()
    else:
        torch.testing.assert_close(scripted(IMAGES), plain(IMAGES))
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))
    unfused = fastcnn.unfuse(copy.deepcopy(net))
    torch.testing.assert_close(torch.jit.script(unfused)(IMAGES), plain(IMAGES))


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", NETS)
def test_flops(name, grad):
    counts = []
    for net in (NETS[name](), fastcnn.fuse(NETS[name](), fold_bn=True)):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
            y = net.eval()(IMAGES)
            if grad:
                y.sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("before", [False, True], ids=["fused later", "fused before"])
@pytest.mark.parametrize("name", ["sequence", "normed"])
def test_dtensor(name, before):
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        pytest.skip("torch's own convolutions and poolings take no DTensor before 2.13")
    distributed = pytest.importorskip("torch.distributed.tensor")
    if not dist.is_available() or dist.is_initialized():
        pytest.skip("needs a process group of its own")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        x = distributed.distribute_tensor(IMAGES, mesh, [distributed.Replicate()])
        plain = NETS[name]().eval()
        expected = plain(IMAGES)
        net = fastcnn.fuse(NETS[name]().eval()) if before else NETS[name]().eval()
        distributed.distribute_module(net, mesh)
        try:
            net(x)
        except Exception as error:
            if before:
                raise
            pytest.skip(f"plain torch cannot: {error}")
        net = fastcnn.fuse(net)
        torch.testing.assert_close(net(x).full_tensor(), expected)
    finally:
        dist.destroy_process_group()


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
        torch.manual_seed(2)
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
        torch.manual_seed(0)
        net = LAZY[name]().train(training)
        torch.manual_seed(0)
        if fuse:
            fastcnn.fuse(net, IMAGES if example else None, fold_bn=True)
            torch.manual_seed(0)
        outputs.append([net(IMAGES)] if not example else [])
        if example:
            torch.manual_seed(0)
            for m in net.modules():
                if hasattr(m, "reset_parameters") and not isinstance(m, nn.modules.lazy.LazyModuleMixin):
                    m.reset_parameters()
            net(IMAGES)
            torch.manual_seed(0)
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
        torch.manual_seed(0)
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


@pytest.mark.parametrize("kind", [Inner, Super, Arguments, *COPIED[:4], Containers], ids=lambda k: k.__name__)
def test_a_fused_model_is_freed(kind):
    net = fastcnn.fuse(build(kind), IMAGES, fold_bn=True)
    with torch.no_grad():
        net.eval()(IMAGES)
    net.train()(IMAGES)
    found = [weakref.ref(net), weakref.ref(next(net.children())), *map(weakref.ref, net.parameters())]
    del net
    gc.collect()
    assert [ref() for ref in found] == [None] * len(found)


@pytest.mark.parametrize("name", NETS)
def test_an_unfused_model_is_freed(name):
    net = fastcnn.unfuse(fastcnn.fuse(NETS[name](), fold_bn=True))
    found = [weakref.ref(net), *map(weakref.ref, net.modules())]
    del net
    gc.collect()
    assert [ref() for ref in found] == [None] * len(found)


@pytest.mark.parametrize("name", NETS)
def test_what_a_fused_model_gave_is_freed(name):
    net = fastcnn.fuse(NETS[name](), fold_bn=True)
    for training in (True, False):
        net.train(training)
        x = IMAGES.clone()
        y = net(x)
        found = [weakref.ref(x), weakref.ref(y)]
        del x, y
        gc.collect()
        assert [ref() for ref in found] == [None, None]


def objects():
    """The number of objects of each type; torch.fx itself leaves some of three types behind each trace."""
    gc.collect()
    kinds = collections.Counter(map(type, gc.get_objects()))
    return sum(n for kind, n in kinds.items() if kind not in {tuple, functools.partial, types.MethodType})


GROWTH = {
    "one": lambda net: net,
    "copies": copy.deepcopy,
    "pickled": lambda net: pickle.loads(pickle.dumps(net)),
}


@pytest.mark.parametrize("model", GROWTH)
@pytest.mark.parametrize("name", ["sequence", "super"])
def test_no_growth(name, model):
    net = NETS[name]().eval()

    def rounds(count):
        for _ in range(count):
            m = GROWTH[model](net)
            fastcnn.fuse(m, fold_bn=True)
            with torch.no_grad():
                m(IMAGES)
            if model != "one":
                GROWTH[model](m)(IMAGES)
            fastcnn.unfuse(m)
        return objects()

    rounds(10)
    before = rounds(10)
    assert rounds(200 if model == "one" else 30) <= before + 40


def chains(net):
    forwards = [fusion_of(m).forwards.get(False) for m in net.modules() if fusion_of(m) is not None]
    return sorted(" ".join(kinds) for f in forwards if isinstance(f, Fused) for kinds, _ in f.chains)


def test_fused_twice_and_in_parts():
    plain = nn.Sequential(
        normed(), nn.Conv2d(6, 6, 1), nn.ReLU(), build(Inner).child if False else nn.Tanh()
    ).eval()
    net = copy.deepcopy(plain)
    fastcnn.fuse(net[0])
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))
    fastcnn.fuse(net)
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))
    once = chains(net)
    fastcnn.fuse(net)
    assert chains(net) == once
    fastcnn.unfuse(net[0])
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))
    fastcnn.fuse(net[0], fold_bn=True)
    torch.testing.assert_close(net(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-4)
    fastcnn.unfuse(net)
    assert torch.equal(net(IMAGES), plain(IMAGES))
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]
    fastcnn.unfuse(net)
    assert torch.equal(net(IMAGES), plain(IMAGES))


def test_a_fused_part_in_another_model():
    plain = sequence().eval()
    part = fastcnn.fuse(copy.deepcopy(plain))
    torch.manual_seed(3)
    outer = nn.Sequential(part, nn.Conv2d(6, 6, 1), nn.ReLU())
    expected = outer[2](outer[1](plain(IMAGES)))
    torch.testing.assert_close(outer(IMAGES), expected)
    torch.testing.assert_close(fastcnn.fuse(outer)(IMAGES), expected)
    twin = copy.deepcopy(outer)
    torch.testing.assert_close(twin(IMAGES), expected)
    twin[0][0].weight.data.zero_()
    torch.testing.assert_close(outer(IMAGES), expected)


@pytest.mark.parametrize("name", NETS)
def test_state_dicts(name):
    plain, net = NETS[name](), fastcnn.fuse(NETS[name]())
    assert list(net.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in net.named_modules()] == [n for n, _ in plain.named_modules()]
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert repr(net) == repr(plain)
    torch.manual_seed(5)
    state = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in plain.state_dict().items()}
    for m in (net, plain):
        m.eval().load_state_dict(state)
    torch.testing.assert_close(net(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict({})
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    plain.load_state_dict(torch.load(buffer))


@pytest.mark.parametrize("name", NETS)
def test_function_transforms(name):
    plain, net = NETS[name]().eval(), fastcnn.fuse(NETS[name]().eval())
    found = []
    for m in (net, plain):
        parameters = {k: v.detach() for k, v in m.named_parameters()}

        def loss(p, x, m=m):
            return torch.func.functional_call(m, p, (x,)).sin().sum()

        per_sample = torch.func.vmap(torch.func.grad(lambda p, x, loss=loss: loss(p, x[None])), (None, 0))
        found.append(
            [
                torch.func.grad(loss)(parameters, IMAGES),
                per_sample(parameters, IMAGES),
                torch.func.vmap(m)(IMAGES[:, None]),
                torch.func.jacrev(lambda x, m=m: m(x).sum((2, 3)))(IMAGES[:1]),
                torch.func.jvp(m, (IMAGES,), (IMAGES.cos(),)),
                torch.func.hessian(lambda x, m=m: m(x).sin().sum())(IMAGES[:1, :, :8, :8]),
            ]
        )
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NETS)
def test_double_backward_and_accumulation(name):
    found = []
    for m in (NETS[name]().eval(), fastcnn.fuse(NETS[name]().eval())):
        x = IMAGES.clone().requires_grad_()
        (grad,) = torch.autograd.grad(m(x).sin().sum(), x, create_graph=True)
        grad.pow(2).sum().backward()
        first = m(x)
        (first.sum() + m(x * 2).sum()).backward(retain_graph=True)
        first.cos().sum().backward()
        found.append([x.grad, *(p.grad for p in m.parameters())])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["sequence", "normed"])
def test_hooks_of_all_kinds(name):
    found = []
    for m in (NETS[name](), fastcnn.fuse(NETS[name](), fold_bn=True)):
        seen = []
        m.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(torch.zeros(())))
        m.register_full_backward_hook(lambda m, i, o, seen=seen: seen.append(o[0]))
        m.register_forward_hook(
            lambda m, args, kwargs, y, seen=seen: seen.append(y.detach()), with_kwargs=True
        )
        m[0].register_full_backward_hook(lambda m, i, o, seen=seen: seen.append(o[0]))
        m[1].register_forward_hook(lambda m, args, y, seen=seen: seen.append(args[0].detach()))
        m[2].register_full_backward_pre_hook(lambda m, o, seen=seen: seen.append(o[0]))
        m[0].weight.register_hook(lambda grad: grad * 2)
        m[0].weight.register_post_accumulate_grad_hook(lambda p, seen=seen: seen.append(p.grad.clone()))
        for training in (True, False):
            m.train(training)(IMAGES).sin().sum().backward()
        found.append([seen, [p.grad for p in m.parameters()]])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_saved_tensors_hooks():
    found = []
    for m in (sequence(), fastcnn.fuse(sequence())):
        with torch.autograd.graph.save_on_cpu():
            y = m(IMAGES)
        y.sin().sum().backward()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True), torch.from_numpy):
            y = m(IMAGES)
        y.sin().sum().backward()
        found.append([p.grad for p in m.parameters()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sequence", "normed"])
def test_meta_and_empty(name):
    with torch.device("meta"):
        net = NETS[name]()
    fastcnn.fuse(net)
    assert net(IMAGES.to("meta")).device.type == "meta"
    net.to_empty(device="cpu")
    plain = NETS[name]()
    net.load_state_dict(plain.state_dict())
    torch.testing.assert_close(net.eval()(IMAGES), plain.eval()(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_averaged_models(name):
    found = []
    for m in (NETS[name](), fastcnn.fuse(NETS[name](), fold_bn=True)):
        average = torch.optim.swa_utils.AveragedModel(m)
        optimizer = torch.optim.SGD(m.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            m.train()(IMAGES).sin().mean().backward()
            optimizer.step()
            average.update_parameters(m)
            with torch.no_grad():
                average.eval()(IMAGES)
        torch.optim.swa_utils.update_bn([IMAGES, IMAGES * 2], average)
        with torch.no_grad():
            found.append([average.eval()(IMAGES), m.eval()(IMAGES)])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_data_parallel():
    plain, net = sequence().eval(), fastcnn.fuse(sequence().eval())
    torch.testing.assert_close(nn.DataParallel(net)(IMAGES), plain(IMAGES))


def test_apply_and_conversions():
    for convert in (nn.Module.double, nn.Module.float, nn.Module.bfloat16, nn.Module.share_memory):
        plain, net = convert(sequence().eval()), convert(fastcnn.fuse(sequence().eval()))
        x = IMAGES.to(plain[0].weight.dtype)
        try:
            expected = plain(x)
        except NotImplementedError:
            continue
        tolerance = 2e-2 if x.dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(net(x), expected, rtol=tolerance, atol=tolerance)
    net = fastcnn.fuse(sequence())
    net.apply(lambda m: nn.init.ones_(m.weight) if isinstance(m, nn.Conv2d) else None)
    plain = sequence()
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))


def test_sync_batch_norm_conversion():
    net = fastcnn.fuse(normed().eval(), fold_bn=True)
    expected = net(IMAGES)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    torch.testing.assert_close(converted(IMAGES), expected)


@pytest.mark.parametrize("name", NETS)
def test_isinstance_and_named_types(name):
    plain, net = NETS[name](), fastcnn.fuse(NETS[name]())
    for a, b in zip(net.modules(), plain.modules(), strict=True):
        assert isinstance(a, type(b))
        assert type(a).__name__ == type(b).__name__
        assert type(a).__module__ == type(b).__module__
        assert type(a).__doc__ == type(b).__doc__
        assert set(dir(b)) - set(dir(a)) == set()


class ChildrenOfOneClass(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Inner(), Inner()
        self.b.conv = nn.Conv2d(6, 6, 3)

    def forward(self, x):
        y = self.a(x)
        assert type(self.a) is type(self.b)
        return self.b(y)


def test_type_of_children_stays_equal():
    plain, net = build(ChildrenOfOneClass), fastcnn.fuse(build(ChildrenOfOneClass))
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))
