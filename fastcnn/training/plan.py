"""The plan of a training, and the numbers of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import Data
from .augment import Statistics
from .recipe import Recipe


class Plan(NamedTuple):
    """A training: model, data, recipe and settings."""

    model: torch.nn.Module
    loss: Callable[..., Tensor]  # the mean, of scores (N, classes) and labels (N,)
    data: Data
    known: Statistics | None  # of the training set; None: to be taken
    recipe: Recipe
    settings: Mapping[str, Any]  # all that decides the weights
    path: Path  # of the checkpoint
    seed: int = 0
    accumulate: int = 1
    workers: int = 0
    save_every: int | None = None
    skip_bad: bool = False
    frozen: tuple[str, ...] = ()  # modules whose weights stay as they are
    keep: str = "last"  # which weights: the last, the best as well, or all epochs'
    # Writes weights into a file of this name, for use, with the statistics of the images.
    write: Callable[[str, Mapping[str, Tensor], Statistics], None] = lambda *_: None


class Epoch(NamedTuple):
    """An epoch's numbers: mean losses, errors as shares of the test images (5: not among the best five)."""

    epoch: int
    rate: float
    loss: float
    test_loss: float
    error: float
    error5: float | None
    images_per_second: float
    seconds: float
