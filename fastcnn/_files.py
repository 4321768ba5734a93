"""Writes a file all at once or not at all, and locks a folder for one process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

_LONGEST = 600  # characters of a message


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file whose content replaces that of ``path`` at the end of the block.

    It is written aside, under a name of its own, synced to the disk, then renamed. Whatever stops it, a full
    disk, Ctrl-C or a loss of power, ``path`` is as it was; only kill -9 leaves the file aside behind, see
    :func:`unfinished`.

    Raises:
        OSError: the folder can't be written to, or the disk is full.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise FileExistsError(errno.EEXIST, "is no regular file", os.fspath(path))
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno is None or (error.filename is not None and Path(error.filename) != aside):
            raise
        # The file aside means nothing to a user, and a full disk does not say whose writing failed.
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        aside.unlink(missing_ok=True)


def unfinished(folder: Path) -> list[Path]:
    """Returns the files aside in a folder, of whoever writes there now or was killed while it did."""
    return [path for path in folder.glob(".*.new") if re.fullmatch(r"\..+\.[0-9a-f]{16}\.new", path.name)]


def check_regular(path: Path) -> None:
    """Raises RuntimeError for a FIFO, a device or a folder: one may wait for ever, another has no end."""
    if path.exists() and not path.is_file():
        raise RuntimeError(f"{path}: no regular file")


def check_not_an_input(option: str, out: Path, inputs: Iterable[Path]) -> None:
    """Raises ValueError where a file would be written over one that is read."""
    if out.exists() and any(path.exists() and out.samefile(path) for path in inputs):
        raise ValueError(f"{option} must be another file than what is read, but got {out}")


def shown(text: object) -> str:
    """Returns text from outside, such as a file's name, with control characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def message(error: object) -> str:
    """Returns an error's text as one line of readable length."""
    text = shown(" ".join(str(error).splitlines()))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def replace(path: Path, data: bytes) -> None:
    """Replaces the content of ``path`` by ``data``, see :func:`replacing`."""
    with replacing(path) as file:
        file.write(data)


def _sync_folder(folder: Path) -> None:
    """Syncs a folder to the disk: a renamed file's new name could be lost with the power otherwise."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Locks a folder against other writers, and removes what a killed process left unfinished.

    The lock is this process's: it ends with it, however that ends, and forked workers have no share in it.

    Raises:
        RuntimeError: another process holds it.
        OSError: there can't be a lock.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise RuntimeError(f"{folder}: another process writes to it; take another folder") from None
        for path in unfinished(folder):
            path.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)
