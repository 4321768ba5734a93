"""A module's forward as a graph, if a graph says all of what it does.

torch.fx follows values, not Python: what else a forward does, or decides, is lost without a word. Here such a
forward is refused, with the reason.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node, Tracer

from .._plain import GroupedLRN
from ..nn import ConvBlock2d, LocalResponseNorm, MaxPool2d
from .kinds import Part, customised, part_of

# Layers of fastcnn's, whose forward is a block already.
OWN = (ConvBlock2d, GroupedLRN, LocalResponseNorm, MaxPool2d)


class Untraceable(Exception):
    """Why a forward is left as it is written."""


class Traces:
    """Graphs of modules' forwards, each made once for training and once for evaluation."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, bool], Graph | Untraceable] = {}
        self._looked_through: dict[tuple[int, bool], bool] = {}

    def graph(self, m: nn.Module, training: bool) -> Graph:
        """Its calls of other modules are nodes, but for modules that are looked through.

        Raises:
            Untraceable: a graph would not do the same.
        """
        key = (id(m), training)
        if key not in self._made:
            try:
                self._made[key] = self._trace(m, training)
            except Untraceable as reason:
                self._made[key] = reason
        made = self._made[key]
        if isinstance(made, Untraceable):
            raise made
        return made

    def _trace(self, m: nn.Module, training: bool) -> Graph:
        for child in list(m.modules())[:0:-1]:  # before, since tracing is not made to be nested
            self.looks_through(child, training)
        tracer = _Tracer(lambda child: self.looks_through(child, training))
        tracer.traced_func_name = "as_written" if hasattr(m, "as_written") else "forward"
        try:
            with _modes_set(m, training), _unchanged(m):
                return tracer.trace(m)
        except Untraceable:
            raise
        except Exception as error:  # whatever a forward may raise on values that stand for tensors
            raise Untraceable(str(error).partition("\n")[0] or type(error).__name__) from error

    def looks_through(self, m: nn.Module, training: bool) -> bool:
        """Whether a module's forward is nothing but parts of a block, one after another."""
        if isinstance(m, OWN) or customised(m) or Tracer().is_leaf_module(m, ""):
            return False
        key = (id(m), training)
        if key not in self._looked_through:
            self._looked_through[key] = False  # also while it is being found out
            with contextlib.suppress(Untraceable):
                self._looked_through[key] = _is_line(self.graph(m, training), m)
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
    """The arguments of forward that have no default."""
    forward = getattr(type(m), "as_written", type(m).forward)
    names = []
    for name, parameter in list(inspect.signature(forward).parameters.items())[1:]:
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise Untraceable(f"forward's argument {name} can't be given by position")
        if parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_ONLY,
            parameter.POSITIONAL_OR_KEYWORD,
        ):
            names.append(name)
    return names


class _Tracer(Tracer):
    def __init__(self, looks_through: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.looks_through, self.modes = looks_through, _modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.looks_through(m)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """The arguments without a default stand for tensors; the others keep theirs."""
        names = required(self.root)
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        if _modes() != self.modes:
            raise Untraceable("forward switches gradients, autocast or the like on or off")
        return super().create_node(*args, **kwargs)


def _modes() -> tuple[Any, ...]:
    devices = ("cpu", "cuda")
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch._C._autograd._top_saved_tensors_default_hooks(False),
        *(torch.is_autocast_enabled(device) for device in devices),
    )


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


@contextlib.contextmanager
def _unchanged(m: nn.Module) -> Iterator[None]:
    """Undo what is done to m's attributes and to random generators, and refuse it."""
    before = [(child, _contents(child)) for child in m.modules()]
    generators = _generators()
    try:
        yield
    finally:
        changed = [name for child, attributes in before for name in _restore(child, attributes)]
        drawn = _generators() != generators
    if changed:
        constant = changed[0].startswith("_tensor_constant")
        raise Untraceable(f"forward {'makes a constant tensor' if constant else f'changes {changed[0]}'}")
    if drawn:
        raise Untraceable("forward draws random numbers")


def _contents(m: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Attributes, and copies of those that are containers."""
    kinds = (dict, list, set)
    return {name: (v, v.copy() if isinstance(v, kinds) else None) for name, v in vars(m).items()}


def _restore(m: nn.Module, before: dict[str, tuple[Any, Any]]) -> list[str]:
    """Names of the attributes that are not what they were, and now are again."""
    changed = [name for name in vars(m) if name not in before]
    for name in changed:
        del vars(m)[name]
    for name, (value, contents) in before.items():
        same = name in vars(m) and vars(m)[name] is value
        vars(m)[name] = value
        if contents is not None and not _alike(value, contents):
            same = False
            value.clear()
            value.extend(contents) if isinstance(value, list) else value.update(contents)
        if not same:
            changed.append(name)
    return changed


def _alike(a: Any, b: Any) -> bool:
    """Whether containers hold the same objects."""
    if isinstance(a, dict):
        a, b = [x for item in a.items() for x in item], [x for item in b.items() for x in item]
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _generators() -> list[Any]:
    states: list[Any] = [random.getstate(), torch.get_rng_state().tolist()]
    if "numpy" in sys.modules:
        states.append(str(sys.modules["numpy"].random.get_state()))
    return states
