"""Modules whose classes use what Python's data model offers."""

import abc
import functools

import torch
from forwards import Base
from torch import nn
from torch.nn import functional as F


class Doubling(nn.ReLU):
    def __call__(self, x):
        return super().__call__(x) * 2


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
    torch.default_generator.manual_seed(seed)
    return kind()


COPIED = [k for k in CLASSES if k not in {Itself, Parented, ForwardAttribute, ForwardSwitched, Slots}]


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
