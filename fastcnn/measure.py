"""What a computation keeps for backward, and how long computations take beside each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Timing(NamedTuple):
    """Seconds, or a ratio of them: the median of the rounds, and the quartiles on either side of it."""

    median: float
    low: float
    high: float


def bytes_kept(fn: Callable[[], Any], parameters: Iterable[Tensor] = ()) -> int:
    """Bytes that ``fn()`` keeps for backward, each storage once, those of ``parameters`` left out.

    A storage counts whole, however small the view of it that is kept.
    """
    own = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used a second time

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fn()
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


def seconds(fn: Callable[[], Any]) -> float:
    """Wall-clock time of ``fn()``, a GPU's work included."""
    start = time.perf_counter()
    fn()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def settle(fn: Callable[[], Any]) -> None:
    """Let the last contender's threads fall asleep, then warm up this one's, its caches and its pages.

    Without, whoever comes after a library with threads of its own takes far longer.
    """
    time.sleep(0.01)
    for _ in range(3):
        if seconds(fn) > 0.2:
            break


def quartiles(values: Sequence[float]) -> Timing:
    """Of at least two values: the median, and the quartiles on either side of it."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high)


def compare(fns: Mapping[str, Callable[[], Any]], repeats: int = 7) -> dict[str, Timing]:
    """Wall-clock time of each function. They take turns, so that what slows the machine slows all.

    Every function runs once before the clock starts.

    Raises:
        ValueError: fewer than two repeats, which have no spread.
    """
    if repeats < 2:
        raise ValueError(f"compare: repeats must be at least 2, but got {repeats}")
    for fn in fns.values():
        seconds(fn)
    rounds = [{name: seconds(fn) for name, fn in fns.items()} for _ in range(repeats)]
    return {name: quartiles([times[name] for times in rounds]) for name in fns}
