"""Measures the machine at its best: a large copy, a matmul and a convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..measure import CLOCKS, Budget, Clock, in_turns, seconds

# Bytes of the copy, rows of the matmul, shape of the convolution's input: AlexNet's fourth, and a wider one.
_SIZES = {"cpu": (40 << 20, 2048, (32, 384, 13, 13)), "cuda": (256 << 20, 8192, (256, 512, 28, 28))}
_EMULATED = 2e9  # FLOP/s; at less, the processor lacks the dtype and a large matmul takes a minute


def best_of(fn: Callable[[], Any], rounds: int = 9, clock: Clock = seconds) -> float:
    return min(in_turns({"": fn}, Budget(rounds), clock)[""])


def rates(dtypes: Iterable[torch.dtype], device: str = "cpu") -> dict[str, float]:
    """Returns "copy", bytes per second, read and written, and FLOP/s by each dtype's name."""
    a = torch.ones(_SIZES[device][0] // 4, device=device)
    b = torch.empty_like(a)
    copy = 2 * a.nbytes / best_of(lambda: b.copy_(a), 50, CLOCKS[device])
    return {"copy": copy} | {str(dtype).removeprefix("torch."): _flops(dtype, device) for dtype in dtypes}


def _flops(dtype: torch.dtype, device: str) -> float:
    """Returns the faster one's of a matmul and of a convolution.

    torch does them by other libraries, of which either may know the processor better.
    """
    _, rows, shape = _SIZES[device]
    clock = CLOCKS[device]

    def matmul(rows: int) -> float:
        m = torch.randn(rows, rows, device=device).to(dtype)
        return 2 * rows**3 / best_of(lambda: m @ m, clock=clock)

    if (small := matmul(256)) < _EMULATED:
        return small
    channels = shape[1]
    x, weight = (torch.randn(s, device=device).to(dtype) for s in (shape, (channels, channels, 3, 3)))
    taken = best_of(lambda: torch.conv2d(x, weight, padding=1), clock=clock)
    return max(matmul(rows), 2 * x.numel() * 9 * channels / taken)
