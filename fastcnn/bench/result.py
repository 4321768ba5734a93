"""What a race gave: ratios round by round, what of them is only noise, and the record to save."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..measure import Timing, quartiles

AGAIN = "fastcnn again"  # the same once more in each round: how far chance alone sets two times apart


@dataclass(frozen=True)
class Result:
    """seconds: by contender, one for each round; failed: why others have none; the rest as in a Case."""

    name: str
    seconds: dict[str, list[float]]
    failed: dict[str, str]
    moved: int = 0
    flops: int = 0
    operations: int = 0

    def time(self, name: str) -> Timing:
        return quartiles(self.seconds[name])

    def times_faster(self) -> dict[str, Timing]:
        """Returns each contender's time divided by fastcnn's; empty if fastcnn has none."""
        ours = self.seconds.get("fastcnn", [])
        return {
            name: quartiles([a / b for a, b in zip(taken, ours, strict=True)])
            for name, taken in self.seconds.items()
            if ours
        }

    def too_close(self) -> list[str]:
        """Peers whose difference from fastcnn's time is not larger than that of fastcnn from itself.

        That is: its ratio's quartiles lie on both sides of 1, or its median is no farther from 1 than a
        quartile of the second timing's. Without a second timing nobody's difference is known to be larger.
        """
        ratios = self.times_faster()
        again = ratios.get(AGAIN)
        chance = max(map(_distance, (again.low, again.high))) if again else math.inf
        return [
            name
            for name, ratio in ratios.items()
            if not name.startswith("fastcnn")
            and (ratio.low <= 1 <= ratio.high or _distance(ratio.median) <= chance)
        ]

    def record(self, dtype: str, rates: dict[str, float]) -> dict[str, Any]:
        """For JSON. "floor": seconds that the bytes and the FLOPs take at the rates."""
        too_close = self.too_close()
        return {
            "name": self.name,
            "dtype": dtype,
            "seconds": {name: self.time(name)._asdict() for name in self.seconds},
            "times_faster": {name: ratio._asdict() for name, ratio in self.times_faster().items()},
            "too_noisy": bool(too_close),
            "too_close": too_close,
            "failed": self.failed,
            "moved": self.moved,
            "flops": self.flops,
            "operations": self.operations,
            "floor": self.moved / rates["copy"] + self.flops / rates[dtype],
        }


def _distance(ratio: float) -> float:
    """From 1; as far for half as for twice."""
    return abs(math.log(ratio))
