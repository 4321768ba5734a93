"""The interface from which training reads images."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Batch(NamedTuple):
    """Some images by number: uint8 (n, S, S, C), labels (n,), and which of the numbers they are (n,).

    ``bad`` has the files that can't be read, and why; these are in none of the three.
    """

    images: Tensor
    labels: Tensor
    places: Tensor
    bad: dict[str, str]


class Source(Protocol):
    """Images that a DataLoader reads, a whole batch at a time."""

    def __len__(self) -> int: ...

    def __getitems__(self, numbers: list[int]) -> Batch: ...

    def fingerprint(self) -> str:
        """Changes with the images, or with the names of their files, and with their labels."""
        ...


class Data(NamedTuple):
    """Images, and what is done to them: ``side`` is their rows and columns, ``size`` those of the crops."""

    train: Source
    test: Source
    classes: tuple[str, ...]
    channels: int
    side: int
    size: int
    mirrored: bool  # whether an image's mirror image is as good
    notes: tuple[str, ...] = ()
