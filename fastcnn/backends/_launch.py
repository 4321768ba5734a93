"""Tensors and stages as the native kernels' parameter struct, the same for every device."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .. import _native
from ..stages import Stages

Results: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]  # y, r, argmax

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
    """Returns a tensor's address and strides."""
    return None if t is None else (t.data_ptr(), t.stride())


@functools.lru_cache(maxsize=1024)
def _numbers(stages: Stages) -> tuple[Any, ...]:
    """Returns what the struct has of them: the stages, whether pooling comes first, bytes of an argmax."""
    lrn, pool = stages.lrn, stages.pool
    return (
        stages.relu,
        lrn and (lrn.size, lrn.alpha, lrn.beta, lrn.k, lrn.groups),
        pool and [i for pair in pool.pairs for i in pair],
        stages.pool_first,
        pool.argmax_dtype.itemsize if pool else 1,
    )


def ceil_div(a: int, b: int) -> int:
    """Returns a / b, rounded up. triton.cdiv, being a compiler's function, is slow on the host."""
    return -(-a // b)


def empty_on(device: torch.device) -> Callable[..., Tensor]:
    """Returns a function that allocates a tensor of a shape, dtype and format there."""

    def empty(shape: Sequence[int], dtype: torch.dtype, format: torch.memory_format) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device, memory_format=format)

    return empty


_HERE = contextlib.nullcontext()


def on_device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launches go to the current device, whichever its tensors are on."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(x.device)


def allocate(
    empty: Callable[..., Tensor],
    shape: Sequence[int],
    dtype: torch.dtype,
    format: torch.memory_format,
    stages: Stages,
    save: bool,
    makes_r: bool,
) -> Results:
    """Returns memory for y, and if it is to be saved for r and the argmax, for an input of this shape.

    empty: makes a tensor of a shape, dtype and format. makes_r: whether there is an r, see :class:`Stages`.
    """
    out = stages.output_shape(shape)
    return (
        empty(out, dtype, format),
        empty(out if stages.pool_first else shape, dtype, format) if save and makes_r else None,
        empty(out, stages.pool.argmax_dtype, format) if save and stages.pool else None,
    )


def params(
    x: Tensor | Sequence[int],
    y: Tensor,
    r: Tensor | None,
    argmax: Tensor | None,
    bias: Tensor | None,
    stages: Stages,
    format: torch.memory_format,
    threads: int = 1,
    r_bias: Tensor | None = None,
) -> Any:
    """Returns the native kernels' parameters.

    x, y, bias: input, output and bias; in backward their gradients.
    x may be a shape, where it is not in memory. Every tensor was checked, or allocated, by the caller: x, y
    (N, C, ., .), bias and r_bias (C,) contiguous.
    threads: of the CPU. r_bias: what a GPU's backward has still to add to r.
    """
    data, shape = (x, x.shape) if isinstance(x, Tensor) else (None, x)
    one_pixel = shape[2:] == y.shape[2:] == (1, 1)  # both formats at once: vectors need channels then
    *numbers, argmax_bytes = _numbers(stages)
    return _native.load().EpilogueParams(
        _dtype(y.dtype),
        format == torch.channels_last or one_pixel,
        *numbers,
        shape,
        y.shape,
        address(data),
        address(y),
        address(r),
        address(argmax),
        argmax_bytes,
        0 if bias is None else bias.data_ptr(),
        0 if r_bias is None else r_bias.data_ptr(),
        threads,
    )
