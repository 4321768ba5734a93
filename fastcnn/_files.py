"""Writing a file all at once or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write; what was written becomes the content of ``path`` at the end of the block.

    It is written aside, synced to the disk, then renamed. Whatever stops it, a full disk, Ctrl-C or a loss
    of power, ``path`` is as it was; only kill -9 leaves the file aside behind, which the next call removes.

    Raises:
        OSError: the folder can't be written to, or the disk is full.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or os.fspath(path)  # a full disk does not say whose writing failed
        raise
    finally:
        aside.unlink(missing_ok=True)


def replace(path: Path, data: bytes) -> None:
    """Make ``data`` the content of ``path``, see :func:`replacing`."""
    with replacing(path) as file:
        file.write(data)


def _sync_folder(folder: Path) -> None:
    """Else the new name, too, could be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
