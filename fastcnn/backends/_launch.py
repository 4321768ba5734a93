"""Tensors and stages as the native kernels' parameter struct, the same for every device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..stages import Stages


def _tensor(native: Any, t: Tensor | None) -> Any:
    return native.Tensor(0, 0, 0, 0, 0) if t is None else native.Tensor(t.data_ptr(), *t.stride())


def params(
    x: Tensor,
    y: Tensor,
    r: Tensor | None,
    offsets: Tensor | None,
    bias: Tensor | None,
    stages: Stages,
    format: torch.memory_format,
) -> Any:
    """x and y: the input and output, or in backward their gradients; bias likewise.

    Every tensor was checked, or allocated, by the caller: x, y (N, C, ., .), bias (C,) contiguous.
    """
    native = _native.load()
    p = native.EpilogueParams()
    p.dtype = getattr(native.Dtype, str(x.dtype).removeprefix("torch."))
    p.channels_last = format == torch.channels_last
    p.relu = stages.relu
    p.sizes(*x.shape, *y.shape[2:])
    p.x, p.y = _tensor(native, x), _tensor(native, y)
    p.r, p.offsets = _tensor(native, r), _tensor(native, offsets)
    p.bias(0 if bias is None else bias.data_ptr())
    if stages.lrn:
        lrn = stages.lrn
        p.lrn(lrn.size, lrn.alpha, lrn.beta, lrn.k, lrn.groups)
    if stages.pool:
        p.offset_bytes = stages.pool.offset_dtype.itemsize
        p.pool(*(i for pair in stages.pool.pairs for i in pair), stages.pool_first)
    return p
