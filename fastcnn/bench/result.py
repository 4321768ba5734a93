"""What a race gave: ratios round by round, what of them is only noise, and the record to save."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..measure import Timing, quartiles

AGAIN = "fastcnn again"  # the same once more in each round: how far chance alone sets two times apart


@dataclass(frozen=True)
class Result:
    """seconds: by contender, one for each round; failed: why others have none; moved: bytes."""

    name: str
    seconds: dict[str, list[float]]
    failed: dict[str, str]
    moved: int = 0
    flops: int = 0

    def time(self, name: str) -> Timing:
        return quartiles(self.seconds[name])

    def times_faster(self) -> dict[str, Timing]:
        """How many times as long as fastcnn each one takes; empty where fastcnn has no times."""
        ours = self.seconds.get("fastcnn", [])
        return {
            name: quartiles([a / b for a, b in zip(taken, ours, strict=True)])
            for name, taken in self.seconds.items()
            if ours
        }

    def too_close(self) -> list[str]:
        """Whose difference from fastcnn's time is not larger than that of fastcnn from itself."""
        ratios = self.times_faster()
        if AGAIN not in ratios:
            return []
        chance = abs(math.log(self.time(AGAIN).median / self.time("fastcnn").median))
        return [
            name
            for name, ratio in ratios.items()
            if name not in ("fastcnn", AGAIN)
            and (ratio.low <= 1 <= ratio.high or abs(math.log(ratio.median)) <= chance)
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
            "floor": self.moved / rates["copy"] + self.flops / rates[dtype],
        }
