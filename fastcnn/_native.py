"""The native extension ``fastcnn._C``, or the reason why there is none."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

import torch  # noqa: F401  its OpenMP runtime must be in the process before the extension asks for one


@functools.cache
def missing_reason() -> str | None:
    """Returns None where the extension is there; a broken one raises ImportError from load()."""
    if importlib.util.find_spec("fastcnn._C") is None:
        return "built without the native extension; reinstall with a C++17 compiler on the PATH"
    return None


@functools.cache
def load() -> ModuleType:
    return importlib.import_module("fastcnn._C")
