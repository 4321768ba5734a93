"""A module that runs a fused forward while that gives what its own would give, and its own otherwise."""

from __future__ import annotations

import abc
import copy
import copyreg
import functools
import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn.parameter import is_lazy

from .. import small
from .._torch_private import assume_constant
from . import chains
from .guard import Guard, customised, written
from .runtime import Chain, LayerBlock
from .trace import Traces, is_layer
from .values import Untraceable

MODES = (False, True)  # evaluation, training


@dataclass(frozen=True)
class Fused:
    """A forward with its chains as single calls, in one mode.

    Attributes:
        run: the forward; its first two arguments are the module.
        names: of the tensors that it takes.
        chains: for each, the kinds of its parts and the calls that they were.
        calls: the same, as they are called now.
        folding: those with a batch norm, checked all at once before they run: between convolutions, which
            leave no cache to it, a check takes up to 9 us instead of 1. None where a call of the forward
            might write to weights.
        left: calls that one may have looked for in a chain, and why they are in none.
        depends: what it depends on.
        images: whether it is for (N, C, H, W) alone.
    """

    run: Callable[..., Any]
    names: list[str]
    chains: list[tuple[tuple[str, ...], list[str]]]
    calls: list[Chain]
    folding: list[LayerBlock]
    left: list[tuple[str, str]]
    depends: Guard
    images: bool

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        """Returns the tensors of a call in order; None for a call that it was not traced for."""
        if kwargs:
            rest = self.names[len(args) :]
            if kwargs.keys() != set(rest):
                return None
            args = *args, *(kwargs[name] for name in rest)
        if len(args) != len(self.names):
            return None
        for t in args:
            if not isinstance(t, Tensor) or (self.images and t.dim() != 4):
                return None
        return args


def fused(m: nn.Module, traces: Traces, training: bool, fold_bn: bool) -> Fused:
    """Returns the module's forward with its chains replaced.

    Raises:
        Untraceable: its forward is more than a graph says.
    """
    trace = traces.get(m, training)
    graph, guard = Graph(), Guard()
    graph.placeholder("root")  # the module, of which layers' calls and tensors are the function's self
    graph.output(graph.graph_copy(trace.graph, {}))
    guard.update(trace.guard)
    found, others = chains.find(graph, m, training, fold_bn)
    rows = [(chain.kinds, chain.calls) for chain in found]
    left_rows = [(chains.described(node), reason) for node, reason in trace.left + others]
    # The last first, so that an input that is itself replaced is replaced in the call too.
    calls = [chains.replace(graph, chain, m, training, guard) for chain in reversed(found)][::-1]
    for node in reversed(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    folding = _checked_before(graph, m, calls)
    if found:
        _shorten(graph)
    run = type(GraphModule(m, graph)).forward if found else written(type(m)).forward
    return Fused(run, trace.names, rows, calls, folding, left_rows, guard, trace.images)


def _shorten(graph: Graph) -> None:
    """Finds the modules that hold a layer or tensor in the containers' dictionaries, each once.

    As attributes, which nn.Module looks for last, each takes .7 us: a tenth of lcnet_050's 5 ms, since the
    path of a norm's weight has five names. The guard has checked the modules on the path. The last name is
    looked up as an attribute, since a function may have taken a layer's place.
    """
    known: dict[str, Node] = {"": next(iter(graph.nodes))}

    def at(path: str) -> Node:
        if path not in known:
            parent, _, name = path.rpartition(".")
            modules = graph.call_function(getattr, (at(parent), "_modules"))
            known[path] = graph.call_function(operator.getitem, (modules, name))
        return known[path]

    for node in list(graph.nodes):
        if node.op not in ("call_module", "get_attr"):
            continue
        parent, _, name = str(node.target).rpartition(".")
        with graph.inserting_before(node):
            if node.op == "call_module":
                new = graph.call_method(name, (at(parent), *node.args), node.kwargs)
            else:
                new = graph.call_function(getattr, (at(parent), name))
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _checked_before(graph: Graph, m: nn.Module, calls: Sequence[Chain]) -> list[LayerBlock]:
    """Returns the blocks whose folded weights are checked before the forward: no call in it writes to any."""
    layers = [m.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"]
    parts = [part for layer in layers for part in layer.modules()]
    if any(node.op == "get_attr" for node in graph.nodes) or not all(map(is_layer, parts)):
        return []
    if any(map(customised, parts)):
        return []
    found = [call for call in calls if isinstance(call, LayerBlock) and call.layers[1] is not None]
    for call in found:
        call.is_checked = True
    return found


class Fusion:
    """The fused forms of a module, made for each mode when first called.

    Attributes:
        is_inner: whether the module is a part of another's fused forward. Its own runs where it is called by
            itself, as by the other's forward as written once anything that this depends on has changed.
        left: numbers of the chains in evaluation that are slower, where they were timed.
        owner: the module's attributes; a copy of the module makes its own.
    """

    def __init__(self, fold_bn: bool, is_inner: bool = False, left: Sequence[int] = ()) -> None:
        self.fold_bn, self.is_inner, self.left = fold_bn, is_inner, left
        self.forwards: dict[bool, Fused | str] = {}
        self.owner: dict[str, Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        forward, left = self.forwards.get(False), self.left
        if isinstance(forward, Fused):
            left = [i for i, call in enumerate(forward.calls) if call.is_left]
        return Fusion, (self.fold_bn, self.is_inner, left)

    def forward(self, m: nn.Module, training: bool, traces: Traces | None = None) -> Fused | str:
        """Returns the fused forward in a mode, or why there is none."""
        if training not in self.forwards:
            with making:
                self.forwards[training] = self._made(m, training, traces or Traces())
                if not any(map(is_lazy, m.parameters())):  # or it is made again at each call
                    self.owner = vars(m)
        return self.forwards[training]

    def _made(self, m: nn.Module, training: bool, traces: Traces) -> Fused | str:
        try:
            if (reason := _why_no_subclass(written(type(m)))) is not None:
                return reason
            made = fused(m, traces, training, self.fold_bn)
        except Untraceable as error:
            return str(error)
        for i in () if training else self.left:
            if i < len(made.calls):  # a copy may have been changed before
                made.calls[i].is_left = True
        return made

    @property
    def is_useful(self) -> bool:
        return self.owner is None or any(isinstance(f, Fused) and f.chains for f in self.forwards.values())

    def usable(self, m: nn.Module) -> Fused | None:
        """Returns the fused forward for the module's mode, if there is one and the module is as it was."""
        forward = self.forwards.get(m.training) or self.forward(m, m.training)
        return forward if isinstance(forward, Fused) and forward.chains and forward.depends.holds() else None


def _why_no_subclass(cls: Any) -> str | None:
    """Returns why a subclass of a class would not be all the same, if so."""
    own = [name for c in cls.__mro__[:-1] for name in vars(c)]
    if "__init_subclass__" in own or type(cls) not in (type, abc.ABCMeta):
        return "its class keeps track of subclasses"
    if {"__reduce__", "__reduce_ex__"} & set(own):
        return "its class pickles in its own way"
    return None


making = threading.RLock()  # held by whoever makes a fusion or changes a module's class


def fusion_of(m: Any) -> Fusion | None:
    """Returns what fuse makes of a module, if it was fused; of a copy its own."""
    fusion: Fusion | None = vars(m).get("_fastcnn_fusion")
    if fusion is not None and fusion.owner is not vars(m):
        with making:
            fusion = vars(m).get("_fastcnn_fusion")  # another thread may have made it, or unfused the module
            if fusion is not None and fusion.owner is not vars(m):
                fusion = vars(m)["_fastcnn_fusion"] = copy.copy(fusion)
                fusion.forward(m, m.training)  # inside the lock: of several threads one traces
    return fusion


def fusions(model: nn.Module) -> list[Fusion]:
    """Returns those of a fused model that are no parts of one another."""
    there = [(m, vars(m).get("_fastcnn_fusion")) for m in model.modules()]
    found = [fusion_of(m) for m, fusion in there if fusion is not None and not fusion.is_inner]
    return [fusion for fusion in found if fusion is not None]


def install(m: Any, fusion: Fusion) -> None:
    """Makes the module, and those that its forward is made of, run their fused forwards."""
    made = [f for f in fusion.forwards.values() if isinstance(f, Fused)]
    for part in (part for f in made for part in f.depends.passed.values()):
        if not (is_layer(part) or isinstance(part, FusedModule) or _why_no_subclass(type(part))):
            _set(part, Fusion(fusion.fold_bn, is_inner=True))
    _set(m, fusion)


def _set(m: Any, fusion: Fusion) -> None:
    vars(m)["_fastcnn_fusion"] = fusion
    if not isinstance(m, FusedModule):  # it is, if one mode fuses it by itself, the other as a part
        m.__class__ = class_of(type(m))


def remove(m: Any) -> None:
    """Makes the module's class its own again, unless another was derived from it since."""
    vars(m).pop("_fastcnn_fusion", None)
    own: Any = m._fastcnn_written
    if type(m) is class_of(own):
        m.__class__ = own


class FusedModule:
    """Mixed into the class of a module that is fused."""

    _fastcnn_written: type[nn.Module]

    @assume_constant  # a method, since torch 2.11 takes no module as the argument of such a function
    def _fastcnn_usable(self: Any) -> bool:
        fusion = fusion_of(self)
        return fusion is not None and fusion.usable(self) is not None

    def __prepare_scriptable__(self: Any) -> nn.Module:
        """Returns the module as it is written for torch.jit.script, which writes into its children."""
        other: nn.Module = self._fastcnn_written.__new__(self._fastcnn_written)
        vars(other).update(vars(self), _modules=dict(self._modules))
        return other

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Once another thread has changed the class, super() raises TypeError and pickle refuses __newobj__.
        reduced: Any = object.__reduce_ex__(self, protocol)
        if reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return reduced
        (cls, *arguments), make = reduced[1], _new_written
        if "_fastcnn_written" in vars(cls):
            cls, make = cls._fastcnn_written, _new
        return make, (cls, *arguments), *reduced[2:]


def _new(cls: Any, *arguments: Any) -> nn.Module:
    return _new_written(class_of(cls), *arguments)


def _new_written(cls: Any, *arguments: Any) -> nn.Module:
    other: nn.Module = cls.__new__(cls, *arguments)
    return other


def class_of(cls: Any) -> type[nn.Module]:
    """Returns a class of the same name with the fused forward, for each class one."""
    with making:
        return _class_of(cls)


@functools.cache
def _class_of(cls: Any) -> type[nn.Module]:
    is_sequence = cls.forward is nn.Sequential.forward

    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        fused: Fused | None
        if torch.compiler.is_compiling():
            fused = _compiled(self)
        else:
            if is_sequence and len(args) == 1 and not kwargs:
                y = small.run(self, args[0], small.sequence)
                if y is not None:
                    return y
            fusion = fusion_of(self)
            fused = fusion.usable(self) if fusion is not None else None
            for block in fused.folding if fused is not None else ():
                block.check_fold()
        if fused is not None and (tensors := fused.bound(args, kwargs)) is not None:
            return fused.run(self, self, *tensors)
        return cls.forward(self, *args, **kwargs)

    own = {"forward": forward, "_fastcnn_written": cls}
    own |= {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls)(cls.__name__, (FusedModule, cls), own)


def _compiled(m: Any) -> Fused | None:
    """Returns the fused forward for torch.compile, which then watches plain attributes alone."""
    if not m._fastcnn_usable():
        return None
    forward = m._fastcnn_fusion.forwards[m.training]
    return forward if forward.depends.holds_compiled() else None
