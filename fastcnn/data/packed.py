"""Pictures as one array on disk, mapped into memory; see pack.py, which writes it.

``images.npy`` is uint8 (N, side, side, 3), first the images to train on, then those to test with;
``labels.npy`` int64 (N,); ``pack.json`` says the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _files
from .source import Batch, Data

NAME = "pack.json"
FORMAT = "fastcnn pack, 1"


class Packed:
    """Some rows of images.npy, and their labels."""

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor, hashed: str) -> None:
        self.images, self.labels, self.rows, self._hashed = images, labels, rows, hashed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, numbers: list[int]) -> Batch:
        rows = self.rows[torch.tensor(numbers, dtype=torch.long)]
        # numpy asks for large pages, which take a fifth of the time to get: 0.02 ms an image, not 0.1.
        images = torch.from_numpy(np.empty((len(rows), *self.images.shape[1:]), np.uint8))
        torch.index_select(self.images, 0, rows, out=images)
        return Batch(images, self.labels[rows], torch.arange(len(rows)), {})

    def fingerprint(self) -> str:
        """Returns a hash of the pixels and the labels."""
        digest = hashlib.sha256(self._hashed.encode())
        digest.update(self.labels[self.rows].numpy().tobytes())
        return digest.hexdigest()


def find(folder: Path, size: int | None) -> Data:
    """Reads what was packed into a folder.

    Args:
        folder: with pack.json.
        size: of crops; None: the paper's 224 of 256, in proportion.

    Raises:
        OSError: a file is missing.
        RuntimeError: a file is damaged, or not of this pack; the message names it.
        ValueError: a size beyond that of the images.
    """
    told = _told(folder / NAME)
    side, train, bad = told["side"], told["train"], told["bad"]
    if size is not None and size > side:
        raise ValueError(f"--size must be at most {side}, as {folder} was packed, but got {size}")
    shape = (told["images"], side, side, 3)
    images = _array(folder / "images.npy", np.dtype("u1"), shape)
    labels = _array(folder / "labels.npy", np.dtype("<i8"), shape[:1])
    if hashlib.sha256(labels.numpy().tobytes()).hexdigest() != told["labels"]:
        raise RuntimeError(f"{folder / 'labels.npy'}: damaged, or of another pack: not the labels of {NAME}")
    if (
        labels.min() < 0
        or labels.max() >= len(told["classes"])
        or any(not 0 <= row < shape[0] for row in bad)
    ):
        raise RuntimeError(f"{folder / NAME}: damaged: its classes or bad images are not those of labels.npy")
    readable = torch.ones(shape[0], dtype=torch.bool)
    readable[torch.tensor(bad, dtype=torch.long)] = False
    rows = [readable[:train].nonzero()[:, 0], readable[train:].nonzero()[:, 0] + train]
    if not all(map(len, rows)):
        raise RuntimeError(f"{folder / NAME}: says of no image that it can be read")
    hashed = hashlib.sha256("".join(told["hashes"]).encode()).hexdigest()
    parts = [Packed(images, labels, part, hashed) for part in rows]
    many = f"{len(bad)} picture{'s' if len(bad) > 1 else ''}"
    notes = (f"left out: {many} that could not be read, as {NAME} says",) if bad else ()
    size = round(side * 224 / 256) if size is None else size
    return Data(parts[0], parts[1], tuple(told["classes"]), 3, side, size, True, notes)


def _told(path: Path) -> dict[str, Any]:
    """Reads and checks pack.json."""
    _files.check_regular(path)
    try:
        told = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RuntimeError(f"{path}: damaged: {error}") from error
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise RuntimeError(f"{path}: was not written by this version of: python -m fastcnn pack")
    if told.pop("sha256", None) != digest(told):
        raise RuntimeError(f"{path}: damaged: its checksum is another")
    for name, is_right in _FIELDS.items():
        if not is_right(told.get(name)):
            raise RuntimeError(f"{path}: damaged: its {name!r} is {str(told.get(name))[:60]}")
    if not told["train"] < told["images"]:
        raise RuntimeError(f"{path}: damaged: {told['train']} of {told['images']} images are to train on")
    return told


def digest(told: Mapping[str, Any]) -> str:
    """Returns pack.json's checksum, over all of its other keys."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _is_list(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(type(v) is kind for v in value)


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "side": _is_count,
    "images": _is_count,
    "train": _is_count,
    "classes": lambda value: _is_list(str)(value) and len(value) > 1,
    "bad": _is_list(int),
    "labels": lambda value: isinstance(value, str),
    "hashes": _is_list(str),
}


def _array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Tensor:
    """Maps a .npy file into memory, if it has this type and shape."""
    _files.check_regular(path)
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)  # "c": nothing is ever written to the file
    except OSError:
        raise
    except Exception as error:  # numpy says it in many ways
        raise RuntimeError(f"{path}: damaged, or no array: {error}") from error
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise RuntimeError(f"{path}: must be {dtype} {shape}, but is {array.dtype} {array.shape}")
    return torch.from_numpy(array.view(np.ndarray))
