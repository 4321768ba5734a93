"""A module's forward as a graph, if a graph says all of what it does.

torch.fx follows values, not Python: what else a forward does, or decides, is lost without a word. Here such a
forward is refused, with the reason.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, Node, Proxy, Tracer

from .._plain import GroupedLRN
from ..nn import ConvBlock2d, LocalResponseNorm, MaxPool2d
from .depends import written
from .kinds import Part, customised, part_of
from .values import Untraceable, Value, ValueAttribute
from .watch import Reads, watching

# Layers of fastcnn's, whose forward is a block already.
OWN = (ConvBlock2d, GroupedLRN, LocalResponseNorm, MaxPool2d)


@dataclass(frozen=True)
class Trace:
    """The graph of a forward, and the attributes that it depends on."""

    graph: Graph
    reads: Reads


class Traces:
    """Modules' forwards, each traced once for training and once for evaluation."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, bool], Trace | Untraceable] = {}
        self._looked_through: dict[tuple[int, bool], bool] = {}

    def get(self, m: nn.Module, training: bool) -> Trace:
        """Calls of other modules are nodes, but for modules that are looked through.

        Raises:
            Untraceable: a graph would not do the same.
        """
        key = (id(m), training)
        if key not in self._made:
            try:
                self._made[key] = self._trace(m, training)
            except Untraceable as reason:
                self._made[key] = Untraceable(str(reason))
        made = self._made[key]
        if isinstance(made, Untraceable):
            raise made
        return made

    def _trace(self, m: nn.Module, training: bool) -> Trace:
        for child in list(m.modules())[:0:-1]:  # before, since tracing is not made to be nested
            self.looks_through(child, training)
        tracer = _Tracer(lambda child: self._looked_through.get((id(child), training), False))
        tracer.traced_func_name = "_fastcnn_forward" if hasattr(m, "_fastcnn_forward") else "forward"
        try:
            tracer.names = required(m)
            with _modes_set(m, training), watching(m) as reads:
                graph = tracer.trace(m)
        except Untraceable:
            raise
        except Exception as error:  # whatever a forward may raise on values that stand for tensors
            raise Untraceable(str(error).partition("\n")[0] or type(error).__name__) from error
        if tracer.failed is not None:
            raise tracer.failed
        for attribute in tracer.attributes:
            if attribute.unused:
                raise Untraceable(f"forward looks at a value's {attribute.attr}")
        return Trace(graph, reads)

    def looks_through(self, m: nn.Module, training: bool) -> bool:
        """Whether a module's forward is nothing but parts of a block, one after another."""
        key = (id(m), training)
        if key not in self._looked_through:
            self._looked_through[key] = False  # also while it is being found out
            if not (isinstance(m, OWN) or customised(m) or Tracer().is_leaf_module(m, "")):
                with contextlib.suppress(Untraceable):
                    self._looked_through[key] = _is_line(self.get(m, training).graph, m)
        return self._looked_through[key]


def module_of(root: nn.Module) -> Callable[[Node], nn.Module | None]:
    """What gives the module that a node of root's graph calls."""

    def get(node: Node) -> nn.Module | None:
        return root.get_submodule(str(node.target)) if node.op == "call_module" else None

    return get


def _is_line(graph: Graph, m: nn.Module) -> bool:
    first, *calls, output = graph.nodes
    previous = first
    for node in calls:
        part = part_of(node, module_of(m)(node))
        if not isinstance(part, Part) or node.all_input_nodes != [previous]:
            return False
        previous = node
    return bool(calls) and first.op == "placeholder" and output.args == (previous,)


def required(m: nn.Module) -> list[str]:
    """The arguments of forward that have no default.

    Raises:
        Untraceable: one of them has to be given by its name.
    """
    forward = written(type(m)).forward
    names = []
    for name, parameter in list(inspect.signature(forward).parameters.items())[1:]:
        if parameter.default is not parameter.empty:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY:
            raise Untraceable(f"forward's argument {name} can't be given by position")
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(name)
    return names


class _Tracer(Tracer):
    """torch.fx's, with values that refuse what can't be recorded."""

    proxy_buffer_attributes = True
    names: list[str]

    def __init__(self, looks_through: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.looks_through = looks_through
        self.failed: Untraceable | None = None
        self.attributes: list[ValueAttribute] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.looks_through(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if next(c for c in type(m).__mro__ if "__call__" in vars(c)) is not nn.Module:
            raise Untraceable(f"{type(m).__name__} is called in its own way")
        return super().call_module(m, forward, args, kwargs)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """The arguments without a default stand for tensors; the others keep theirs."""
        values = [self.create_proxy("placeholder", name, (), {}) for name in self.names]
        return root_fn, [self.root, *values]

    def create_arg(self, a: Any) -> Any:
        kind = type(a)
        exact = kind in (dict, list, tuple) or hasattr(kind, "_fields") or kind.__module__ == "torch"
        if issubclass(kind, (dict, list, tuple)) and not exact:
            raise Untraceable(f"forward makes a {kind.__name__}")
        return super().create_arg(a)

    def proxy(self, node: Node) -> Proxy:
        return Value(node, self)

    def to_bool(self, obj: Proxy) -> bool:
        raise self._fail("decides by a value")

    def iter(self, obj: Proxy) -> Iterator[Any]:
        raise self._fail("unpacks or goes through a value")

    def keys(self, obj: Proxy) -> Any:
        raise self._fail("goes through a value")

    def _fail(self, why: str) -> Untraceable:
        self.failed = Untraceable(f"forward {why}")
        return self.failed


@contextlib.contextmanager
def _modes_set(m: nn.Module, training: bool) -> Iterator[None]:
    """All of m in training, or in evaluation."""
    before = [(child, child.training) for child in m.modules()]
    try:
        for child, _ in before:
            child.training = training
        yield
    finally:
        for child, mode in before:
            child.training = mode
