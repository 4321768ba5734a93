"""The state that a fused forward depends on: while it is the same, so is the module's own forward."""

from __future__ import annotations

import enum
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.lazy import LazyModuleMixin

from .. import _native, small

MISSING = object()
_PLAIN = (bool, int, float, str, tuple, type(None))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = [getattr(torch_module, f"_global{name}") for name in _HOOKS]
_FORWARDS = ("forward", "_conv_forward")


class Guard:
    """What was read of modules, each with the value that it had; objects are compared by identity."""

    def __init__(self) -> None:
        # Module, container ("_modules", "_parameters"; "" for its attributes), name, value or MISSING.
        self.entries: dict[tuple[int, str, str], tuple[nn.Module, str, str, Any]] = {}
        self.shared: dict[tuple[Any, str], Any] = {}  # attributes of classes
        self.sizes: dict[int, tuple[Any, int]] = {}  # of containers
        self.passed: dict[int, tuple[nn.Module, type]] = {}  # modules whose own calls are passed over
        self.contents: list[tuple[str, Any, Any]] = []  # names, containers, and copies of what these held
        self._watch: Any = None

    def update(self, other: Guard) -> None:
        for name in ("entries", "shared", "sizes", "passed"):
            vars(self)[name].update(vars(other)[name])
        self.contents.extend(other.contents)

    def entry(self, m: nn.Module, container: str, name: str, value: Any) -> None:
        self.entries[id(m), container, name] = m, container, name, value

    def value(self, m: nn.Module, name: str, value: Any) -> None:
        """Notes an attribute, and what it holds."""
        self.entry(m, "", name, value)
        if isinstance(value, (list, dict, set)) or is_record(value):
            self.contents.append((name, value, held(value)))

    def size(self, container: Any) -> None:
        self.sizes[id(container)] = container, len(container)

    def passes(self, m: nn.Module, *settings: str) -> None:
        """Notes a module that is not called, and the attributes from which its work is known."""
        self.passed[id(m)] = m, written(type(m))
        for name in settings:
            self.value(m, name, getattr(m, name))

    def holds(self) -> bool:
        if self._watch is None or not self._watch.holds():
            if self.changed() is not None:
                return False
            self._watch = self._watched()
        return not self.contents or all(held(now) == then for _, now, then in self.contents)

    def _watched(self) -> Any:
        """Returns C++'s look at all but the contents, some 20 ns each; None without the extension."""
        if _native.missing_reason():
            return None
        watch = _native.load().Watch(small.torchs())
        for m, container, name, value in self.entries.values():
            where = _dictionary(m, container)
            watch.absent(where, name) if value is MISSING else watch.entry(where, name, value)
        for (cls, name), value in self.shared.items():
            watch.attribute(cls, name, value)
        for m, _ in self.passed.values():
            watch.type(m)
            for name in _FORWARDS:
                watch.absent(vars(m), name)
        containers = [container for container, _ in self.sizes.values()]
        hooks = [getattr(m, name) for m, _ in self.passed.values() for name in _HOOKS]
        for container in (*containers, *hooks, *_GLOBAL_HOOKS):
            watch.size(container)
        return watch

    def changed(self) -> str | None:
        """Returns what is no longer as it was."""
        for m, cls in self.passed.values():
            if written(type(m)) is not cls:
                return f"a {cls.__name__} has become a {type(m).__name__}"
            if (reason := customised(m)) is not None:
                return f"{type(m).__name__} {reason}"
        for m, container, name, value in self.entries.values():
            if _dictionary(m, container).get(name, MISSING) is not value:
                return f"{name} has changed"
        for (cls, name), value in self.shared.items():
            if getattr(cls, name, MISSING) is not value:
                return f"{cls.__name__}.{name} has changed"
        if any(len(container) != size for container, size in self.sizes.values()):
            return "a layer or parameter was added or removed"
        for name, now, then in self.contents:
            if held(now) != then:
                return f"{name} has changed"
        return "there are global hooks" if any(_GLOBAL_HOOKS) else None

    def holds_compiled(self) -> bool:
        """Returns whether plain attributes and children are the same, which torch.compile then watches."""
        plain = [e for e in self.entries.values() if isinstance(e[3], (*_PLAIN, nn.Module))]
        return all(getattr(m, name) == value for m, _, name, value in plain)


def _dictionary(m: nn.Module, container: str) -> dict[str, Any]:
    return vars(m)[container] if container else vars(m)


def written(cls: Any) -> Any:
    """Returns a module's class, before it was fused."""
    return getattr(cls, "_fastcnn_written", cls)


def customised(m: nn.Module) -> str | None:
    """Returns what was hung on a module, so that calling it is more than its class's forward."""
    own = isinstance(m, LazyModuleMixin) and m.has_uninitialized_params()  # a hook that makes parameters
    if sum(len(getattr(m, name)) for name in _HOOKS) > own:
        return "has hooks"
    return "has a forward of its own" if any(name in vars(m) for name in _FORWARDS) else None


def held(value: Any) -> Any:
    """Returns a copy of what a container or a record holds."""
    return dict(vars(value)) if is_record(value) else value.copy()


def is_record(value: Any) -> bool:
    """Returns whether an object holds plain values, and has no methods."""
    if callable(value) or isinstance(value, enum.Enum) or not hasattr(value, "__dict__"):
        return False
    if any(name[:2] != "__" and callable(v) for c in type(value).__mro__ for name, v in vars(c).items()):
        return False
    return all(isinstance(v, _PLAIN) for v in vars(value).values())
