"""The state that a fused forward depends on: while it is the same, so is the module's own forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from .. import _native, small
from .._torch_private import global_hooks
from .values import Untraceable

MISSING = object()
_PLAIN = (bool, int, float, str, tuple, type(None))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_FORWARDS = ("forward", "_conv_forward")  # in a module's own attributes


class Guard:
    """The attributes that were read from modules, with their values; objects are compared by identity.

    Attributes:
        passed: modules whose own calls are passed over.
    """

    def __init__(self) -> None:
        # By what is looked at: how, which is a method of C++'s Watch, at what, and what it means if it fails.
        self.checks: dict[Any, tuple[str, tuple[Any, ...], str]] = {}
        self.contents: list[tuple[str, Any, Any]] = []  # names, containers, and copies of what these held
        self.plain: dict[Any, tuple[nn.Module, str, Any]] = {}  # what torch.compile can watch
        self.passed: dict[int, nn.Module] = {}
        self._watch: Callable[[], bool] | None = None
        for hooks in global_hooks:
            if hooks is None:
                raise Untraceable("this torch does not tell whether there are global hooks")
            self.size(hooks, 0, "there are global hooks")

    def update(self, other: Guard) -> None:
        for name in ("checks", "plain", "passed"):
            vars(self)[name].update(vars(other)[name])
        self.contents.extend(other.contents)

    def entry(self, m: nn.Module, container: str, name: str, value: Any) -> None:
        """Notes an attribute, or what a container has under a name ("_modules"); MISSING: there is none."""
        key, where = (id(m), container, name), vars(m)[container] if container else vars(m)
        how = ("absent", (where, name)) if value is MISSING else ("entry", (where, name, value))
        self.checks[key] = *how, f"{name} has changed"
        if isinstance(value, (*_PLAIN, nn.Module)):
            self.plain[key] = m, name, value

    def child(self, root: nn.Module, path: str) -> None:
        """Notes that a module is where it is."""
        parent, _, name = path.rpartition(".")
        self.entry(root.get_submodule(parent), "_modules", name, root.get_submodule(path))

    def value(self, m: nn.Module, name: str, value: Any) -> None:
        """Notes an attribute, and what it holds."""
        self.entry(m, "", name, value)
        if isinstance(value, (list, dict, set)) or is_record(value):
            self.contents.append((name, value, held(value)))

    def shared(self, cls: Any, name: str) -> None:
        """Notes an attribute of a class."""
        self.checks[cls, name] = (
            "attribute",
            (cls, name, getattr(cls, name)),
            f"{cls.__name__}.{name} has changed",
        )

    def size(self, container: Any, size: int, why: str) -> None:
        self.checks[id(container)] = "size", (container, size), why

    def passes(self, m: nn.Module, *settings: str) -> None:
        """Notes a module that is not called, and the attributes from which its work is known."""
        self.passed[id(m)], name = m, type(m).__name__
        self.checks[id(m)] = "type", (m, written(type(m))), f"{name} is of another class"
        for hooks in _HOOKS:
            self.size(getattr(m, hooks), len(getattr(m, hooks)), f"{name} has hooks")
        for forward in _FORWARDS:
            self.checks[id(m), forward] = "absent", (vars(m), forward), f"{name} has a forward of its own"
        for setting in settings:
            self.value(m, setting, getattr(m, setting))

    def holds(self) -> bool:
        """Returns whether all is the same: C++ looks, where the extension is there."""
        if self._watch is None:  # set once it is whole: other threads may call this, too
            in_python = _native.missing_reason() or small.torchs() is None
            self._watch = (lambda: self.changed() is None) if in_python else self._watched()
        same = self._watch()
        return same and (not self.contents or all(held(now) == then for _, now, then in self.contents))

    def _watched(self) -> Callable[[], bool]:
        watch = _native.load().Watch(small.torchs())
        for how, at, _ in self.checks.values():
            if how == "type" and _HOLDS[how](*at):
                at = at[0], type(at[0])  # the class that it has now that it may be fused, too
            getattr(watch, how)(*at)
        return watch.holds

    def changed(self) -> str | None:
        """Returns what is no longer as it was."""
        for how, at, why in self.checks.values():
            if not _HOLDS[how](*at):
                return why
        return next((f"{name} has changed" for name, now, then in self.contents if held(now) != then), None)

    def holds_compiled(self) -> bool:
        """Returns whether plain attributes and children are the same, which torch.compile then watches."""
        return all(getattr(m, name) == value for m, name, value in self.plain.values())


_HOLDS: dict[str, Any] = {
    "entry": lambda where, name, value: where.get(name, MISSING) is value,
    "absent": lambda where, name: name not in where,
    "attribute": lambda owner, name, value: getattr(owner, name, MISSING) is value,
    "size": lambda container, size: len(container) == size,
    "type": lambda m, cls: written(type(m)) is cls,
}


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
    if callable(value) or not hasattr(value, "__dict__"):
        return False
    if any(name[:2] != "__" and callable(v) for c in type(value).__mro__ for name, v in vars(c).items()):
        return False
    return all(isinstance(v, _PLAIN) for v in vars(value).values())
