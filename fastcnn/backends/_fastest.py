"""The fastest of several ways to a result, timed where ``torch.backends.cudnn.benchmark`` allows it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._torch_private import device_waits


class Choice(NamedTuple):
    """A timed choice: its cache key, and each way's milliseconds by name; inf if it raised."""

    key: tuple[Hashable, ...]
    milliseconds: dict[str, float]

    @property
    def way(self) -> str:
        """The name of the way that is taken."""
        return min(self.milliseconds, key=self.milliseconds.__getitem__)


_choices: dict[Hashable, Choice] = {}


def chosen() -> list[Choice]:
    """Returns what was timed in this process so far, in order."""
    return list(_choices.values())


def fastest(key: tuple[Hashable, ...], x: Tensor, ways: Mapping[str, Callable[[], Any]]) -> str:
    """Returns the name of the fastest way for x and its like on its device.

    Each is timed once for a key and x's device, dtype, shape and strides. Where nothing may be timed, which
    is also while a CUDA graph is captured, it is the first.

    Args:
        key: what else the times depend on.
        ways: calls that come to the same result, by name.
    """
    first = next(iter(ways))
    if len(ways) == 1 or not (torch.backends.cudnn.benchmark and x.is_cuda):
        return first
    key = (*key, x.device, x.dtype, tuple(x.shape), x.stride())
    if key not in _choices:
        with torch.cuda.device(x.device):
            if torch.cuda.is_current_stream_capturing():
                return first
            _choices[key] = Choice(key, {name: _milliseconds(way) for name, way in ways.items()})
    return _choices[key].way


# Cycles that the device waits, some 2 ms: it takes a fraction of that to launch a convolution.
_WAIT, _LONGEST_WAIT = 1 << 22, 1 << 27


def _milliseconds(run: Callable[[], Any]) -> float:
    """Returns what a call takes the device or Python, whichever is longer: medians of five; inf if it raises.

    In a loop the other is hidden behind it. Python's is that of a call while the device has nothing to do.
    For its own, the device waits until all is launched; this needs no capture, which would empty the
    allocator's cache and hold memory of its own.
    """
    times: list[float] = []
    launching: list[float] = []
    wait = _WAIT
    try:
        run()
        while len(launching) < 5:
            torch.cuda.synchronize()
            begun = time.perf_counter()
            run()
            launching.append(1e3 * (time.perf_counter() - begun))
        while len(times) < 5:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            device_waits(wait)
            start.record()
            run()
            end.record()
            if start.query() and wait < _LONGEST_WAIT:
                wait *= 2  # it did not wait long enough
                continue
            end.synchronize()
            times.append(start.elapsed_time(end))
    except Exception:  # too little memory, or what a library does not have; if all raise, so does the first
        return math.inf
    return max(statistics.median(times), statistics.median(launching))
