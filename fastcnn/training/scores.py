"""Loss and errors of a network's scores, summed over images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

TOP = 5  # answers among which the right one may be


def averaged(scores: Iterable[Tensor]) -> Tensor:
    """Returns the log of the mean of several crops' probabilities (N, classes), in float64."""
    logs = torch.stack([crop.double().log_softmax(1) for crop in scores])
    return logs.logsumexp(0) - math.log(len(logs))


def sums(loss: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Sums the scores of N images, in float64 (4,).

    The sum of their losses; how many images; of how many the right class has the highest score; of how many
    it is among the TOP.
    """
    right = scores.topk(min(TOP, scores.shape[1])).indices == labels[:, None]
    loss = loss.double()
    return torch.stack([loss, loss.new_full((), len(labels)), right[:, 0].sum(), right.any(1).sum()])


class Scores(NamedTuple):
    """Mean loss, and errors as shares of the images; 5: not among the best five, None of five or fewer."""

    loss: float
    error: float
    error5: float | None


def means(sums: Tensor, classes: int) -> Scores:
    """Returns the means of :func:`sums`, of one image at least."""
    loss, count, right, right5 = sums.tolist()
    return Scores(loss / count, 1 - right / count, 1 - right5 / count if classes > TOP else None)
