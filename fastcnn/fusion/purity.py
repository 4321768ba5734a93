"""Refuses code that does, or asks for, what a graph can't say, by its instructions and the names in them."""

from __future__ import annotations

import dis
import functools
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn

from .values import Untraceable

# Random numbers that Python draws; what differs for a value that stands for a tensor; who runs the forward,
# and how. Whether gradients or autocast are switched is also seen while tracing.
_NAMES = {
    **dict.fromkeys(("random", "randint", "uniform", "choice", "shuffle", "Random"), "draws random numbers"),
    **dict.fromkeys(("type", "id", "Proxy"), "asks for the type or identity of something"),
    **dict.fromkeys(("is_compiling", "is_exporting"), "asks who runs it"),
    **dict.fromkeys(("is_grad_enabled", "is_inference_mode_enabled"), "asks for gradients"),
    **dict.fromkeys(
        ("autocast", "is_autocast_enabled", "get_autocast_dtype"), "switches or asks for autocast"
    ),
    **dict.fromkeys(("warn", "print"), "says something"),
    "apply": "calls an autograd.Function",
}
_INSTRUCTIONS = {
    **dict.fromkeys(
        ("PUSH_EXC_INFO", "SETUP_FINALLY", "SETUP_WITH"), "handles exceptions or enters a context"
    ),
    **dict.fromkeys(("STORE_GLOBAL", "DELETE_GLOBAL"), "changes a global"),
}


def check(function: Any) -> None:
    """Looks through a function and those that it names or encloses, torch's apart.

    Raises:
        Untraceable: one of them contains such an instruction.
    """
    seen, functions = set(), [function]
    while functions:
        f = functions.pop()
        if _is_apply(f):
            raise Untraceable(f"forward {_NAMES['apply']}")
        if isinstance(f, functools.partial):
            functions += [f.func, *f.args, *f.keywords.values()]
        elif isinstance(call := getattr(type(f), "__call__", None), FunctionType):  # noqa: B004
            functions.append(call)
        if isinstance(f, FunctionType) and f not in seen and not is_torchs(f):
            seen.add(f)
            if (fault := _fault(f.__code__)) is not None:
                raise Untraceable(f"forward {fault}")
            if any(isinstance(d, (list, dict, set)) for d in f.__defaults__ or ()):
                raise Untraceable("forward has a default that it may change")
            enclosed = [cell.cell_contents for cell in f.__closure__ or ()]
            if any(isinstance(x, nn.Module) for x in enclosed):
                raise Untraceable("forward calls a function that encloses a module")
            functions += enclosed
            functions += [f.__globals__.get(name) for name in f.__code__.co_names]


def check_definitions(cls: Any, name: str) -> None:
    """Looks through all definitions of a method that a class has, since one may call the next by super()."""
    for c in cls.__mro__:
        found = vars(c).get(name)
        check(getattr(found, "__func__", getattr(found, "fget", found)))


def _is_apply(f: Any) -> bool:
    owner = getattr(f, "__self__", None)
    return isinstance(owner, type) and issubclass(owner, torch.autograd.Function)


def is_torchs(x: Any) -> bool:
    """Returns whether a function or class is PyTorch's own."""
    return str(getattr(x, "__module__", "")).partition(".")[0] == "torch"


@functools.lru_cache(maxsize=10_000)
def _fault(code: CodeType) -> str | None:
    for instruction in dis.get_instructions(code):
        name, value = instruction.opname, instruction.argval
        if name in _INSTRUCTIONS:
            return _INSTRUCTIONS[name]
        if name in ("STORE_ATTR", "DELETE_ATTR"):
            return f"changes {value}"
        if name == "STORE_DEREF" and value in code.co_freevars:
            return "changes a variable of another function"
        if isinstance(value, CodeType) and (fault := _fault(value)) is not None:
            return fault
        if value in code.co_names and value in _NAMES:
            return f"{_NAMES[value]} ({value})"
    return None
