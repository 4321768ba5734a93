"""A module that runs a fused forward while that gives what its own would give, and its own otherwise."""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from . import chains
from .chains import described
from .kinds import customised
from .trace import Traces, Untraceable, module_of, required

_Plain = (bool, int, float, str, tuple, type(None))


@dataclass(frozen=True)
class Fused:
    """A forward with its chains as single calls, in one mode.

    Attributes:
        run: the forward; its first argument is the module.
        arguments: names of those that it takes.
        chains: for each, the kinds of its parts and the calls that they were.
        left: calls that one may have looked for in a chain, and why they are in none.
        children: (parent, name, module) of what is looked through or no longer called.
        moded: of these, those whose own training flag the forward depends on.
        values: (module, name, value) of attributes that the forward depends on.
        layouts: modules whose children's names matter, or which parameters are None, with these.
    """

    run: Callable[..., Any]
    arguments: list[str]
    chains: list[tuple[tuple[str, ...], list[str]]]
    left: list[tuple[str, str]]
    children: list[tuple[nn.Module, str, nn.Module]]
    moded: list[nn.Module]
    values: list[tuple[nn.Module, str, Any]]
    layouts: list[tuple[nn.Module, Any]]

    def changed(self) -> str | None:
        """What makes it another forward than the module's own."""
        for parent, name, child in self.children:
            if parent._modules.get(name) is not child:
                return f"{name} has been replaced"
            reason = customised(child)
            if reason is not None:
                return f"{name} {reason}"
        for m, name, value in self.values:
            now = vars(m).get(name, self)
            if now is not value and now != value:
                return f"{name} is now {now!r}"
        for m, layout in self.layouts:
            if _layout(m) != layout:
                return f"a layer or parameter of {type(m).__name__} was added or removed"
        return None


def fused(m: nn.Module, traces: Traces, training: bool, fold_bn: bool) -> Fused:
    """The module's forward with its chains replaced.

    Raises:
        Untraceable: its forward is more than a graph says.
    """
    graph, get = Graph(), module_of(m)
    graph.output(graph.graph_copy(traces.graph(m, training), {}))
    found, left = chains.find(graph, get, fold_bn and not training)
    bypassed = [node for chain in found for node in chain.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in bypassed]
    norms = [get(node) for node in bypassed if type(get(node)) is nn.BatchNorm2d]
    rows = [(chain.kinds, [described(node) for node in chain.nodes]) for chain in found]
    constants: dict[str, Any] = {}
    for chain in reversed(found):  # so that an input that is itself replaced is replaced in the call too
        chains.replace(graph, chain, get, constants)
    called = {str(n.target) for n in graph.nodes if n.op == "call_module"}
    inner = {name for target in (*targets, *called) for name in _prefixes(target)}
    seen = {name: m.get_submodule(name) for name in sorted({*targets, *inner})}
    through = [seen[name] for name in sorted(inner) if traces.looks_through(seen[name], training)]
    holders = [child for child in m.modules() if isinstance(child, (nn.ModuleList, nn.ModuleDict))]
    watched = [m, *through, *(seen[name] for name in targets)]
    return Fused(
        _compiled(graph, constants),
        required(m),
        rows,
        [(described(node), reason) for node, reason in left],
        [(m.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], seen[name]) for name in seen],
        [*through, *(norm for norm in norms if norm is not None)],
        [
            (w, name, value)
            for w in watched
            for name, value in vars(w).items()
            if isinstance(value, _Plain) and name != "training"
        ],
        [(w, _layout(w)) for w in (*watched, *holders)],
    )


def _layout(m: nn.Module) -> tuple[Any, ...]:
    """The names of its children, and of its parameters that are None."""
    return tuple(m._modules), tuple(name for name, p in m._parameters.items() if p is None)


def _prefixes(target: str) -> list[str]:
    """The modules that a module is in."""
    steps = target.split(".")[:-1]
    return [".".join(steps[: i + 1]) for i in range(len(steps))]


def _compiled(graph: Graph, constants: dict[str, Any]) -> Callable[..., Any]:
    code = graph.python_code("self")
    names = {**code.globals, **constants}
    exec(compile(code.src, "<fastcnn.fuse>", "exec"), names)
    return names["forward"]


class Fusion:
    """What fuse made of a module, for evaluation and for training; written anew from it when unpickled."""

    def __init__(self, fold_bn: bool) -> None:
        self.fold_bn = fold_bn
        self.forwards: dict[bool, Fused | str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Fusion, (self.fold_bn,)

    def make(self, m: nn.Module, traces: Traces) -> None:
        for training in (False, True):
            try:
                self.forwards[training] = fused(m, traces, training, self.fold_bn)
            except Untraceable as reason:
                self.forwards[training] = str(reason)

    @property
    def useful(self) -> bool:
        return any(isinstance(f, Fused) and f.chains for f in self.forwards.values())


@torch.compiler.assume_constant_result
def usable(m: Any) -> bool:
    """Whether the module is as it was fused, in its mode."""
    forward = m.fusion.forwards[m.training]
    if isinstance(forward, str):
        return False
    return forward.changed() is None and all(child.training == m.training for child in forward.moded)


class FusedModule:
    """Mixed into the class of a module that is fused; ``as_written`` is its own forward."""

    fusion: Fusion
    written: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        if reduced[0] is copyreg.__newobj__ and reduced[1][0] is type(self):  # type: ignore[attr-defined]
            return _new, (self.written, *reduced[1][1:]), *reduced[2:]
        return reduced

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self.fusion.make(self, Traces())  # type: ignore[arg-type]


def _new(written: Any, *arguments: Any) -> nn.Module:
    cls = class_of(written)
    return cls.__new__(cls, *arguments)


@functools.cache
def class_of(written: Any) -> type[nn.Module]:
    """A class of the same name with the fused forward."""

    @functools.wraps(written.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs or not usable(self):
            return written.forward(self, *args, **kwargs)
        fused = self.fusion.forwards[self.training]
        if len(args) != len(fused.arguments) or not all(isinstance(a, Tensor) for a in args):
            return written.forward(self, *args)
        return fused.run(self, *args)

    # torch.compile counts recompilations by code object: each class has one, as classes do.
    forward.__code__ = forward.__code__.replace()  # type: ignore[attr-defined]
    own = {"forward": forward, "as_written": written.forward, "written": written}
    own |= {name: getattr(written, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(written.__name__, (FusedModule, written), own)
