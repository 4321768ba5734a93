"""Chooses the images of each step, and reads them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import Batch, Source
from .processes import Processes


def seed_of(*numbers: int) -> int:
    """Returns a seed for each combination of numbers, so that no random state is kept between steps."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Steps:
    """The numbers of the images in every step: each image once in an epoch, in an order of its own."""

    def __init__(self, images: int, batch: int, seed: int) -> None:
        self.images, self.batch, self.seed = images, batch, seed
        self.per_epoch = math.ceil(images / batch)

    def numbers(self, step: int) -> Tensor:
        epoch, place = divmod(step, self.per_epoch)
        order = _order(self.images, seed_of(self.seed, epoch))
        return order[place * self.batch : (place + 1) * self.batch]


@functools.lru_cache(maxsize=2)  # of the epoch that is trained, and of the next, which is being read
def _order(images: int, seed: int) -> Tensor:
    return torch.randperm(images, generator=torch.Generator().manual_seed(seed))


def training(
    source: Source, steps: Steps, start: int, stop: int, processes: Processes, workers: int
) -> Iterator[Batch]:
    """Yields this process's share of every step from ``start`` on."""
    shares = (processes.share(steps.numbers(step)).tolist() for step in range(start, stop))
    return _reader(source, shares, processes, workers)


def all_of(
    source: Source, numbers: Tensor, batch: int, processes: Processes, workers: int
) -> Iterator[Batch]:
    """Yields this process's share of the images with these numbers, once, in batches."""
    share = processes.share(numbers)
    return _reader(source, [part.tolist() for part in share.split(batch)], processes, workers)


def _reader(source: Source, lists: Any, processes: Processes, workers: int) -> Iterator[Batch]:
    reader: DataLoader[Batch] = DataLoader(
        source,  # type: ignore[arg-type]
        batch_sampler=_Once(lists),
        num_workers=workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        pin_memory=processes.device.type == "cuda",
        worker_init_fn=_outlive_sigterm,
    )
    with _sigterm_waits():
        batches = iter(reader)
    if processes.device.type == "cuda" and workers == 0:
        return one_ahead(batches, functools.partial(torch.cuda.set_device, processes.device))
    return batches


def one_ahead(batches: Iterator[Batch], begin: Callable[[], None] | None = None) -> Iterator[Batch]:
    """Yields batches; a thread prefetches the next one, after ``begin``."""
    with ThreadPoolExecutor(1, initializer=begin) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


@contextlib.contextmanager
def _sigterm_waits() -> Iterator[None]:
    """Blocks SIGTERM inside the block; workers started in it unblock it in :func:`_outlive_sigterm`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _outlive_sigterm(worker: int) -> None:
    """Ignores the first SIGTERM, sent to the whole process group: training saves and stops by itself."""
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


class _Once:
    """A sampler: DataLoader wants one that it can iterate, whatever it is."""

    def __init__(self, lists: Iterator[list[int]] | Sequence[list[int]]) -> None:
        self._lists = lists

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._lists)


def _as_it_is(batch: Batch) -> Batch:
    return batch
