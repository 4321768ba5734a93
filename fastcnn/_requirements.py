"""Says in one line what is missing, or too old, for anything else in fastcnn to be imported."""

from __future__ import annotations

import os
import re
import sys
from typing import NoReturn

TORCH = (2, 11)  # as in pyproject.toml
_NEEDED = "torch {}.{} or later".format(*TORCH)


def _is_command() -> bool:
    """Returns whether this is fastcnn's command line, not a program that imports fastcnn."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return name == "fastcnn" or (name == "-m" and not {"fastcnn", "-mfastcnn"}.isdisjoint(sys.orig_argv))


def _fail(error: ImportError) -> NoReturn:
    if _is_command():
        sys.exit(str(error))  # in one line, with status 1
    raise error from None


def check() -> None:
    """Raises ImportError for a torch that is missing or too old; ends a command."""
    install = "install it with: pip install 'torch>={}.{}'".format(*TORCH)
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        missing = f"fastcnn needs {_NEEDED}, which is not installed; {install}"
        _fail(ModuleNotFoundError(missing, name="torch"))
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version and tuple(map(int, version.groups())) < TORCH:
        _fail(ImportError(f"fastcnn needs {_NEEDED}, but found {torch.__version__}; {install}", name="torch"))


check()
