"""Stand-ins for a forward's tensors: what is done with them is recorded, what is asked of them is refused.

torch.fx's own let much pass that a graph then lacks: `x += 1` would make a new tensor,
`isinstance(x, Tensor)` be False, `x.requires_grad = True` set nothing.
"""

from __future__ import annotations

import operator
import sys
from typing import Any, NoReturn

import torch
from torch.fx import Proxy
from torch.fx.proxy import Attribute

_OWN = frozenset({"tracer", "node", "root", "attr", "_node", "called"})


class Untraceable(Exception):
    """Why a forward is left as it is written."""


class Value(Proxy):
    """A tensor, or a number or tuple that comes from one."""

    def refuse(self, why: str) -> NoReturn:
        """Raise, and be remembered, in case the forward catches it."""
        self.tracer.failed = Untraceable(f"forward {why}")  # type: ignore[attr-defined]
        raise self.tracer.failed  # type: ignore[attr-defined]

    def __getattr__(self, k: str) -> Attribute:
        if not hasattr(torch.Tensor, k):
            raise AttributeError(f"a tensor has no attribute {k!r}")
        attribute = ValueAttribute(self, k)
        self.tracer.attributes.append(attribute)  # type: ignore[attr-defined]
        return attribute

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OWN:
            self.refuse(f"sets a tensor's {name}")
        super().__setattr__(name, value)

    @property
    def __class__(self) -> type:
        code = sys._getframe(1).f_code  # C functions ask too, on behalf of code that doesn't
        if code.co_name == "is_tensor" or (
            not is_torchs(1) and {"isinstance", "__class__"} & {*code.co_names}
        ):
            self.refuse("asks for the type of a value")
        return type(self)

    @__class__.setter
    def __class__(self, cls: type) -> None:
        self.refuse("changes a value's type")

    def __hash__(self) -> int:
        if not is_torchs(1):
            self.refuse("looks a value up")
        return id(self)

    def __len__(self) -> int:
        self.refuse("asks for a value's length")

    def __int__(self) -> int:
        self.refuse("makes a value a number")

    __float__ = __int__

    def __contains__(self, item: Any) -> bool:
        self.refuse("looks into a value")


def is_torchs(depth: int) -> bool:
    """Whether the code that called this far above the caller is torch's."""
    return str(sys._getframe(depth + 1).f_globals.get("__name__")).partition(".")[0] in ("torch", "functools")


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
        """Whether it went into no graph: Python alone has seen it."""
        return not self.called and self._node is None


def _in_place(function: Any) -> Any:
    def record(self: Value, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in [
    "iadd",
    "isub",
    "imul",
    "imatmul",
    "itruediv",
    "ifloordiv",
    "imod",
    "ipow",
    "iand",
    "ior",
    "ixor",
    "ilshift",
    "irshift",
]:
    setattr(Value, f"__{_name}__", _in_place(getattr(operator, _name)))
