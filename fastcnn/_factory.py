"""A model of the user's, by the name of what makes it: ``package.module:function``."""

from __future__ import annotations

import importlib
import os
import sys
from operator import attrgetter

from torch import nn


def load(name: str) -> nn.Module:
    """Returns the module that a function or class makes, called without arguments.

    Args:
        name: "package.module:function", found from the current folder as with ``python -m``.

    Raises:
        ValueError: there is no such function, or what it returns is not an nn.Module.
        ModuleNotFoundError: there is no such module, or it imports one that there isn't.
    """
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise ValueError(f"model must be named package.module:function, but got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        make = attrgetter(path)(importlib.import_module(module))
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name}: {error}") from error
    except AttributeError as error:
        raise ValueError(f"{name}: {error}") from error
    if not callable(make):
        raise ValueError(f"{name}: must be callable, but is {type(make).__name__}")
    model = make if isinstance(make, nn.Module) else make()
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name}: must return a torch.nn.Module, but returned {type(model).__name__}")
    return model
