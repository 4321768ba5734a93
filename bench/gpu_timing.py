"""Times of the GPU alone, not of Python: a CUDA graph's replay, or launches behind a delay on the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

Call = Callable[[], Any]

FLUSHED = 256 << 20  # bytes, five times an H100's L2
CYCLES, LEAST_DELAY = 2e9, 50e-6  # a second's at most; seconds


class Times(NamedTuple):
    """Quartiles in microseconds; how: from a "graph", or behind a "delay" where nothing could be captured."""

    low: float
    median: float
    high: float
    how: str


def double() -> Any:
    """Stands in for torch.cuda where there is none: takes what that takes, and does nothing."""
    cuda = mock.MagicMock(spec=torch.cuda)
    cuda.CUDAGraph.return_value = mock.MagicMock(spec=torch.cuda.CUDAGraph)
    cuda.Event.return_value = mock.MagicMock(spec=torch.cuda.Event)
    cuda.Event.return_value.elapsed_time.return_value = 1.0
    cuda.memory_allocated.return_value = cuda.max_memory_allocated.return_value = 0
    cuda.get_device_properties.return_value.L2_cache_size = 16 << 10
    return cuda


def peak_bytes(fn: Call, cuda: Any = torch.cuda) -> int:
    """How much more memory than before is allocated while fn runs, at most."""
    cuda.reset_peak_memory_stats()
    before = cuda.memory_allocated()
    fn()
    return cuda.max_memory_allocated() - before


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:300]}"


def distance(actual: Tensor, expected: Tensor) -> float:
    """The norm of their difference over that of what is expected."""
    a, e = actual.detach().float(), expected.detach().float()
    return ((a - e).norm() / e.norm()).item()


class Clock:
    """cuda: torch.cuda or its double, whose current stream must not be the default one."""

    def __init__(self, cuda: Any, device: str, warm_ups: int, repeats: int, flushed: int = FLUSHED) -> None:
        self.cuda, self.device, self.warm_ups, self.repeats = cuda, device, warm_ups, repeats
        self.flusher = torch.zeros(flushed // 4, device=device)
        self.copies: dict[int, Times] = {}

    def captured(self, fn: Call) -> Call:
        """The replay of fn's launches; captured on the current stream, which backward runs on, too."""
        graph = self.cuda.CUDAGraph()
        graph.capture_begin()
        try:
            fn()
        finally:
            graph.capture_end()
        return graph.replay

    def time(self, fn: Call) -> Times:
        for _ in range(self.warm_ups):
            fn()
        self.cuda.synchronize()
        try:
            run, how = self.captured(fn), "graph"
        except RuntimeError:
            self.cuda.synchronize()
            run, how = fn, "delay"
        pairs = []
        for _ in range(2):  # the first replay brings the graph to the device, which may take seconds
            start = time.perf_counter()
            run()
            launching = time.perf_counter() - start
            self.cuda.synchronize()
        for _ in range(self.repeats):
            self.flusher.sum()  # by reading: what a fill leaves in L2 has to be written back first
            self.cuda._sleep(int(CYCLES * max(LEAST_DELAY, 3 * launching)))  # Python is done before the start
            start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        self.cuda.synchronize()
        taken = [1e3 * start.elapsed_time(end) for start, end in pairs]
        return Times(*statistics.quantiles(taken, n=4, method="inclusive"), how)

    def copy(self, moved: int) -> Times:
        """A copy that reads and writes so many bytes together."""
        if moved not in self.copies:
            a = torch.ones(max(1, moved // 2), dtype=torch.uint8, device=self.device)
            b = torch.empty_like(a)
            self.copies[moved] = self.time(lambda: b.copy_(a))
        return self.copies[moved]

    def race(self, calls: dict[str, Call], limit: float | None = None) -> dict[str, Any]:
        """Everyone's times; who fails, or with a limit is further than that from the first, is told why."""
        us, out, seconds, expected = {}, {}, {}, None
        for name, fn in calls.items():
            start = time.perf_counter()
            try:
                if limit is not None:
                    values = fn()
                    expected = values if expected is None else expected
                    if not (off := distance(values, expected)) <= limit:  # nor is NaN
                        raise ValueError(f"its values are off by {off:.2g}, not {limit:g}")
                us[name] = self.time(fn)
            except Exception as error:
                out[name] = describe(error)
                try:
                    self.cuda.synchronize()
                except Exception as broken:  # nothing runs any more: this is the row's, too
                    raise type(broken)(f"in {name}: {broken}") from error
            seconds[name] = round(time.perf_counter() - start, 2)
        return {"us": us, "seconds": seconds} | ({"left out": out} if out else {})
