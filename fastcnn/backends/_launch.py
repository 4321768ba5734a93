"""Tensors and stages as the native kernels' parameter struct, the same for every device."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..stages import LRN, MaxPool, Stages, check, memory_format
from ._convolution import convolve

_NAMES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float64: "float64",
}


@functools.cache
def _dtype(dtype: torch.dtype) -> Any:
    return getattr(_native.load().Dtype, _NAMES[dtype])


def address(t: Tensor | None) -> tuple[int, tuple[int, ...]] | None:
    """Where a tensor begins, and its strides."""
    return None if t is None else (t.data_ptr(), t.stride())


def _lrn(lrn: LRN) -> tuple[int, float, float, float, int]:
    return lrn.size, lrn.alpha, lrn.beta, lrn.k, lrn.groups


def _pool(pool: MaxPool) -> tuple[int, ...]:
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = pool.pairs
    return kh, kw, sh, sw, ph, pw, dh, dw


def ceil_div(a: int, b: int) -> int:
    """Returns a / b, rounded up. triton.cdiv, being a compiler's function, is slow on the host."""
    return -(-a // b)


def empty_on(device: torch.device) -> Callable[..., Tensor]:
    """What makes a tensor of a shape, dtype and format there."""

    def empty(shape: Sequence[int], dtype: torch.dtype, format: torch.memory_format) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device, memory_format=format)

    return empty


def on_device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launches go to the current device, whichever its tensors are on."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def allocate(
    empty: Callable[..., Tensor],
    shape: Sequence[int],
    dtype: torch.dtype,
    format: torch.memory_format,
    stages: Stages,
    keep: bool,
    save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y, r if it is to be kept, and the offsets if backward will want them, for an input of this shape.

    empty: makes a tensor of a shape, dtype and format.
    """
    out = stages.output_shape(shape)
    return (
        empty(out, dtype, format),
        empty(out if stages.pool_first else shape, dtype, format) if keep else None,
        empty(out, stages.pool.offset_dtype, format) if save and stages.pool else None,
    )


def params(
    x: Tensor,
    y: Tensor,
    r: Tensor | None,
    offsets: Tensor | None,
    bias: Tensor | None,
    stages: Stages,
    format: torch.memory_format,
    threads: int = 1,
    r_bias: Tensor | None = None,
) -> Any:
    """x and y: the input and output, or in backward their gradients; bias likewise.

    Every tensor was checked, or allocated, by the caller: x, y (N, C, ., .), bias and r_bias (C,) contiguous.
    threads: of the CPU. r_bias: what a GPU's backward has still to add to r.
    """
    one_pixel = x.shape[2:] == y.shape[2:] == (1, 1)  # both formats at once: vectors need channels then
    return _native.load().EpilogueParams(
        _dtype(x.dtype),
        format == torch.channels_last or one_pixel,
        stages.relu,
        stages.lrn and _lrn(stages.lrn),
        stages.pool and _pool(stages.pool),
        stages.pool_first,
        x.shape,
        y.shape,
        address(x),
        address(y),
        address(r),
        address(offsets),
        stages.pool.offset_dtype.itemsize if stages.pool else 1,
        0 if bias is None else bias.data_ptr(),
        0 if r_bias is None else r_bias.data_ptr(),
        threads,
    )


def in_chunks(
    empty: Callable[..., Tensor],
    run: Callable[..., None],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: Sequence[Any],
    stages: Stages,
    save: bool,
    images: int,
    convolve: Callable[..., Tensor] = convolve,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A block by so many images at a time, convolved in weight's dtype.

    empty: as allocate has it; run: fills y, r and offsets, given the convolution's part and its format.
    """
    outputs: tuple[Tensor, Tensor | None, Tensor | None] | None = None
    for start in range(0, x.shape[0], images):
        part = slice(start, start + images)
        a = convolve(x[part].to(weight.dtype), weight, conv).to(x.dtype)
        if outputs is None:
            check(a, bias, stages)
            format = memory_format(a)
            keep = save and stages.lrn is not None
            outputs = allocate(empty, (x.shape[0], *a.shape[1:]), a.dtype, format, stages, keep, save)
        y, r, offsets = (None if t is None else t[part] for t in outputs)
        assert y is not None
        if r is not None and stages.block_residual(x.device.type) == "input":
            r.copy_(a)
            r = None
        run(a, bias, stages, format, y, r, offsets)
    assert outputs is not None  # an empty batch is not in chunks
    return outputs
