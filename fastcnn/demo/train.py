"""Training LeNet-5 on the digits, and saving it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _files
from .data import Split, shift

EPOCHS = 30
DROPOUT = 0.2
_BATCH = 64
_RATE = 5e-3
_SMOOTHING = 0.05


class Epoch(NamedTuple):
    """The loss of every step, and the share of the test digits that are right after the last."""

    losses: list[float]
    accuracy: float

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    """Makes one gradient step on (N, 1, 28, 28) and (N,); returns the loss before it."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels, label_smoothing=_SMOOTHING)
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def predict(model: torch.nn.Module, images: Tensor) -> Tensor:
    """Probabilities (N, classes) for (N, 1, 28, 28)."""
    model.eval()
    return model(images).softmax(1)


def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    return (predict(model, images).argmax(1) == labels).double().mean().item()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sets one thread: LeNet gains little from a second core, and loses much where others use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def fit(
    model: torch.nn.Module,
    digits: Split,
    epochs: int,
    seed: int,
    after: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:
    """Trains with AdamW and one rise and fall of its rate, on digits shifted anew each time.

    ``seed`` draws batches and shifts; ``after`` is called with each epoch as it ends.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters())
    count = len(digits.train_labels)
    steps = epochs * math.ceil(count / _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    history = []
    for _ in range(epochs):
        model.train()
        losses = []
        for batch in torch.randperm(count, generator=generator).split(_BATCH):
            images = shift(digits.train_images[batch], generator)
            losses.append(step(model, optimizer, images, digits.train_labels[batch]))
            schedule.step()
        history.append(Epoch(losses, accuracy(model, digits.test_images, digits.test_labels)))
        after(history[-1])
    return history


def save(model: torch.nn.Module, path: Path) -> None:
    """Saves the model's weights as safetensors; whole or not at all, see :func:`fastcnn._files.replace`."""
    from safetensors.torch import save as serialise

    _files.replace(path, serialise(model.state_dict()))
