"""Contenders in turns: the values of each are compared with eager's first, then all are timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..measure import settle
from .cases import Case
from .contenders import Builders, Run
from .rates import Clock
from .result import AGAIN, Result

Tell = Callable[[str], None]  # is called with what happens now
TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.05}
_OF_GRADIENTS = 10  # times that: of values as good as the same, pooling may pick another
_LONG = 0.2  # seconds; such a call needs no warm-up of its own


class Budget(NamedTuple):
    """A case's rounds: all that fit into ``seconds``, at least ``rounds``, but 3 once ``limit`` is over."""

    rounds: int
    seconds: float
    limit: float

    def goes_on(self, rounds: int, seconds: float) -> bool:
        return rounds < 3 or seconds < self.seconds or (rounds < self.rounds and seconds < self.limit)


QUICK, THOROUGH = Budget(5, 3, 8), Budget(7, 12, 90)


def race(case: Case, budget: Budget, dtype: torch.dtype, clock: Clock, tell: Tell) -> Result:
    """Time the case's contenders, fastcnn twice a round; whoever fails or is wrong is left out."""
    try:
        runs, failed = check(case.builders, TOLERANCES[dtype], tell)
    except Exception as error:
        return Result(case.name, {}, {"eager": reason(error)})
    if "fastcnn" in runs:
        runs[AGAIN] = runs["fastcnn"]
    seconds = take_turns(runs, failed, budget, clock, tell)
    return Result(case.name, seconds, failed, case.moved, case.flops, case.operations)


def check(builders: Builders, tolerance: float, tell: Tell) -> tuple[dict[str, Run], dict[str, str]]:
    """Returns the contenders with eager's values, ready to run, and by name why others are excluded.

    Args:
        tolerance: for :func:`difference`; gradients, which come in a sequence, are granted more.
    """
    tell("eager")
    runs, failed = {"eager": builders["eager"]()}, {}
    output = runs["eager"]()
    if not isinstance(output, Tensor):
        tolerance *= _OF_GRADIENTS
    for name in [name for name in builders if name != "eager"]:
        tell(f"preparing {name}")
        try:
            run = builders[name]()
            off = difference(run(), output)
        except Exception as error:
            failed[name] = reason(error)
            continue
        if off <= tolerance:
            runs[name] = run
        else:  # NaN is here too
            failed[name] = f"its values are off by {off:.2g}"
    return runs, failed


def difference(actual: Any, expected: Any) -> float:
    """Norm of the difference over the norm; of several tensors the largest, or NaN where one is NaN."""
    pairs = zip(_tensors(actual), _tensors(expected), strict=True)
    return torch.stack([(a - e).norm() / e.norm() for a, e in pairs]).max().item()


def _tensors(output: Any) -> list[Tensor]:
    return [t.detach().float() for t in ([output] if isinstance(output, Tensor) else output)]


def reason(error: Exception) -> str:
    """The error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}"


def take_turns(
    runs: dict[str, Run], failed: dict[str, str], budget: Budget, clock: Clock, tell: Tell
) -> dict[str, list[float]]:
    """Seconds of each in every round; whoever fails on the way goes to ``failed``."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    start, rounds = time.perf_counter(), 0
    while budget.goes_on(rounds, time.perf_counter() - start):
        rounds += 1
        for name in list(seconds):
            tell(f"round {rounds}, {name}")
            try:
                seconds[name].append(turn(runs[name], seconds[name], clock))
            except Exception as error:
                failed[name] = reason(error)
                del seconds[name]
    return seconds


def turn(run: Run, before: list[float], clock: Clock) -> float:
    """Seconds of one run, warmed up; before: those that it took in earlier rounds."""
    if before and before[-1] > _LONG:
        time.sleep(0.01)
    else:
        settle(run)
    return clock(run)
