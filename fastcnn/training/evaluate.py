"""Tests a trained network: how often it is right, and which classes it confuses."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import Data
from ..models import imagenet
from . import augment, batches, scores
from .processes import Processes
from .scores import Scores
from .trained import Trained
from .unread import Unread

_BATCH = 64


class Evaluation(NamedTuple):
    """Of so many images; confusion (classes, classes): how many of each class, by row, got which answer."""

    images: int
    scores: Scores
    confusion: Tensor
    unread: dict[str, str]

    def mistakes(self) -> list[tuple[int, int, int]]:
        """Returns (class, class that it was taken for, how often), the most frequent first."""
        wrong = self.confusion.clone().fill_diagonal_(0)
        found = [(i, j, int(wrong[i, j])) for i, j in wrong.nonzero().tolist()]
        return sorted(found, key=lambda mistake: -mistake[2])


def evaluate(
    network: Trained, data: Data, device: torch.device, workers: int, all_crops: bool, skip_bad: bool
) -> Evaluation:
    """Evaluates on the test images.

    Args:
        network: of as many channels, size and side as the images.
        data: of classes that the network knows, see :func:`places`.
        device: where to.
        workers: processes that decode pictures.
        all_crops: average the probabilities of the paper's ten crops, of five where a mirror image is another
            thing; else the middle alone.
        skip_bad: go on without images that can't be read.

    Raises:
        RuntimeError: an image can't be read, or none can.
        ValueError: images that are not the network's.
    """
    _check(network, data)
    known = torch.tensor(places(network.classes, data.classes), device=device)
    network.model.to(device)
    count = len(network.classes)
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    confusion = torch.zeros(count * count, dtype=torch.long, device=device)
    alone = Processes(0, 1, device)
    unread = Unread(skip_bad, alone, lambda line: None)
    for batch in batches.all_of(data.test, torch.arange(len(data.test)), _BATCH, alone, workers):
        unread.add(batch.bad)
        images, labels = batch.images.to(device), known[batch.labels.to(device)]
        crops = [augment.middle(images, network.size)]
        if all_crops:
            crops = augment.ten_crops(images, network.size, data.mirrored)
        logs = scores.averaged(map(network.scores, crops))
        sums += scores.sums(F.nll_loss(logs, labels, reduction="sum"), logs, labels)
        confusion += torch.bincount(labels * count + logs.argmax(1), minlength=count * count)
    if sums[1] == 0:
        raise RuntimeError(f"no image to test with can be read{unread.first()}")
    found = scores.means(sums, count)
    return Evaluation(int(sums[1]), found, confusion.view(count, count).cpu(), unread.reasons)


def _check(network: Trained, data: Data) -> None:
    if network.channels != data.channels:
        raise ValueError(
            f"{network.name} takes images of {network.channels} channels, but these have {data.channels}"
        )
    if data.channels == 3 and data.side != network.side:
        raise ValueError(f"{network.name} takes crops of {network.side} pixels, but these have {data.side}")


def places(ours: tuple[str, ...], theirs: tuple[str, ...]) -> list[int]:
    """Returns the places in ``ours`` of the data's classes: by name, or torchvision's for WordNet ids.

    Raises:
        ValueError: a class of the data that the network does not know.
    """
    if set(theirs) <= set(ours):
        return [ours.index(name) for name in theirs]
    ids = len(theirs) == 1000 and all(re.match(r"n\d{8}\b", name) for name in theirs)
    if ids and ours == imagenet.classes():  # its words are in the order of the WordNet ids
        return list(range(1000))
    unknown = [name for name in theirs if name not in ours]
    more = ", ..." if len(unknown) > 5 else ""
    raise ValueError(f"the data has classes that the network does not know: {', '.join(unknown[:5])}{more}")
