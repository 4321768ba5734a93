"""Rules of all launchers of fast kernels: which LRNs they take, whether windows leave a map; and a warp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ...stages import LRN, MaxPool

SIZES = range(1, 6)  # two channels on either side
BETAS = (0.5, 0.75, 1.0)  # formulas.fast_power's exact ones
LEAST_K = 1e-30  # d is a normal number


def takes_lrn(lrn: LRN, dtype: torch.dtype) -> bool:
    """Returns whether the fast kernels have the LRN. Other powers than BETAS are too rough for float32."""
    exact = lrn.beta in BETAS or dtype != torch.float32
    return exact and lrn.size in SIZES and lrn.k >= LEAST_K and lrn.alpha >= 0


def leaves_the_map(pool: MaxPool, size: Sequence[int], outputs: Sequence[int]) -> bool:
    """Returns whether a window has a place outside of a map of this size; both are (rows, columns)."""
    strides, paddings = pool.pairs[1:3]
    sides = zip(size, outputs, strides, paddings, pool.extent, strict=True)
    return any(p > 0 or (o - 1) * s + e > n for n, o, s, p, e in sides)


def warp_size(x: Tensor, interpreted: int) -> int:
    """Returns the lanes of a warp of the current GPU; of the interpreter, where x is on the CPU, so many."""
    return interpreted if x.is_cpu else int(triton.runtime.driver.active.get_current_target().warp_size)
