"""The folder of a training: one at a time writes to it, and is told when it should stop."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from .. import _files


class Stopped(Exception):
    """SIGTERM came, and the checkpoint is written."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a folder, and remove what one that was killed had begun to write.

    The lock is this process's: it ends with it, however that ends, and forked workers have no share in it.

    Raises:
        RuntimeError: another training holds it.
        OSError: there can't be a lock.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise RuntimeError(f"{folder}: another training writes to it; take another --out") from None
        for path in _files.unfinished(folder):
            path.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM came, which Slurm, Kubernetes and torchrun send some seconds before they kill."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only that one can take signals
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
