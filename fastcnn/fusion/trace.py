"""A module's forward as a graph, if a graph says all of what it does.

The forward runs once on stand-ins, for the module (standin.py) and for tensors (values.py), in this thread
alone: nothing of PyTorch or of the model is replaced meanwhile.
"""

from __future__ import annotations

import copy
import enum
import inspect
import operator
from collections import Counter
from types import MethodType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.proxy import TracerBase
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from .._torch_private import asserted, called
from . import lrn, parts, purity
from .guard import MISSING, Guard, customised, held, is_record, written
from .standin import StandIn
from .values import Untraceable, Value, ValueAttribute

_CONSTANTS = (  # that a graph holds as they are
    *(type(None), str, int, float, bool, complex),
    *(torch.dtype, torch.device, torch.memory_format, torch.layout),
)
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Trace(TracerBase):
    """A forward in training or in evaluation, with those of the modules that it calls.

    Attributes:
        graph: calls of layers are nodes, and of modules whose own forward is more than a graph says.
        guard: what it has read.
        names: arguments of the forward that have no default.
        left: calls that are no parts of a block, though they look like it, and why.
        images: whether it is for (N, C, H, W) alone.

    Raises:
        Untraceable: a graph would not do the same.
    """

    def __init__(self, m: nn.Module, training: bool, traces: Traces) -> None:
        super().__init__()
        self.graph, self.guard = Graph(), Guard()
        self.m, self.training, self.traces = m, training, traces
        parameters = list(inspect.signature(written(type(m)).forward).parameters.values())[1:]
        self.names = [p.name for p in parameters if p.default is p.empty and p.kind in _BY_POSITION]
        self.failed: Untraceable | None = None
        self.attributes: list[ValueAttribute] = []  # of the forward that runs, as are the copies
        self.copies: list[tuple[str, Any, Any]] = []
        self.looks: Counter[tuple[nn.Module, str]] = Counter()  # at children, less calls of these
        self.stand_ins: dict[int, StandIn] = {}
        self.state, self.images = _state(), False
        try:
            with _Recorder(self):
                values = [self.create_proxy("placeholder", name, (), {}) for name in self.names]
                result = self.run(self.stand_in(m, ""), m, values, {})
                self.create_proxy("output", "output", (result,), {})
        except Untraceable:
            raise
        except Exception as error:  # whatever a forward may raise on values that stand for tensors
            raise self.failed or Untraceable(str(error).partition("\n")[0] or type(error).__name__) from error
        self._drop_assertions()
        before = len(self.graph.nodes)
        self.left = lrn.rewrite(self.graph, m, self.guard)
        self.images |= len(self.graph.nodes) < before

    def refusal(self, why: str) -> Untraceable:
        """Returns what to raise, and remembers it, in case the forward catches it."""
        self.failed = Untraceable(f"forward {why}")
        return self.failed

    def refuse(self, why: str) -> NoReturn:
        raise self.refusal(why)

    def run(self, stand_in: StandIn, m: nn.Module, args: Any, kwargs: Any) -> Any:
        """Returns what a module's forward gives, of a stand-in."""
        cls = written(type(m))
        if cls.__getattribute__ is not nn.Module.__getattribute__:
            raise Untraceable("its class has a __getattribute__ of its own")
        purity.check_definitions(cls, "forward")
        self.guard.shared(cls, "forward")
        result = cls.forward(stand_in, *args, **kwargs)
        self.create_arg(result)
        if self.failed is not None:
            raise self.failed
        for attribute in self.attributes:
            if attribute.unused:
                raise Untraceable(f"forward looks at a value's {attribute.attr}")
        for name, mine, original in self.copies:
            if held(mine) != original:
                raise Untraceable(f"forward changes {name}")
        for (parent, name), more in self.looks.items():
            if more > 0:  # it has done something else than to call it: another could be another case
                self.guard.entry(parent, "_modules", name, parent._modules[name])
        return result

    def call(self, stand_in: StandIn, m: nn.Module, path: str, args: Any, kwargs: Any) -> Any:
        """Records what a module's call does, or, where that is more than a graph says, the call."""
        if not path:
            self.refuse("calls itself")
        self.create_arg((args, kwargs))  # raises where no graph can hold them
        key, last = (id(m), self.training), next(iter(reversed(self.graph.nodes)))
        if key in self.traces.opaque or is_layer(m) or _calls_otherwise(m):
            return self._as_call(m, path, args, kwargs)
        outer = self.guard, self.attributes, self.copies, self.looks, self.failed
        self.guard, self.attributes, self.copies, self.looks, self.failed = Guard(), [], [], Counter(), None
        try:
            self.guard.child(self.m, path)
            self.guard.passes(m)
            result = self.run(stand_in, m, args, kwargs)
            outer[0].update(self.guard)
            outer[2].extend(self.copies)
            return result
        except Exception:
            self.traces.opaque.add(key)
            while (node := next(iter(reversed(self.graph.nodes)))) is not last:
                self.graph.erase_node(node)
        finally:
            self.guard, self.attributes, self.copies, self.looks, self.failed = outer
        return self._as_call(m, path, args, kwargs)

    def _as_call(self, m: nn.Module, path: str, args: Any, kwargs: Any) -> Any:
        parent, _, name = path.rpartition(".")
        self.looks[self.m.get_submodule(parent), name] -= 1
        if not is_layer(m) or customised(m):
            self.traces.opaque.add((id(m), self.training))
            if any(map(_holds_container, (*args, *kwargs.values()))):
                self.refuse("passes on a container, which may be changed")
        return self.create_proxy("call_module", path, args, kwargs)

    def tensor(self, m: nn.Module, tensors: str, path: str) -> Value | None:
        """Returns a parameter or buffer, which the graph looks up anew; None where it is."""
        name = path.rpartition(".")[2]
        if vars(m)[tensors][name] is None:
            self.guard.entry(m, tensors, name, None)
            return None
        return self.create_proxy("get_attr", path, (), {})

    def seen(self, name: str, value: Any) -> Any:
        """Returns what the forward may have of an attribute: of a container a copy, of modules stand-ins."""
        if isinstance(value, nn.Module):
            return self._registered(value)
        if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
            purity.check(value.__func__)
            return MethodType(value.__func__, self._registered(value.__self__))
        if isinstance(value, (list, dict, set)) or is_record(value):
            self.guard.contents.append((name, value, held(value)))
        if type(value) is dict:
            mine: Any = {key: self.seen(name, v) for key, v in value.items()}
        elif type(value) in (list, tuple, set):
            mine = type(value)(self.seen(name, v) for v in value)
        elif is_record(value):
            mine = copy.copy(value)
        elif callable(value) or isinstance(value, (enum.Enum, *_CONSTANTS)):
            mine = value
            purity.check(value)
        else:
            mine = MISSING
        if mine is MISSING or isinstance(value, Tensor):
            self.refuse(f"uses {name}, a {type(value).__name__}")
        if mine is not value and type(value) is not tuple:
            self.copies.append((name, mine, held(mine)))
        return mine

    def _registered(self, m: nn.Module) -> StandIn:
        path = next((path for path, other in self.m.named_modules() if other is m), None)
        if path is None:
            self.refuse(f"uses a {type(m).__name__} that is not a layer of its own")
        stand_in: Any = self.stand_in(self.m, "")
        for name in path.split(".") if path else ():
            stand_in = getattr(stand_in, name)
        return stand_in

    def stand_in(self, m: nn.Module, path: str) -> StandIn:
        """Returns the one stand-in of a module, which it may have under two names."""
        if id(m) not in self.stand_ins:
            self.stand_ins[id(m)] = StandIn(self, m, path)
        return self.stand_ins[id(m)]

    def create_arg(self, a: Any) -> Any:
        kind = type(a)
        if issubclass(kind, Value):
            return a.node
        is_structure = issubclass(kind, (dict, list, tuple)) and kind.__module__ != "torch"
        if is_structure and hasattr(kind, "_fields"):  # made by its class, whose name the code has to know
            return self.graph.create_node("call_function", kind, tuple(map(self.create_arg, a)))
        if issubclass(kind, (Tensor, StandIn)) or (is_structure and kind not in (dict, list, tuple)):
            self.refuse(f"makes or passes on a {kind.__name__}")
        return super().create_arg(a)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:  # type: ignore[override]
        if _state() != self.state:
            self.refuse("switches gradients or autocast on or off")
        node = self.graph.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs))
        return Value(node, self)

    def _drop_assertions(self) -> None:
        """Takes out what is asserted of a value's number of dimensions: blocks are for images alone."""
        for node in reversed(self.graph.nodes):
            asserts = node.target is asserted and _is_about_dimensions(node.args[0])
            if asserts or (not node.users and node.target in (getattr, operator.eq)):
                self.graph.erase_node(node)
                self.images |= asserts


class _Recorder(TorchFunctionMode):
    """Records calls of torch's functions as nodes of a trace."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", str(function))
        if not any(issubclass(t, Value) for t in types):
            self.trace.refuse(f"calls {name}")
        kind = is_tensor_method_or_property(function)
        target = name if kind else function
        return self.trace.create_proxy("call_method" if kind else "call_function", target, args, kwargs or {})


class Traces:
    """Modules' forwards, each traced once for training and once for evaluation.

    Attributes:
        opaque: modules, by id and mode, whose forward is more than a graph says.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[int, bool], Trace | Untraceable] = {}
        self.opaque: set[tuple[int, bool]] = set()

    def get(self, m: nn.Module, training: bool) -> Trace:
        """Returns the trace.

        Raises:
            Untraceable: a graph would not do the same.
        """
        key = id(m), training
        if key not in self._made:
            try:
                self._made[key] = self._as_in_evaluation(m, training) or Trace(m, training, self)
            except Untraceable as reason:
                self._made[key] = Untraceable(str(reason))
        made = self._made[key]
        if isinstance(made, Untraceable):
            raise made
        return made

    def _as_in_evaluation(self, m: nn.Module, training: bool) -> Trace | None:
        """Returns what was traced in evaluation, where it is the same in training."""
        made = self._made.get((id(m), False))
        if not training or not isinstance(made, Trace):
            return None
        reads_mode = any(name == "training" for _, name, _ in made.guard.plain.values())
        return None if reads_mode or self.opaque & {(id(x), False) for x in m.modules()} else made


def _calls_otherwise(m: nn.Module) -> bool:
    """Returns whether calling a module is more than its class's forward."""
    return called(type(m)) != called(nn.Module) or customised(m) is not None


def _holds_container(a: Any) -> bool:
    kind = type(a)
    return issubclass(kind, (list, dict, set)) or (issubclass(kind, tuple) and any(map(_holds_container, a)))


def is_layer(m: nn.Module) -> bool:
    """Returns whether a module is a layer of torch's or of fastcnn's, whose forward is not looked into."""
    cls = written(type(m))
    return cls in parts.LAYERS or (purity.is_torchs(cls) and not isinstance(m, nn.Sequential))


def _state() -> tuple[Any, ...]:
    devices = ("cpu", "cuda")
    autocast = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


def _is_about_dimensions(condition: Any) -> bool:
    """Returns whether a value is `x.ndim == 4`."""
    if not (isinstance(condition, Node) and condition.target is operator.eq and condition.args[1] == 4):
        return False
    ndim = condition.args[0]
    return isinstance(ndim, Node) and ndim.target is getattr and ndim.args[1] == "ndim"
