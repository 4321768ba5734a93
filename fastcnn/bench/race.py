"""Contenders in turns: the values of each are compared with eager's first, then all are timed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..measure import Budget, Clock, Timing, in_turns, quartiles, ratio, reason
from .cases import Case
from .contenders import Builders, Run, tensors

TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.05}
_OF_GRADIENTS = 10  # times that: of values as good as the same, pooling may pick another
AGAIN = "fastcnn again"  # the same once more in each round: how far chance alone sets two times apart
QUICK, THOROUGH = Budget(5, 3, 8, rest=0.01), Budget(7, 12, 90, rest=0.01)


@dataclass(frozen=True)
class Result:
    """A race's times. seconds: by contender, one for each round; failed: why others have none."""

    case: Case
    seconds: dict[str, list[float]]
    failed: dict[str, str]

    def time(self, name: str) -> Timing:
        return quartiles(self.seconds[name])

    def times_faster(self) -> dict[str, Timing]:
        """Returns each contender's time divided by fastcnn's; empty if fastcnn has none."""
        ours = self.seconds.get("fastcnn")
        return {name: ratio(taken, ours) for name, taken in self.seconds.items()} if ours else {}

    def too_close(self) -> list[str]:
        """Returns peers whose difference from fastcnn's time is not larger than that of fastcnn from itself.

        That is: its ratio's quartiles lie on both sides of 1, or its median is no farther from 1 than a
        quartile of the second timing's. Without a second timing nobody's difference is known to be larger.
        """
        ratios = self.times_faster()
        again = ratios.get(AGAIN)
        chance = max(map(_distance, (again.low, again.high))) if again else math.inf
        return [
            name
            for name, each in ratios.items()
            if not name.startswith("fastcnn")
            and (each.low <= 1 <= each.high or _distance(each.median) <= chance)
        ]

    def record(self, dtype: str, rates: dict[str, float]) -> dict[str, Any]:
        """Returns what to save. "floor": seconds that the bytes and the FLOPs take at the rates."""
        case, too_close = self.case, self.too_close()
        return {
            "name": case.name,
            "dtype": dtype,
            "seconds": {name: self.time(name)._asdict() for name in self.seconds},
            "times_faster": {name: each._asdict() for name, each in self.times_faster().items()},
            "too_noisy": bool(too_close),
            "too_close": too_close,
            "failed": self.failed,
            "moved": case.moved,
            "flops": case.flops,
            "operations": case.operations,
            "floor": case.moved / rates["copy"] + case.flops / rates[dtype],
            **({"memory": case.memory} if case.memory else {}),
        }


def _distance(ratio: float) -> float:
    """From 1; as far for half as for twice."""
    return abs(math.log(ratio))


def race(case: Case, budget: Budget, dtype: torch.dtype, clock: Clock, tell: Callable[[str], None]) -> Result:
    """Times the case's contenders, fastcnn twice a round; whoever fails or is wrong is excluded.

    tell: is called with what happens now.
    """
    try:
        runs, failed = check(case.builders, TOLERANCES[dtype], tell)
    except Exception as error:
        return Result(case, {}, {"eager": reason(error)})
    if "fastcnn" in runs:
        runs[AGAIN] = runs["fastcnn"]
    tell("timing")
    return Result(case, in_turns(runs, budget, clock, failed), failed)


def check(
    builders: Builders, tolerance: float, tell: Callable[[str], None] = lambda state: None
) -> tuple[dict[str, Run], dict[str, str]]:
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
    """Returns the norm of the difference over the norm, of several tensors the largest; NaN where one is NaN.

    A tensor far smaller than the rest is measured by these: the gradient of a bias before a batch norm is
    nothing but rounding.
    """
    pairs = [(a.float(), e.float()) for a, e in zip(tensors(actual), tensors(expected), strict=True)]
    least = 1e-3 * torch.stack([e.norm() for _, e in pairs]).norm()
    return torch.stack([(a - e).norm() / e.norm().maximum(least) for a, e in pairs]).max().item()
