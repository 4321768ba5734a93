"""What a fused forward depends on: while that is the same, so is the module's own."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from .kinds import customised
from .watch import Read, function_of, held_in

_MISSING = object()
_PLAIN = (bool, int, float, str, tuple, type(None))
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True)
class Dependencies:
    """The state of a module and of those in it, as it was when the module was fused.

    Attributes:
        children: (parent, name, module, class) of what is inlined or no longer called.
        bypassed: of these, those whose hooks would be passed over.
        moded: modules whose own training flag matters, which has to be the module's.
        values: (module, name, value, copy of what it holds) of attributes.
        layouts: modules whose children's names matter, or which parameters are None, with these.
        forwards: (class, forward) of what is inlined.
    """

    children: list[tuple[nn.Module, str, nn.Module, type]]
    bypassed: list[nn.Module]
    moded: list[nn.Module]
    values: list[Read]
    layouts: list[tuple[nn.Module, Any]]
    forwards: list[tuple[Any, Any]]

    @property
    def plain(self) -> list[tuple[nn.Module, str, Any]]:
        return [(m, name, value) for m, name, value, _ in self.values if isinstance(value, _PLAIN)]

    def changed(self) -> str | None:
        """What is no longer as it was."""
        for parent, name, child, cls in self.children:
            if parent._modules.get(name) is not child or written(type(child)) is not cls:
                return f"{name} has been replaced"
        for m in self.bypassed:
            if (reason := customised(m)) is not None:
                return f"{type(m).__name__} {reason}"
        for m, name, value, held in self.values:
            now = function_of(getattr(m, name, _MISSING))
            same = now is value or _equal(now, value)
            if not same or (held is not None and held_in(now) != held):
                return f"{name} has changed"
        for m, layout in self.layouts:
            if _layout(m) != layout:
                return f"a layer or parameter of {type(m).__name__} was added or removed"
        for cls, forward in self.forwards:
            if cls.forward is not forward:
                return f"{cls.__name__}.forward has changed"
        return None


def dependencies(
    m: nn.Module, layers: list[nn.Module], through: list[nn.Module], reads: list[Read]
) -> Dependencies:
    """Of a forward of m's that has read these attributes.

    layers: those in its chains; through: modules whose forward is part of it.
    """
    inlined = {id(x): x for x in (*through, *(x for x, *_ in reads)) if x is not m}
    lists = [child for child in m.modules() if isinstance(child, _CONTAINERS)]
    watched = {id(child) for child in (*layers, *inlined.values())}
    own = [(written(type(x)), written(type(x)).forward) for x in (m, *through)]
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    return Dependencies(
        children=[
            (parent, name, child, written(type(child)))
            for parent in m.modules()
            for name, child in parent._modules.items()
            if child is not None and id(child) in watched
        ],
        bypassed=[*layers, *through],
        moded=[*norms, *(x for x, name, *_ in reads if name == "training")],
        values=[read for read in reads if read[1] != "training"] + [v for x in layers for v in _settings(x)],
        layouts=[(x, _layout(x)) for x in (m, *inlined.values(), *layers, *lists)],
        forwards=own,
    )


def written(cls: Any) -> Any:
    """A module's class before it was fused."""
    return getattr(cls, "_fastcnn_written", cls)


def _equal(a: Any, b: Any) -> bool:
    """Whether two plain values are the same; anything else must be the same object."""
    return isinstance(b, _PLAIN) and type(a) is type(b) and repr(a) == repr(b)


def _settings(layer: nn.Module) -> list[Read]:
    """A layer's own attributes, from which its part in a chain was read."""
    own = {name: value for name, value in vars(layer).items() if name[0] != "_" and name != "training"}
    return [(layer, name, value, held_in(value, copy.deepcopy)) for name, value in own.items()]


def _layout(m: nn.Module) -> tuple[Any, ...]:
    """The names of its children, parameters and buffers, and which of them are None."""
    held = (m._modules, m._parameters, m._buffers)
    return tuple((name, value is None) for values in held for name, value in values.items())
