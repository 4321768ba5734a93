"""C++ on the CPU: vectorised for the processor it runs on, on torch's own threads."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _native
from ..stages import DTYPES, Stages, check, memory_format
from ._convolution import conv_output_size, convolve
from ._launch import allocate, in_chunks, params
from .reference import convolve_then, lrn_input


def missing_reason() -> str | None:
    return _native.missing_reason()


def unsupported_reason(x: Tensor, stages: Stages) -> str | None:
    if x.device.type != "cpu":
        return f"input is on {x.device}, not on the CPU"
    if x.dtype not in DTYPES:
        return f"input is {x.dtype}, not one of {DTYPES}"
    reason = missing_reason()
    if reason is None:
        _native.load()  # raises if it is broken, even where torch's own functions would do
    return reason


def declined_reason(x: Tensor, stages: Stages, weight: Tensor | None) -> str | None:
    return None


# glibc's largest mmap threshold: what is bigger comes fresh from the system each time, and goes back.
_FRESH_BYTES = 32 << 20


def _empty(shape: Sequence[int], dtype: torch.dtype, format: torch.memory_format) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype, memory_format=format)
    if tensor.nbytes > _FRESH_BYTES:
        _native.load().prefer_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


# Values below which torch's own pooling is done before a launch of ours is ready; past it ours is, which is
# by far the faster on each value (`make sweep`).
_SMALL = 8192


def _best_by_torch(values: int, dtype: torch.dtype, stages: Stages, save: bool) -> bool:
    """Whether torch's own functions do as well: without LRN, and with few values to pool if any."""
    if stages.lrn is not None:
        return False
    if stages.pool is None:
        return values * dtype.itemsize <= _FRESH_BYTES
    return values < _SMALL and not save


def _by_torch(v: Tensor, stages: Stages, overwrite: bool) -> Tensor:
    """ReLU and pooling; overwrite: whether v may be."""
    if stages.relu:
        v = v.relu_() if overwrite else v.relu()
    if stages.pool is None:
        return v
    stages.output_shape(v.shape)  # refuses to pool to nothing, in our words
    return F.max_pool2d(v, *stages.pool.pairs, stages.pool.ceil_mode)  # type: ignore[call-overload]


def epilogue_forward(
    x: Tensor, bias: Tensor | None, stages: Stages, save: bool, keep_r: bool = True
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if _best_by_torch(x.numel(), x.dtype, stages, save):
        v = x if bias is None else x + bias.view(-1, 1, 1)
        y = _by_torch(v, stages, overwrite=v is not x)
        return y.contiguous(memory_format=memory_format(x)), None, None
    keep = save and keep_r and stages.residual(bias is not None) == "r"
    format = memory_format(x)
    outputs = allocate(_empty, x.shape, x.dtype, format, stages, keep, save)
    _run(x, bias, stages, format, *outputs)
    return outputs


# Values for which another thread is worth waking: below, it takes longer than the work (torch's own
# grain for elementwise work is as large).
_GRAIN = 32768


def _threads(x: Tensor) -> int:
    return min(torch.get_num_threads(), 1 + x.numel() // _GRAIN)


def _run(
    x: Tensor,
    bias: Tensor | None,
    stages: Stages,
    format: torch.memory_format,
    y: Tensor,
    r: Tensor | None,
    offsets: Tensor | None,
) -> None:
    """Fill y, r and offsets, which are laid out in this format; x and bias may have any strides."""
    if x.numel() == 0:
        return
    bias = bias if bias is None else bias.contiguous()
    _native.load().epilogue_forward(params(x, y, r, offsets, bias, stages, format, _threads(x)))


def epilogue_backward(
    grad_y: Tensor,
    r: Tensor | None,
    offsets: Tensor | None,
    stages: Stages,
    size: Sequence[int],
    format: torch.memory_format,
    need_bias: bool,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    if bias is not None:
        r = lrn_input(r, bias, stages)
    grad_x = _empty(size, grad_y.dtype, format)
    grad_bias = grad_y.new_zeros(size[1]) if need_bias else None
    if offsets is not None:  # a saved-tensor hook may have brought them back in other strides
        offsets = offsets.contiguous(memory_format=format)
    if grad_x.numel():
        p = params(grad_x, grad_y, r, offsets, grad_bias, stages, format, _threads(grad_x))
        _native.load().epilogue_backward(p)
    return grad_x, grad_bias


# The convolution's output, of so many bytes at a time: the epilogue finds most of it in cache, and the
# allocator hands out the same pages again. Of more at a time glibc gives pages back in every call, and to
# fetch them anew takes up to as long as the block itself (`make choices`).
_CHUNK_BYTES = 4 << 20

# What makes a processor compute in the dtype itself. Without, oneDNN emulates it, and a convolution takes
# several times as long as in float32.
_NATIVE = {
    torch.bfloat16: ("amx_bf16", "avx512_bf16", "bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16", "fp16_arith"),
}


@functools.cache
def _convolves_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which convolutions of this dtype are fastest here; sums are float32 in either."""
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    emulated = dtype in _NATIVE and known and not any(known.get(name) for name in _NATIVE[dtype])
    return torch.float32 if emulated else dtype


def _images_at_once(values: int, dtype: torch.dtype) -> int:
    """values: of one image's convolution."""
    return max(1, _CHUNK_BYTES // max(1, values * dtype.itemsize))


def conv_block_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: Sequence[Any], stages: Stages, save: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if x.dtype != weight.dtype:
        return convolve_then(epilogue_forward, x, weight, bias, conv, stages, save)  # where torch refuses
    inner = _convolves_in(x.dtype)
    image = weight.shape[0] * math.prod(conv_output_size(x, weight, conv))
    images = _images_at_once(image, x.dtype)
    if images < x.shape[0] or (inner != x.dtype and x.shape[0]):
        return in_chunks(_empty, _run, x, weight.to(inner), bias, conv, stages, save, images)
    if _best_by_torch(image * x.shape[0], x.dtype, stages, save):
        # oneDNN adds the bias as it writes: nothing is left but a ReLU in place, and pooling a few values.
        y = convolve(x, weight, conv, bias)
        check(y, bias, stages)
        return _by_torch(y, stages, overwrite=True), None, None
    return convolve_then(epilogue_forward, x, weight, bias, conv, stages, save)
