"""A training that is told to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Stopped(Exception):
    """SIGTERM came, and the checkpoint is written."""


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Notices SIGTERM, which Slurm, Kubernetes and torchrun send some seconds before they kill."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only that one can take signals
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
