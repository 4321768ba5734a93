"""A module that runs a fused forward while that gives what its own would give, and its own otherwise."""

from __future__ import annotations

import abc
import collections
import copy
import copyreg
import functools
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.nn.modules import module as torch_module

from .. import small
from . import chains
from .chains import described
from .depends import Dependencies, dependencies, written
from .trace import Traces, module_of, required
from .values import Untraceable

_MISSING = object()


@dataclass(frozen=True)
class Fused:
    """A forward with its chains as single calls, in one mode.

    Attributes:
        run: the forward; its first argument is the module.
        arguments: names of those that it takes.
        defaults: values of those that it was traced with.
        chains: for each, the kinds of its parts and the calls that they were.
        left: calls that one may have looked for in a chain, and why they are in none.
        depends: what it depends on.
    """

    run: Callable[..., Any]
    arguments: list[str]
    defaults: dict[str, Any]
    chains: list[tuple[tuple[str, ...], list[str]]]
    left: list[tuple[str, str]]
    depends: Dependencies

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        """The tensors of a call in order; None for a call that it was not traced for."""
        if len(args) > len(self.arguments):
            spare = zip(args[len(self.arguments) :], self.defaults.values(), strict=False)
            if len(args) > len(self.arguments) + len(self.defaults) or any(a is not d for a, d in spare):
                return None
            args = args[: len(self.arguments)]
        given = dict(zip(self.arguments, args, strict=False)) | kwargs
        tensors = tuple(given.pop(name, None) for name in self.arguments)
        as_traced = all(self.defaults.get(name, _MISSING) is value for name, value in given.items())
        return tensors if as_traced and all(isinstance(t, Tensor) for t in tensors) else None


def fused(m: nn.Module, traces: Traces, training: bool, fold_bn: bool) -> Fused:
    """The module's forward with its chains replaced.

    Raises:
        Untraceable: its forward is more than a graph says.
    """
    graph, get = Graph(), module_of(m)
    graph.output(graph.graph_copy(traces.get(m, training).graph, {}))
    _check_names(m, graph)
    found, left = chains.find(graph, get, fold_bn and not training)
    rows = [(chain.kinds, [described(node) for node in chain.nodes]) for chain in found]
    left_rows = [(described(node), reason) for node, reason in left]
    layers = [get(node) for chain in found for node in chain.nodes]
    holders = [m.get_submodule(name) for name in sorted(_prefixes(graph))]
    through = [holder for holder in holders if traces.looks_through(holder, training)]
    reads = [read for x in (m, *through) for read in traces.get(x, training).reads.found.values()]
    constants: dict[str, Any] = {}
    for chain in reversed(found):  # so that an input that is itself replaced is replaced in the call too
        chains.replace(graph, chain, get, constants)
    return Fused(
        _compiled(graph, constants),
        required(m),
        _defaults(m),
        rows,
        left_rows,
        dependencies(m, [layer for layer in layers if layer is not None], through, reads),
    )


def _check_names(m: nn.Module, graph: Graph) -> None:
    """Refuse a tensor of two names: a graph has one of them, which may come to be another's."""
    named = (*m.named_parameters(remove_duplicate=False), *m.named_buffers(remove_duplicate=False))
    count = collections.Counter(id(t) for _, t in named)
    tied = {name for name, t in named if count[id(t)] > 1}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in tied:
            raise Untraceable(f"{node.target} has more than one name")


def _prefixes(graph: Graph) -> set[str]:
    """The modules that the modules which are called are in."""
    steps = [str(node.target).split(".")[:-1] for node in graph.nodes if node.op == "call_module"]
    return {".".join(path[: i + 1]) for path in steps for i in range(len(path))}


def _defaults(m: nn.Module) -> dict[str, Any]:
    parameters = list(inspect.signature(written(type(m)).forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _compiled(graph: Graph, constants: dict[str, Any]) -> Callable[..., Any]:
    code = graph.python_code("self")
    names = {**code.globals, **constants}
    exec(compile(code.src, "<fastcnn.fuse>", "exec"), names)
    return names["forward"]


class Fusion:
    """What fuse made of a module, in evaluation and in training; for a pickled one made at its first call."""

    def __init__(self, fold_bn: bool) -> None:
        self.fold_bn = fold_bn
        self.forwards: dict[bool, Fused | str] = {}
        self.owner = 0  # its module's id: a copy that shares its attributes is another

    def __reduce__(self) -> tuple[Any, ...]:
        return Fusion, (self.fold_bn,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Fusion:
        other = memo[id(self)] = Fusion(self.fold_bn)
        if self.owner in memo:
            other.forwards, other.owner = copy.deepcopy(self.forwards, memo), id(memo[self.owner])
        return other

    def make(self, m: nn.Module, traces: Traces) -> None:
        forwards: dict[bool, Fused | str] = {}
        for training in (False, True):
            try:
                _check_class(type(m))
                forwards[training] = fused(m, traces, training, self.fold_bn)
            except Untraceable as reason:
                forwards[training] = str(reason)
        self.forwards, self.owner = forwards, id(m)

    @property
    def useful(self) -> bool:
        return any(isinstance(f, Fused) and f.chains for f in self.forwards.values())


def _check_class(cls: Any) -> None:
    """Refuse a class of which a subclass would not be all the same."""
    own = [name for c in written(cls).__mro__[:-1] for name in vars(c)]
    if "__init_subclass__" in own or type(cls) not in (type, abc.ABCMeta):
        raise Untraceable("its class keeps track of subclasses")
    if {"__reduce__", "__reduce_ex__"} & set(own):
        raise Untraceable("its class pickles in its own way")


_making = threading.Lock()


def fusion_of(m: Any) -> Fusion | None:
    """What fuse made of the module, if it did."""
    return getattr(m, "_fastcnn_fusion", None)


def install(m: Any, fusion: Fusion) -> None:
    own: Any = type(m)
    cls = class_of(own)
    vars(m)["_fastcnn_fusion"] = fusion
    m.__class__ = cls


def remove(m: Any) -> None:
    """Make the module's class its own again, unless another was derived from it since."""
    vars(m).pop("_fastcnn_fusion", None)
    own: Any = m._fastcnn_written
    if type(m) is class_of(own):
        m.__class__ = own


def _guarded(fusion: Fusion, m: nn.Module) -> bool:
    """What torch.compile has to watch, by reading it; whether m is usable it asks only when it compiles."""
    depends = fusion.forwards[m.training].depends  # type: ignore[union-attr]
    same = fusion.owner == id(m) and all(getattr(x, name) == value for x, name, value in depends.plain)
    return same and all(getattr(parent, name) is child for parent, name, child, _ in depends.children)


def _has_global_hooks() -> bool:
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


class FusedModule:
    """Mixed into the class of a module that is fused; ``_fastcnn_forward`` is its own forward."""

    _fastcnn_written: type[nn.Module]
    _fastcnn_fusion: Fusion | None = None

    def _fastcnn_usable(self: Any) -> bool:
        """Whether there is a fused forward for the module's mode, and the module is as it was fused."""
        fusion = self._fastcnn_fusion
        if fusion is None or fusion.owner != id(self) or _has_global_hooks():
            return False
        forward = fusion.forwards.get(self.training)
        if not isinstance(forward, Fused) or any(m.training != self.training for m in forward.depends.moded):
            return False
        return forward.depends.changed() is None

    # torch.compiler.assume_constant_result, which would import all of the compiler to say so. A method, since
    # torch 2.11 takes no module as the argument of such a function.
    _fastcnn_usable._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        if reduced[0] is copyreg.__newobj__ and reduced[1][0] is type(self):  # type: ignore[attr-defined]
            return _new, (self._fastcnn_written, *reduced[1][1:]), *reduced[2:]
        return reduced


def _new(cls: Any, *arguments: Any) -> nn.Module:
    other = class_of(cls)
    return other.__new__(other, *arguments)


@functools.cache
def class_of(cls: Any) -> type[nn.Module]:
    """A class of the same name with the fused forward."""
    is_sequence = cls.forward is nn.Sequential.forward

    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        _make_pickled(self)
        if is_sequence and len(args) == 1 and not kwargs and self._fastcnn_fusion is not None:
            y = small.run(self, args[0], small.sequence)
            if y is not None:
                return y
        if not self._fastcnn_usable():
            return cls.forward(self, *args, **kwargs)
        fused = self._fastcnn_fusion.forwards[self.training]
        tensors = fused.bound(args, kwargs)
        if tensors is None or (torch.compiler.is_compiling() and not _guarded(self._fastcnn_fusion, self)):
            return cls.forward(self, *args, **kwargs)
        return fused.run(self, *tensors)

    # torch.compile counts recompilations by code object: each class has one, as classes do.
    forward.__code__ = forward.__code__.replace()  # type: ignore[attr-defined]
    own = {"forward": forward, "_fastcnn_forward": cls.forward, "_fastcnn_written": cls}
    own |= {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls)(cls.__name__, (FusedModule, cls), own)


def _make_pickled(m: Any) -> None:
    fusion = fusion_of(m)
    if fusion is not None and not fusion.forwards and not torch.compiler.is_compiling():
        with _making:
            if not fusion.forwards:
                fusion.make(m, Traces())
