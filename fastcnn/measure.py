"""Times functions beside each other, and measures their memory."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Call = Callable[[], Any]
Clock = Callable[[Call], float]  # returns the seconds that a call takes

_TURN = 2e-3  # seconds of the host's clock, at least
_LONG = 0.2  # seconds; such a call is warmed up in the first round only


class Timing(NamedTuple):
    """Seconds, or a ratio of them: the median of the rounds, and the quartiles on either side of it."""

    median: float
    low: float
    high: float


class Budget(NamedTuple):
    """Rounds: all that fit into ``seconds``, at least ``rounds``, but no fourth once ``limit`` is over.

    rest: seconds of sleep before each turn, in which the last one's threads fall asleep; a short call is then
    warmed up again. Without, whoever comes after a library with threads of its own takes far longer.
    """

    rounds: int
    seconds: float = 0
    limit: float = math.inf
    rest: float = 0

    def goes_on(self, rounds: int, seconds: float) -> bool:
        if rounds < min(3, self.rounds) or seconds < self.seconds:
            return True
        return rounds < self.rounds and seconds < self.limit


def seconds(fn: Call, least: float = _TURN) -> float:
    """Returns the wall-clock time of a call, a GPU's work included.

    If a call takes less than ``least`` seconds, it is the mean of as many as fill them. A GPU is waited for
    at their end only, so that launches overlap with its work, as in a program.
    """
    taken = _elapsed(fn, 1)
    if taken < least:
        calls = math.ceil(least / max(taken, 1e-7))
        taken = _elapsed(fn, calls) / calls
    return taken


def _elapsed(fn: Call, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        fn()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@functools.cache
def _larger_than_l2() -> Tensor:
    return torch.empty(256 << 20, dtype=torch.uint8, device="cuda")


def gpu_seconds(fn: Call) -> float:
    """Returns the GPU's time for a call. Its L2 is flushed first; meanwhile launches can queue up."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _larger_than_l2().zero_()
    start.record()
    fn()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


CLOCKS: dict[str, Clock] = {"cpu": seconds, "cuda": gpu_seconds}


def in_turns(
    fns: Mapping[str, Call],
    budget: Budget,
    clock: Clock = seconds,
    failed: dict[str, str] | None = None,
) -> dict[str, list[float]]:
    """Returns each function's seconds in every round.

    They take turns, so that what slows the machine slows all.

    Args:
        fns: by name; each is warmed up before its first turn.
        budget: how many rounds.
        clock: measures a turn.
        failed: gets the error of whoever raises, in place of its times; without it, the error is raised.
    """
    taken: dict[str, list[float]] = {name: [] for name in fns}
    start, rounds = time.perf_counter(), 0
    while budget.goes_on(rounds, time.perf_counter() - start):
        rounds += 1
        for name in list(taken):
            before = taken[name]
            try:
                time.sleep(budget.rest)
                if not before or (budget.rest and before[-1] < _LONG):
                    seconds(fns[name])
                before.append(clock(fns[name]))
            except Exception as error:
                if failed is None:
                    raise
                failed[name] = reason(error)
                del taken[name]
    return taken


def compare(fns: Mapping[str, Call], repeats: int = 7, clock: Clock = seconds) -> dict[str, Timing]:
    """Returns the time of a call of each function, which take turns.

    Raises:
        ValueError: fewer than two repeats, which have no spread.
    """
    if repeats < 2:
        raise ValueError(f"compare: repeats must be at least 2, but got {repeats}")
    return {name: quartiles(taken) for name, taken in in_turns(fns, Budget(repeats), clock).items()}


def quartiles(values: Sequence[float]) -> Timing:
    """Returns the median of at least two values, and the quartiles on either side of it."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high)


def ratio(over: Sequence[float], under: Sequence[float]) -> Timing:
    """Returns how many times as long as the other one takes, round by round."""
    return quartiles([a / b for a, b in zip(over, under, strict=True)])


def reason(error: Exception) -> str:
    """Returns the error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}"


def bytes_kept(fn: Call, parameters: Iterable[Tensor] = ()) -> int:
    """Returns the bytes that ``fn()`` keeps for backward, each storage once, without those of ``parameters``.

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


def peak_bytes(fn: Call) -> int:
    """Returns how much more of the GPU's memory than before is allocated during ``fn()``, at most."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fn()
    return torch.cuda.max_memory_allocated() - before
