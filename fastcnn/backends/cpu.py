"""C++ on the CPU: vectorised for the processor it runs on, on torch's own threads."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..stages import DTYPES, Conv, Pair, Stages, memory_format
from . import _direct
from ._block import BlockGradients, convolve_then, in_chunks
from ._convolution import conv_output_size, convolve, output_format
from ._launch import Results, allocate, params
from .reference import lrn_input


def missing_reason() -> str | None:
    return _native.missing_reason()


def unsupported_reason(x: Tensor, stages: Stages) -> str | None:
    if x.device.type != "cpu":
        return f"input is on {x.device}, not on the CPU"
    if x.dtype not in DTYPES:
        return f"input is {x.dtype}, not one of {DTYPES}"
    reason = _native.missing_reason()
    if reason is None:
        _native.load()  # raises if it is broken, even where torch's own functions would do
    return reason


def declined_reason(x: Tensor, stages: Stages, weight: Tensor | None) -> str | None:
    return None


# glibc's largest mmap threshold: what is bigger comes fresh from the system each time, and goes back.
_FRESH_BYTES = 32 << 20

# Values below which torch's own pooling is done before a launch of ours is ready; past it ours is, which is
# by far the faster on each value (`make sweep`).
SMALL = 8192


def slower_reason(x: Tensor, stages: Stages, weight: Tensor | None, conv: Conv | None = None) -> str | None:
    """Returns why torch's own functions do as well: there is no LRN, and few values to pool if any.

    In a block oneDNN adds the bias as it writes: nothing is left but a ReLU in place, and the pooling. Its
    values are counted as if it had no margins.
    """
    if stages.lrn is not None or (weight is not None and _convolves_in(x.dtype) != x.dtype):
        return None
    values = x.numel()
    if weight is not None:
        values = values // max(1, x.shape[1] * math.prod(conv[0] if conv else ())) * weight.shape[0]
    if type(values) is not int:  # a compiler's symbol, which no choice may depend on
        return None
    if weight is not None and conv and _direct.geometry(x, weight, conv, stages):
        return None
    if stages.pool is not None:
        if not torch_pools_right(x, stages.pool.pairs[3]):
            return None
        few = values < (SMALL if stages.relu else 8 * SMALL)
        slowly = pools_slowly(x) if weight is None else conv and _pools_narrow(x, weight, conv, values)
        return "torch's own functions pool few values as fast" if few or slowly else None
    # In chunks, 1 x 1 convolutions of 4 to 8 MB have .7 to .85 of torch's speed (AMD EPYC with AVX-512).
    most = _FRESH_BYTES if weight is None or x.shape[0] == 1 else 2 * _CHUNK_BYTES
    return "torch's own ReLU is as fast" if values * x.itemsize <= most else None


def torch_pools_right(x: Tensor, dilation: Pair) -> bool:
    """Returns whether torch's gradients of a pooling are right, if any are recorded.

    It sums those of overlapping windows in half precision, and writes outside of the map for a window that
    lies in the padding, as a dilated one may.
    """
    if not torch.is_grad_enabled():
        return True
    return x.dtype.itemsize > 2 and type(dilation) in (int, tuple) and dilation in (1, (1, 1))


def pools_slowly(x: Tensor) -> bool:
    """Returns whether vectors, over a map's rows or over channels, would be filled badly."""
    _, channels, height, width = x.shape
    short = channels < 16 if memory_format(x) == torch.channels_last else width < 8
    return short or height * width < 64


def _pools_narrow(x: Tensor, weight: Tensor, conv: Conv, values: int) -> bool:
    """Returns the same of a convolution's output: of 512 maps of 4 x 4, ours has .2 to .4 of torch's speed.

    Of 7 x 7 it has .7 for one image and 1.6 for 8.
    """
    if output_format(x, weight) == torch.channels_last:
        return False
    _, columns = conv_output_size(x, weight, conv)
    return columns < 6 or (columns < 8 and values < 16 * SMALL)


def _empty(shape: Sequence[int], dtype: torch.dtype, format: torch.memory_format) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype, memory_format=format)
    if tensor.nbytes > _FRESH_BYTES:
        _native.load().prefer_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def epilogue_forward(
    x: Tensor, bias: Tensor | None, stages: Stages, save: bool, keep_r: bool = True
) -> Results:
    format, makes_r = memory_format(x), keep_r and stages.makes_r(bias is not None)
    outputs = allocate(_empty, x.shape, x.dtype, format, stages, save, makes_r)
    _run(x, bias, stages, format, *outputs)
    return outputs


# Values for which another thread is worth waking: below, it takes longer than the work (torch's own
# grain for elementwise work is as large).
GRAIN = 32768


def _threads(x: Tensor) -> int:
    return min(torch.get_num_threads(), 1 + x.numel() // GRAIN)


def _run(
    x: Tensor,
    bias: Tensor | None,
    stages: Stages,
    format: torch.memory_format,
    y: Tensor,
    r: Tensor | None,
    argmax: Tensor | None,
) -> None:
    """Fills y, r and argmax, which are laid out in this format; x and bias may have any strides."""
    if x.numel() == 0:
        return
    bias = bias if bias is None else bias.contiguous()
    _native.load().epilogue_forward(params(x, y, r, argmax, bias, stages, format, _threads(x)))


def epilogue_backward(
    grad_y: Tensor,
    r: Tensor | None,
    argmax: Tensor | None,
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
    if argmax is not None:  # a saved-tensor hook may have brought them back in other strides
        argmax = argmax.contiguous(memory_format=format)
    if grad_x.numel():
        p = params(grad_x, grad_y, r, argmax, grad_bias, stages, format, _threads(grad_x))
        _native.load().epilogue_backward(p)
    return grad_x, grad_bias


# Bytes of the convolution's output that a block computes at a time. The epilogue finds most of them in
# cache, and the allocator reuses the pages. With larger chunks glibc returns pages to the system in every
# call; getting them back makes a block take up to 1.5 times as long (docs/cpu.md, "What was tried").
_CHUNK_BYTES = 4 << 20

# Instruction sets that compute in the dtype itself. Without them oneDNN emulates it, and a convolution takes
# several times as long as in float32.
_NATIVE = {
    torch.bfloat16: ("amx_bf16", "avx512_bf16", "bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16", "fp16_arith"),
}


@functools.cache
def _convolves_in(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which convolutions of ``dtype`` are fastest here; both sum in float32."""
    known = _capabilities()
    emulated = dtype in _NATIVE and known and not any(known.get(name) for name in _NATIVE[dtype])
    return torch.float32 if emulated else dtype


def _capabilities() -> Mapping[str, Any]:
    return getattr(torch.cpu, "get_capabilities", dict[str, Any])()


@functools.cache
def prefers_channels_last(dtype: torch.dtype) -> bool:
    """Returns whether a network is faster in channels_last: where AMX multiplies matrices of the dtype.

    AlexNet in bfloat16 on 32 images took 52 to 66 ms in NCHW, and 35 with images and weights in channels_last
    (`make bench-cpu`, two cores of a Xeon with AMX; the images alone have not been timed there). With AVX-512
    alone all take as long.
    """
    return dtype in _NATIVE and bool(_capabilities().get(_NATIVE[dtype][0]))


def _images_at_once(values: int, dtype: torch.dtype) -> int:
    """Returns how many images fit into a chunk; values: of one image's convolution."""
    return max(1, _CHUNK_BYTES // max(1, values * dtype.itemsize))


def conv_block_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: Conv, stages: Stages, save: bool
) -> Results:
    sizes = _direct.geometry(x, weight, conv, stages)
    if sizes and _direct.fits_bias(bias, weight):
        return _direct.forward(x, weight, bias, conv, stages, save, sizes)
    if x.dtype != weight.dtype:
        return convolve_then(epilogue_forward, x, weight, bias, conv, stages, save)  # where torch refuses
    inner = _convolves_in(x.dtype)
    image = weight.shape[0] * math.prod(conv_output_size(x, weight, conv))
    images = _images_at_once(image, x.dtype)
    # One way for all parts, since the other rounds otherwise.
    way = convolve if _direct.geometry(x, weight, conv, _NOTHING) is None else _convolve_directly
    if images < x.shape[0] or (inner != x.dtype and x.shape[0]):
        return in_chunks(_empty, _run, x, weight.to(inner), bias, conv, stages, save, images, way)
    return convolve_then(epilogue_forward, x, weight, bias, conv, stages, save, way)


_NOTHING = Stages(relu=False)


def _convolve_directly(x: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    sizes = _direct.Geometry(x.shape, weight.shape, conv)
    return _direct.forward(x, weight, None, conv, _NOTHING, False, sizes)[0]


def conv_block_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None,
    argmax: Tensor | None,
    conv: Conv,
    stages: Stages,
    needed: Sequence[bool],
) -> BlockGradients | None:
    """Returns all gradients at once where the forward convolved directly; else None."""
    sizes = _direct.geometry(x, weight, conv, stages)
    if sizes is None or not _direct.backward_is_best(weight, sizes):
        return None
    return _direct.backward(grad_y, x, weight, y, argmax, conv, stages, needed, sizes)
