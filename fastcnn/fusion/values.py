"""Stand-ins for a forward's tensors: what is done with them is recorded, what is asked of them is refused.

torch.fx's own let much pass that a graph then lacks: `x += 1` would make a new tensor,
`isinstance(x, Tensor)` be False, `x.requires_grad = True` set nothing.
"""

from __future__ import annotations

import dis
import operator
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch.fx import Node, Proxy
from torch.fx.proxy import Attribute

_OWN = frozenset({"tracer", "node", "root", "attr", "_node", "called"})


class Untraceable(Exception):
    """The reason why a forward is left as written."""


class Value(Proxy):
    """A tensor, or a number or tuple that comes from one."""

    tracer: Any

    def refuse(self, why: str) -> NoReturn:
        raise self.tracer.refusal(why)

    def __getattr__(self, k: str) -> Attribute:
        if not hasattr(torch.Size if _is_shape(self.node) else torch.Tensor, k) or k.startswith("__"):
            raise AttributeError(f"a value has no attribute {k!r}")
        attribute = ValueAttribute(self, k)
        self.tracer.attributes.append(attribute)
        return attribute

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OWN:
            self.refuse(f"sets a tensor's {name}")
        super().__setattr__(name, value)

    def __iter__(self) -> Iterator[Any]:
        """Unpacks into as many values as the code asks for, which the graph checks when it runs."""
        frame = sys._getframe(1)
        now = next(i for i in dis.get_instructions(frame.f_code) if i.offset == frame.f_lasti)
        if now.opname != "UNPACK_SEQUENCE":
            self.refuse("iterates over a value")
        values: Any = self.tracer.create_proxy("call_function", unpacked, (self, now.argval), {})
        return iter([values[i] for i in range(now.argval)])

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # C code asks, too, on behalf of code that doesn't. Noted, not raised: it may crash on an exception.
        if {"isinstance", "__class__"} & {*sys._getframe(1).f_code.co_names}:
            self.tracer.refusal("asks for the type of a value")
        return type(self)


class ValueAttribute(Value, Attribute):
    """An attribute of a value; a node only when it is used."""

    def __init__(self, root: Proxy, attr: str) -> None:
        Attribute.__init__(self, root, attr)
        self.called = False

    def __call__(self, *args: Any, **kwargs: Any) -> Proxy:
        self.called = True
        return super().__call__(*args, **kwargs)

    @property
    def unused(self) -> bool:
        """Returns whether it is in no graph: only Python has seen it."""
        return not self.called and self._node is None


def _is_shape(node: Node) -> bool:
    return (node.target is getattr and node.args[1] == "shape") or (node.target, len(node.args)) == (
        "size",
        1,
    )


def unpacked(values: Any, number: int) -> tuple[Any, ...]:
    """Returns the values; raises ValueError if there are not as many."""
    found = tuple(values)
    if len(found) != number:
        raise ValueError(f"expected {number} values to unpack, but got {len(found)}")
    return found


_REFUSED = {
    "uses a value as a condition": ("__bool__",),
    # No __index__: where there is one, C code that takes numbers asks for it, and else has the call recorded.
    "converts a value to a number": ("__int__", "__float__", "__complex__"),
    "asks for the length or the items of a value": ("__len__", "__contains__"),
    "hashes a value": ("__hash__",),
    "copies a value": ("__reduce_ex__",),
}


def _refusal(why: str) -> Any:
    return lambda self, *_: self.refuse(why)


def _in_place(function: Any) -> Any:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _why, _names in _REFUSED.items():
    for _name in _names:
        setattr(Value, _name, _refusal(_why))
for _name in (
    "iadd isub imul imatmul itruediv ifloordiv imod ipow iand ior ixor ilshift irshift".split()  # noqa: SIM905
):
    setattr(Value, f"__{_name}__", _in_place(getattr(operator, _name)))
