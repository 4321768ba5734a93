"""Times the GPU alone, not Python: replays of a CUDA graph, or launches behind a delay on the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastcnn import measure

Call = Callable[[], Any]

FLUSHED = 256 << 20  # bytes, five times an H100's L2
CYCLES, LEAST_DELAY = 2e9, 50e-6  # a second's at most; seconds


class Times(NamedTuple):
    """Quartiles in microseconds; how: of a "graph", or behind a "delay" where nothing could be captured."""

    low: float
    median: float
    high: float
    how: str


class Launches(NamedTuple):
    """A graph's replay, or the function itself; cycles: how long the device waits until all is launched."""

    run: Call
    how: str
    cycles: int

    def __call__(self) -> None:
        self.run()


def times(seconds: measure.Timing, how: str) -> Times:
    return Times(1e6 * seconds.low, 1e6 * seconds.median, 1e6 * seconds.high, how)


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:300]}"


def distance(actual: Tensor, expected: Tensor) -> float:
    """Returns the norm of the difference, relative to that of what is expected."""
    a, e = actual.detach().float(), expected.detach().float()
    return ((a - e).norm() / e.norm()).item()


class Clock:
    """Times launches with the L2 cache flushed.

    Args:
        cuda: torch.cuda or a double of it; the current stream must not be the default one.
        warm_ups: calls before a function is captured.
        repeats: times that each is timed.
        flushed: bytes that are read to flush the L2 cache.
    """

    def __init__(self, cuda: Any, device: str, warm_ups: int, repeats: int, flushed: int = FLUSHED) -> None:
        self.cuda, self.device, self.warm_ups, self.repeats = cuda, device, warm_ups, repeats
        self.flusher = torch.zeros(flushed // 4, device=device)
        self.copies: dict[int, Times] = {}

    def prepare(self, fn: Call) -> Launches:
        """Warms fn up and captures it, on the current stream, which its backward runs on, too."""
        for _ in range(self.warm_ups):
            fn()
        self.cuda.synchronize()
        graph = self.cuda.CUDAGraph()
        try:
            graph.capture_begin()
            try:
                fn()
            finally:
                graph.capture_end()
            run, how = graph.replay, "graph"
        except RuntimeError:
            self.cuda.synchronize()
            run, how = fn, "delay"
        for _ in range(2):  # the first replay brings the graph to the device, which may take seconds
            start = time.perf_counter()
            run()
            launching = time.perf_counter() - start
            self.cuda.synchronize()
        return Launches(run, how, int(CYCLES * max(LEAST_DELAY, 3 * launching)))

    def seconds(self, launches: Launches) -> float:
        """Returns the device's time for what was prepared."""
        start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
        self.flusher.sum()  # by reading: what a fill leaves in L2 has to be written back first
        self.cuda._sleep(launches.cycles)  # Python is done before the start
        start.record()
        launches.run()
        end.record()
        self.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    def compare(self, launches: dict[str, Launches]) -> dict[str, Times]:
        """Returns each one's times; they take turns."""
        found = measure.compare(launches, self.repeats, self.seconds)
        return {name: times(took, launches[name].how) for name, took in found.items()}

    def time(self, fn: Call) -> Times:
        return self.compare({"fn": self.prepare(fn)})["fn"]

    def copy(self, moved: int) -> Times:
        """Returns the times of a copy that reads and writes so many bytes together."""
        if moved not in self.copies:
            a = torch.ones(max(1, moved // 2), dtype=torch.uint8, device=self.device)
            b = torch.empty_like(a)
            self.copies[moved] = self.time(lambda: b.copy_(a))
        return self.copies[moved]

    def race(self, calls: dict[str, Call], limit: float | None = None) -> dict[str, Any]:
        """Returns times in "us", and in "seconds" what each took to be prepared: compiled, mostly.

        Whoever fails, or has values further than limit from the first's, is "left out", with the reason.
        """
        ready, out, seconds, expected = {}, {}, {}, None
        for name, fn in calls.items():
            start = time.perf_counter()
            try:
                if limit is not None:
                    values = fn()
                    expected = values if expected is None else expected
                    if not (off := distance(values, expected)) <= limit:  # nor is NaN
                        raise ValueError(f"its values are off by {off:.2g}, not {limit:g}")
                ready[name] = self.prepare(fn)
            except Exception as error:
                out[name] = describe(error)
                try:
                    self.cuda.synchronize()
                except Exception as broken:  # nothing runs any more: this is the row's, too
                    raise type(broken)(f"in {name}: {broken}") from error
            seconds[name] = round(time.perf_counter() - start, 2)
        return {"us": self.compare(ready), "seconds": seconds} | ({"left out": out} if out else {})
