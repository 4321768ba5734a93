"""C++ on the CPU: vectorised for the processor it runs on, on torch's own threads."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..stages import DTYPES, Stages, check, memory_format
from ._launch import params
from .reference import conv_output_size, convolve


def missing_reason() -> str | None:
    return _native.missing_reason()


def unsupported_reason(x: Tensor, stages: Stages) -> str | None:
    if x.device.type != "cpu":
        return f"input is on {x.device}, not on the CPU"
    if x.dtype not in DTYPES:
        return f"input is {x.dtype}, not one of {DTYPES}"
    return missing_reason()


# glibc's largest mmap threshold: what is bigger comes fresh from the system each time, and goes back.
_FRESH_BYTES = 32 << 20


def _empty(shape: Sequence[int], dtype: torch.dtype, format: torch.memory_format) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype, memory_format=format)
    if tensor.nbytes > _FRESH_BYTES:
        _native.load().prefer_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def epilogue_forward(
    x: Tensor, bias: Tensor | None, stages: Stages, save: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    keep = save and stages.residual(bias is not None) == "r"
    format = memory_format(x)
    outputs = _outputs(x.shape, x.dtype, format, stages, keep, save)
    _run(x, bias, stages, format, *outputs)
    return outputs


def _outputs(
    shape: Sequence[int],
    dtype: torch.dtype,
    format: torch.memory_format,
    stages: Stages,
    keep: bool,
    save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y, r if it is to be kept, and the offsets if backward will want them, for an input of this shape."""
    out = stages.output_shape(shape)
    return (
        _empty(out, dtype, format),
        _empty(out if stages.pool_first else shape, dtype, format) if keep else None,
        _empty(out, stages.pool.offset_dtype, format) if save and stages.pool else None,
    )


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
    p = params(x, y, r, offsets, bias, stages, format)
    p.threads = torch.get_num_threads()
    _native.load().epilogue_forward(p)


def epilogue_backward(
    grad_y: Tensor,
    r: Tensor | None,
    offsets: Tensor | None,
    stages: Stages,
    size: Sequence[int],
    format: torch.memory_format,
    need_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    grad_x = _empty(size, grad_y.dtype, format)
    grad_bias = grad_y.new_zeros(size[1]) if need_bias else None
    if offsets is not None:  # a saved-tensor hook may have brought them back in other strides
        offsets = offsets.contiguous(memory_format=format)
    if grad_x.numel():
        p = params(grad_x, grad_y, r, offsets, grad_bias, stages, format)
        p.threads = torch.get_num_threads()
        _native.load().epilogue_backward(p)
    return grad_x, grad_bias


# The convolution's output, of so many bytes at a time: the allocator then hands out the same pages again
# instead of fresh ones, and the epilogue finds most of it in cache. From 8 to 32 MB it makes no odds; a
# convolution called on less takes up to a quarter longer, on more each call pays for the pages' first touch.
_CHUNK_BYTES = 16 << 20

# What makes a processor compute in the dtype itself. Without, oneDNN emulates it: a bfloat16 convolution
# then takes 4 times as long as a float32 one, float16 50 times.
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


def _images_at_once(x: Tensor, weight: Tensor, conv: Sequence[Any]) -> int:
    image = weight.shape[0] * math.prod(conv_output_size(x, weight, conv)) * x.element_size()
    return max(1, _CHUNK_BYTES // max(1, image))


def conv_block_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: Sequence[Any], stages: Stages, save: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    count, images = x.shape[0], _images_at_once(x, weight, conv)
    inner = x.dtype
    if x.dtype == weight.dtype:  # if not, the convolution refuses
        inner = _convolves_in(x.dtype)
        weight = weight.to(inner)

    def convolved(start: int) -> Tensor:
        return convolve(x[start : start + images].to(inner), weight, conv).to(x.dtype)

    if images >= count and inner == x.dtype and stages.lrn is None and stages.pool is None:
        # oneDNN adds the bias as it writes: nothing is left but a ReLU in place.
        y = torch.conv2d(x, weight, bias, *conv)
        return y.relu_() if stages.relu else y, None, None
    a = convolved(0)
    check(a, bias, stages)
    if images >= count:
        y, r, offsets = epilogue_forward(a, bias, stages, save)
        return y, a if save and stages.lrn and r is None else r, offsets
    keep = save and stages.lrn is not None
    shape = (count, *a.shape[1:])
    format = memory_format(a)
    outputs = y, r, offsets = _outputs(shape, a.dtype, format, stages, keep, save)
    for start in range(0, count, images):
        part = slice(start, start + images)
        if start:
            a = convolved(start)
        kept = (None if t is None else t[part] for t in (r, offsets))
        _run(a, bias, stages, format, y[part], *kept)
    return outputs
