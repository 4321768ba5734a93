"""All that training needs to go on as if it had not stopped, in one file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import _files
from ..models.weights import reason

_FORMAT = "fastcnn training, 1"


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state of tensors, numbers, strings, lists and dicts; whole or not at all.

    Raises:
        OSError: it can't be written, the disk is full: the file there before is as it was.
    """
    with _files.replacing(path) as file:
        writer = _Writer(file)
        try:
            torch.save({"format": _FORMAT, **state}, writer)  # type: ignore[arg-type]
        except Exception:
            if writer.error:  # torch tells another story
                raise writer.error from None
            raise


class _Writer:
    """A file that remembers what went wrong."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def load(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What :func:`save` wrote, None where nothing is there. No code in the file is run.

    Args:
        path: the file.
        settings: what decides the weights; the state's "settings" must be the same.

    Raises:
        OSError: it can't be read.
        RuntimeError: it is torn, damaged, no checkpoint, or of other settings; the message says which.
    """
    if not path.exists():
        return None
    state = _read(path)
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise RuntimeError(f"{path}: not a checkpoint that fastcnn's training wrote")
    theirs = state.get("settings", {})
    different = [
        f"{name} {theirs.get(name)!r}, now {value!r}"
        for name, value in settings.items()
        if theirs.get(name) != value
    ]
    if different:
        raise RuntimeError(f"{path}: of a training with other settings: {'; '.join(different)}")
    return state


def _read(path: Path) -> object:
    """The file is a zip archive, which has a checksum for each part of it: torch looks at none."""
    try:
        with zipfile.ZipFile(path) as archive:
            torn = archive.testzip()
        if torn is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged archive, or pickle in it, can fail anywhere
        raise RuntimeError(f"{path}: damaged, or no checkpoint: {reason(error)}") from error
    raise RuntimeError(f"{path}: damaged: checksum of {torn}")
