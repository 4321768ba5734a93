"""Refuses code that does, or asks for, what a graph can't say, by the names in it."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from .values import Untraceable

# Random numbers that Python draws; what stands for a value in place of it; who runs the forward; what is kept
# for backward. Gradients and autocast switched on or off are seen while tracing.
_NAMES = {
    **dict.fromkeys(("random", "randint", "uniform", "choice", "shuffle", "Random"), "draws random numbers"),
    **dict.fromkeys(("type", "id"), "asks for the type or identity of something"),
    **dict.fromkeys(("is_compiling", "is_exporting", "is_tracing"), "asks who runs it"),
    **dict.fromkeys(("is_grad_enabled", "is_inference_mode_enabled"), "asks for gradients"),
    **dict.fromkeys(("autocast", "is_autocast_enabled", "get_autocast_dtype"), "switches or asks for autocast"),
    **dict.fromkeys(("saved_tensors_hooks", "save_on_cpu"), "changes what is kept for backward"),
}


def check(function: Any) -> None:
    """Looks through a function and those that it names, torch's apart.

    Raises:
        Untraceable: one of them contains such a name.
    """
    seen, functions = set(), [function]
    while functions:
        f = functions.pop()
        if not isinstance(f, FunctionType) or f in seen or is_torchs(f):
            continue
        seen.add(f)
        functions += [cell.cell_contents for cell in f.__closure__ or ()]
        for name in _names(f.__code__):
            if name in _NAMES:
                raise Untraceable(f"forward {_NAMES[name]} ({name})")
            functions.append(f.__globals__.get(name))


def is_torchs(x: Any) -> bool:
    """Returns whether a function or class is PyTorch's own."""
    return str(getattr(x, "__module__", "")).partition(".")[0] == "torch"


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
