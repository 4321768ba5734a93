"""Writing a file all at once or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, data: bytes) -> None:
    """Make ``data`` the content of ``path``: written aside, synced to the disk, then renamed.

    Whatever stops it, a full disk or Ctrl-C, ``path`` is as it was and nothing else is left.

    Raises:
        OSError: the folder can't be written to, or the disk is full.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
