"""The fastest of several ways to a result, timed where ``torch.backends.cudnn.benchmark`` allows it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

_fastest: dict[Hashable, int] = {}


def fastest(key: Hashable, x: Tensor, ways: Sequence[Callable[[], Any]]) -> int:
    """Which of the ways it is for x and its like on its device; the first where nothing may be timed.

    key: what else the time depends on. Timed once for each.
    """
    if not (torch.backends.cudnn.benchmark and x.is_cuda):
        return 0
    key = (key, x.device, x.dtype, x.shape, x.stride())
    if key not in _fastest:
        with torch.cuda.device(x.device):
            if torch.cuda.is_current_stream_capturing():
                return 0
            times = [_milliseconds(way) for way in ways]
        _fastest[key] = times.index(min(times))
    return _fastest[key]


def _milliseconds(run: Callable[[], Any]) -> float:
    """The median of five, after one to warm up; endless where memory is too small for it."""
    times = []
    try:
        run()
    except torch.cuda.OutOfMemoryError:
        return math.inf
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)
