"""Stand-ins for modules while a forward is traced: what it reads is noted, what it would change refused."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from torch import nn

from . import purity
from .guard import MISSING, written

_INTERNAL = frozenset(vars(nn.Module())) - {"training", "_modules"}


class StandIn:
    """A module in a trace; path: its name in the one whose forward is traced."""

    __slots__ = ("_fastcnn_module", "_fastcnn_path", "_fastcnn_trace")

    def __init__(self, trace: Any, m: nn.Module, path: str) -> None:
        for name, value in zip(StandIn.__slots__, (m, path, trace), strict=True):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        trace, m, path = self._fastcnn_trace, self._fastcnn_module, self._fastcnn_path
        guard = trace.guard
        if name == "training":
            guard.entry(m, "", name, trace.training)
            return trace.training
        if path:
            guard.child(trace.m, path)
        if name in m._modules and not hasattr(written(type(m)), name):
            trace.looks[m, name] += 1
            if m._modules[name] is None:
                guard.entry(m, "_modules", name, None)
            return _child(self, name, m._modules[name])
        if name == "_modules":
            guard.size(m._modules, len(m._modules), "a layer was added or removed")
            for key, child in m._modules.items():
                if not key.isdigit():  # a name may make a difference
                    guard.entry(m, "_modules", key, child)
            return {key: _child(self, key, child) for key, child in m._modules.items()}
        for tensors in ("_parameters", "_buffers"):
            if name in vars(m)[tensors]:
                return trace.tensor(m, tensors, f"{path}.{name}".lstrip("."))
        if name in vars(m) and name not in _INTERNAL:
            _require_same(self, name)
            guard.entry(m, "", name, vars(m)[name])
            return trace.seen(name, vars(m)[name])
        return _of_class(self, m, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._fastcnn_trace.refuse(f"changes {name}")

    __delattr__ = __setattr__  # type: ignore[assignment]

    @property
    def __class__(self) -> Any:
        path, trace = self._fastcnn_path, self._fastcnn_trace
        if path:  # isinstance asks
            parent, _, name = path.rpartition(".")
            trace.looks[trace.m.get_submodule(parent), name] += 1
        return written(type(self._fastcnn_module))

    @__class__.setter
    def __class__(self, cls: Any) -> None:
        self._fastcnn_trace.refuse("changes a module's class")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._fastcnn_trace.call(self, self._fastcnn_module, self._fastcnn_path, args, kwargs)

    def __bool__(self) -> bool:
        return not hasattr(written(type(self._fastcnn_module)), "__len__") or len(self) > 0


def _child(parent: StandIn, name: str, m: nn.Module | None) -> StandIn | None:
    if m is None:
        return None
    trace, path = parent._fastcnn_trace, f"{parent._fastcnn_path}.{name}".lstrip(".")
    stand_in: StandIn = trace.stand_in(m, path)
    if stand_in._fastcnn_path != path:  # one module under two names, which must stay one
        trace.guard.child(trace.m, path)
        trace.guard.child(trace.m, stand_in._fastcnn_path)
    return stand_in


def _require_same(self: StandIn, name: str) -> None:
    """Refuses to read an attribute of a module whose call, in the same forward, may set it."""
    trace, m = self._fastcnn_trace, self._fastcnn_module
    if m is not trace.m and (id(m), trace.training) in trace.traces.opaque:
        trace.refuse(f"reads {name} of a module that may have changed it")


def _of_class(self: StandIn, m: nn.Module, name: str) -> Any:
    """Returns what an attribute of the module's class is to the stand-in."""
    trace, cls = self._fastcnn_trace, written(type(m))
    found = next((vars(c)[name] for c in cls.__mro__ if name in vars(c)), MISSING)
    if name in _INTERNAL or (found is MISSING and cls.__getattr__ is not nn.Module.__getattr__):
        trace.refuse(f"looks at {name}")
    trace.guard.entry(m, "", name, MISSING)
    if not isinstance(found, (FunctionType, staticmethod, classmethod, property)):
        _require_same(self, name)
    if found is MISSING:
        for container in (m._modules, m._parameters, m._buffers):
            trace.guard.size(container, len(container), "a layer or parameter was added or removed")
        raise AttributeError(f"{cls.__name__!r} object has no attribute {name!r}")
    trace.guard.shared(cls, name)
    if isinstance(found, (FunctionType, staticmethod, classmethod, property)):
        purity.check_definitions(cls, name)
        return found.__get__(self, cls)
    if hasattr(found, "__get__") and not isinstance(found, type):
        trace.refuse(f"looks at {name}")
    return trace.seen(name, found)


def _special(name: str) -> Any:
    return lambda self, *args: StandIn.__getattr__(self, name)(*args)


for _name in ("__iter__", "__len__", "__getitem__", "__contains__", "__dir__"):
    setattr(StandIn, _name, _special(_name))
