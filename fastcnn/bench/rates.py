"""What the machine could do, and how a device keeps time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..measure import seconds

Clock = Callable[[Callable[[], Any]], float]


@functools.cache
def _larger_than_l2() -> Tensor:
    return torch.empty(256 << 20, dtype=torch.uint8, device="cuda")


def gpu_seconds(fn: Callable[[], Any]) -> float:
    """The GPU's time for ``fn()``. Its L2 is flushed first; meanwhile launches can queue up."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _larger_than_l2().zero_()
    start.record()
    fn()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


CLOCKS: dict[str, Clock] = {"cpu": seconds, "cuda": gpu_seconds}
# Bytes of the copy, rows of the matmul, shape of the convolution's input: AlexNet's fourth, and a wider one.
_SIZES = {"cpu": (40 << 20, 2048, (32, 384, 13, 13)), "cuda": (256 << 20, 8192, (256, 512, 28, 28))}
_EMULATED = 2e9  # FLOP/s; at less, the processor lacks the dtype and a large matmul takes a minute


def best_of(fn: Callable[[], Any], rounds: int = 9, clock: Clock = seconds) -> float:
    return min(clock(fn) for _ in range(rounds))


def rates(dtypes: Iterable[torch.dtype], device: str = "cpu") -> dict[str, float]:
    """At their best: "copy", bytes per second, read and written; FLOP/s by each dtype's name.

    These are the faster one's of a matmul and a convolution: torch does them by other libraries, of which
    either may know the processor better.
    """
    size, rows, shape = _SIZES[device]
    clock = CLOCKS[device]
    a = torch.ones(size // 4, device=device)
    b = torch.empty_like(a)
    result = {"copy": 2 * a.nbytes / best_of(lambda: b.copy_(a), 50, clock)}
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        result[name] = _matmul_rate(torch.randn(256, 256, device=device).to(dtype), clock)
        if result[name] > _EMULATED:
            m, x = (torch.randn(*sizes, device=device).to(dtype) for sizes in ((rows, rows), shape))
            result[name] = max(_matmul_rate(m, clock), _convolution_rate(x, clock))
    return result


def _matmul_rate(m: Tensor, clock: Clock) -> float:
    return 2 * len(m) ** 3 / best_of(lambda: m @ m, clock=clock)


def _convolution_rate(x: Tensor, clock: Clock) -> float:
    """3 x 3, with as many channels out as in."""
    channels = x.shape[1]
    weight = torch.randn(channels, channels, 3, 3, device=x.device).to(x.dtype)
    fastest = best_of(lambda: torch.conv2d(x, weight, padding=1), clock=clock)
    return 2 * x.numel() * 9 * channels / fastest
