"""The registry of backends and the choice among them.

A backend is a module with ``missing_reason()``, ``unsupported_reason(x, stages)``, ``epilogue_forward``,
``epilogue_backward`` and ``conv_block_forward``: allocation and launching only, no autograd. One that
``auto`` may take has ``declined_reason(x, stages, weight)``, too: why it leaves these stages, on x or on x
convolved with weight, to the next; and may have ``slower_reason(x, stages, weight, conv)``: why torch's own
functions do as well. It may also have ``convolution_backward`` and ``conv_block_backward``, see
:mod:`._block`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
from collections.abc import Iterator
from types import ModuleType

from torch import Tensor

from ..stages import Conv, Stages

# "auto" takes the first that can and does not decline; last comes plain, which takes all. The CUDA kernels
# decline where nobody has seen them be right (trust.py); so do Triton's, for who has no nvcc or an AMD GPU.
BACKENDS = ("reference", "plain", "cpu", "cuda", "triton")
PREFERENCE = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}

_current: contextvars.ContextVar[str] = contextvars.ContextVar("fastcnn_backend", default="auto")


@functools.cache
def module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def available_backends() -> dict[str, str | None]:
    """Returns for each backend's name None where it can be used here, else the reason why not."""
    return {name: module(name).missing_reason() for name in BACKENDS}


def _check_name(name: str) -> str:
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be one of {('auto', *BACKENDS)}, but got {name!r}")
    return name


get_current = _current.get  # C++ calls it, too (small.py)


def current_backend() -> str:
    """Returns the backend's name set in this context; "auto" by default."""
    return _current.get()


def set_backend(name: str) -> None:
    """Sets the backend of this context (thread or task): a name, or "auto" for the fastest one.

    A backend asked for by name raises RuntimeError, with the reason, for what it can't do.

    Raises:
        ValueError: there is no such backend.
    """
    _current.set(_check_name(name))


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Sets the backend, as :func:`set_backend`, inside a with block."""
    token = _current.set(_check_name(name))
    try:
        yield
    finally:
        _current.reset(token)


def name(backend: ModuleType) -> str:
    """Returns the name of a backend's module."""
    return backend.__name__.rpartition(".")[2]


def choose(
    x: Tensor,
    stages: Stages,
    weight: Tensor | None = None,
    conv: Conv | None = None,
    inside_op: bool = False,
) -> ModuleType:
    """Returns the backend that runs these stages on x (N, C, H, W), or on its convolution with weight.

    conv: how that is. inside_op: whether an op of ours was called already, so that no call is saved by
    torch's own functions.

    Raises:
        RuntimeError: the one that was asked for by name can't; with its reason.
    """
    asked = _current.get()
    if asked == "auto":
        return automatic(x, stages, weight, conv, inside_op)[0]
    backend = module(asked)
    reason = backend.unsupported_reason(x, stages)
    if reason is not None:
        raise RuntimeError(f"backend {asked!r} can't run this: {reason}")
    return backend


def automatic(
    x: Tensor,
    stages: Stages,
    weight: Tensor | None = None,
    conv: Conv | None = None,
    inside_op: bool = False,
) -> tuple[ModuleType, dict[str, str]]:
    """Returns the backend that ``auto`` takes (:func:`choose`), and by name why not those before it."""
    reasons: dict[str, str] = {}
    for name in PREFERENCE.get(x.device.type, ()):
        backend = module(name)
        reason = backend.unsupported_reason(x, stages) or backend.declined_reason(x, stages, weight)
        if reason is None and not inside_op and hasattr(backend, "slower_reason"):
            reason = backend.slower_reason(x, stages, weight, conv)
        if reason is None:
            return backend, reasons
        reasons[name] = reason
    return module("plain"), reasons
