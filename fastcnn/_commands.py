"""Shared by commands: types of arguments, each with its message, and how errors end a command."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from . import _files

SIZES = {"alexnet": 224, "lenet5": 28}  # of the images that the models were published for
_MODULES = {"pillow": "PIL"}


def told(
    command: str, work: Callable[[], int | None], needs: Sequence[str] = (), interrupted: str = ""
) -> int:
    """Runs a command's work; returns its status, or 1 after a line on stderr for errors that a user can fix.

    Args:
        command: its name.
        work: what it does.
        needs: packages.
        interrupted: what to say of Ctrl-C, for which the status is 130.
    """
    missing = [name for name in needs if importlib.util.find_spec(_MODULES.get(name, name)) is None]
    if missing:
        install = " ".join(missing)
        print(f"{command}: needs {install}; install with: pip install {install}", file=sys.stderr)
        return 1
    try:
        return work() or 0
    except KeyboardInterrupt:
        print(f"{command}: interrupted{interrupted and '; '}{interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # cli.main ends quietly
        raise
    except (OSError, ModuleNotFoundError, RuntimeError, ValueError) as error:
        print(f"{command}: {_files.message(error)}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences exporters and compilers, whose warnings are about their own calls, not about a user's.

    For the whole process: for commands only.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def positive(text: str) -> int:
    """Parses a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, but got {text!r}")
    return int(text)


def shape(text: str) -> tuple[int, ...]:
    """Parses whole numbers of at least 1 between commas."""
    sizes = text.split(",")
    if not all(size.isdecimal() and int(size) >= 1 for size in sizes):
        raise argparse.ArgumentTypeError(f"must be sizes like 32,3,224,224, but got {text!r}")
    return tuple(map(int, sizes))


def path(text: str) -> Path:
    """Parses a path. An empty one would mean the current folder, as where a shell variable is not set."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"must be a path, but got {text!r}")
    return Path(text)


def count(text: str) -> int:
    """Parses a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, but got {text!r}")
    return int(text)


def rate(text: str) -> float:
    """Parses a number above 0."""
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, but got {text!r}")
    return rate


def share(text: str) -> float:
    """Parses a number from 0 to below 1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to below 1, but got {text!r}")
    return number


def seed(text: str) -> int:
    """Parses a whole number that torch takes as a seed."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number below 2**63, but got {text!r}")
    return int(text)
