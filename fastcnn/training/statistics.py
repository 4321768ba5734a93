"""Statistics of the training set's pixels, from a sample of its images."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..data import Batch
from . import augment
from .augment import Statistics
from .processes import Processes

_SAMPLE = 5000  # images


def sample(images: int) -> Tensor:
    """Returns the numbers of the images to take statistics of, evenly spaced."""
    return torch.arange(0, images, math.ceil(images / _SAMPLE))


def of(batches: Iterable[Batch], channels: int, processes: Processes) -> Statistics | None:
    """Returns the statistics of all processes' images; None if there are none.

    Sums of whole numbers are exact, so they do not depend on which process adds what.
    """
    sums = torch.zeros(1 + channels + channels**2, dtype=torch.float64, device=processes.device)
    for batch in batches:
        values = batch.images.to(processes.device).flatten(0, 2).T.double()
        count = values.new_full((1,), values.shape[1])
        sums += torch.cat([count, values.sum(1), (values @ values.T).flatten()])
    sums = processes.total(sums).cpu()
    if sums[0] == 0:
        return None
    return augment.statistics(sums[0], sums[1 : channels + 1], sums[channels + 1 :].view(channels, channels))
