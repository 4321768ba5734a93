"""CUDA C++ on a GPU: launched on torch's current stream, in memory from torch's allocator."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from .._torch_private import raw_stream
from ..stages import DTYPES, Conv, Stages, memory_format
from . import trust
from ._block import convolve_then
from ._convolution import conv_output_size, convolution_backward_fastest, convolve_fastest
from ._launch import Results, address, allocate, empty_on, on_device, params
from ._space_to_depth import by_torch, squares


def missing_reason() -> str | None:
    reason = _native.missing_reason()
    if reason is not None:
        return reason
    if not hasattr(_native.load(), "cuda_epilogue_forward"):
        return "built without CUDA; build from source with nvcc on the PATH"
    return None if torch.cuda.is_available() else "torch sees no GPU"


def unsupported_reason(x: Tensor, stages: Stages) -> str | None:
    reason = missing_reason()
    if reason is not None:
        return reason
    if x.device.type != "cuda":
        return f"input is on {x.device}, not on a GPU"
    if x.dtype not in DTYPES:
        return f"input is {x.dtype}, not one of {DTYPES}"
    return _no_code_reason(x.get_device())


_ANY = Stages()  # of those that make no difference
_no_code: dict[int, str | None] = {}  # of the devices that kernels were loaded for, or could not be


def _no_code_reason(device: int) -> str | None:
    if device not in _no_code:
        if torch.cuda.is_current_stream_capturing():
            return (
                "its kernels can't be loaded while a CUDA graph is captured: "
                f"run the block once on cuda:{device} before"
            )
        _no_code[device] = _load(device)
    return _no_code[device]


def _load(device: int) -> str | None:
    """Loads the kernels for a device; returns None, or the reason why it can't."""
    native = _native.load()
    with torch.cuda.device(device):
        if native.cuda_runs_on(device):
            return None
    major, minor = torch.cuda.get_device_capability(device)
    return (
        f"the extension has code for {native.cuda_architectures()}, not for cuda:{device}, which is "
        f"sm_{major}{minor}; reinstall on a machine with this GPU, or with CUDAARCHS={major}{minor} set"
    )


@functools.cache
def sources() -> str:
    """Returns a hash of the sources that the extension's kernels were compiled from."""
    return str(_native.load().build_info().get("cuda sources", ""))


def declined_reason(x: Tensor, stages: Stages, weight: Tensor | None) -> str | None:
    """Returns why ``auto`` declines: no fast kernels, or kernels not known to be right on this GPU."""
    last = torch.channels_last in (memory_format(t) for t in (x, weight) if t is not None)
    format = torch.channels_last if last else torch.contiguous_format
    channels = int(x.shape[1] if weight is None else weight.shape[0])  # a number while compiling, too
    if stages.lrn and channels % stages.lrn.groups:
        return f"{channels} channels are not {stages.lrn.groups} equal groups"
    if not _special(stages, x.dtype, format, channels) or (last and weight is None and not _aligned(x)):
        return "only the general kernels take it, which are slower; they run by name"
    return trust.epilogue_reason("cuda", x.device, stages, x.dtype, format, channels)


# Values of the stages' input. Eagerly, LeNet-5 of 1 to 128 images had .68 to .84 of plain torch's speed, as
# Python took longer than the GPU, of whose time its blocks, of 0.6 million values or fewer, save little;
# AlexNet-2012 of 256, with blocks of 11 million and more, had 3.8 times plain torch's (H200, `make gpu`).
_ENOUGH = 2**23


def slower_reason(x: Tensor, stages: Stages, weight: Tensor | None, conv: Conv | None = None) -> str | None:
    """Returns why plain torch is no slower: two or three operations, where with an LRN it has twelve."""
    if stages.lrn is not None or torch.cuda.is_current_stream_capturing():
        return None  # in a graph Python takes no time
    values = math.prod(x.shape)
    if weight is not None and conv is not None:
        values = x.shape[0] * weight.shape[0] * math.prod(conv_output_size(x, weight, conv))
    if values >= _ENOUGH:
        return None
    return "there is no LRN and little to do: Python takes as long for one operation of ours as for torch's"


@functools.lru_cache(maxsize=1024)
def _special(stages: Stages, dtype: torch.dtype, format: torch.memory_format, channels: int) -> bool:
    """Returns whether there are fast kernels, by asking with a launch without memory."""
    empty = empty_on(torch.device("meta"))
    x = empty((2, channels, 21, 19), dtype, format)
    outputs = allocate(empty, x.shape, dtype, format, stages, save=False, makes_r=False)
    return bool(_native.load().cuda_is_special(params(x, *outputs, None, stages, format)))


def _aligned(x: Tensor) -> bool:
    """Returns whether each pixel's channels begin at a multiple of 16 bytes of x's memory."""
    width = 16 // x.dtype.itemsize
    n, _, h, w = x.stride()
    return all(i % width == 0 for i in (x.storage_offset(), n, h, w))


def _where(x: Tensor) -> tuple[int, int]:
    """Returns x's device, and torch's current stream there."""
    device = x.get_device()
    return device, raw_stream(device)


def epilogue_forward(
    x: Tensor, bias: Tensor | None, stages: Stages, save: bool, keep_r: bool = True
) -> Results:
    format, makes_r = memory_format(x), keep_r and stages.makes_r(bias is not None)
    outputs = allocate(empty_on(x.device), x.shape, x.dtype, format, stages, save, makes_r)
    _run(x, bias, stages, format, *outputs)
    return outputs


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
    p = params(x, y, r, argmax, bias, stages, format)
    with on_device(x):
        _native.load().cuda_epilogue_forward(p, *_where(x))


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
    grad_x = torch.empty(size, dtype=grad_y.dtype, device=grad_y.device, memory_format=format)
    make = grad_y.new_empty if grad_x.numel() else grad_y.new_zeros
    grad_bias = make(size[1]) if need_bias else None
    if grad_x.numel():
        # After a flatten, say, in another format: vectors need the channels side by side.
        grad_y = grad_y.contiguous(memory_format=format)
        native = _native.load()
        bias = bias if bias is None else bias.contiguous()
        p = params(grad_x, grad_y, r, argmax, grad_bias, stages, format, r_bias=bias)
        parts = size[1] * native.cuda_bias_parts(p) if need_bias else 0
        sums = grad_y.new_empty(parts, dtype=torch.float64)
        with on_device(grad_y):
            native.cuda_epilogue_backward(p, *_where(grad_y), sums.data_ptr())
    return grad_x, grad_bias


convolution_backward = convolution_backward_fastest


def copies(x: Tensor, side: int) -> bool:
    """Returns whether :func:`space_to_depth` runs on x, and is known to be right there."""
    if unsupported_reason(x, _ANY) is not None:
        return False
    if trust.vouched_for(x.device, sources()):
        return True
    kernels = f"cuda's space to depth, {side} x {side} of {x.itemsize} bytes, {memory_format(x)}"
    check = functools.partial(_check_copy, x, side)
    return trust.reason(kernels, x.device, sources(), check) is None


def _check_copy(like: Tensor, side: int) -> None:
    """Checks the kernel against torch's own copies, on a small image of like's dtype, format and device."""
    x = (
        torch.arange(2 * 3 * 21 * 19)
        .view(2, 3, 21, 19)
        .to(like)
        .contiguous(memory_format=memory_format(like))
    )
    for padding in ((0, 0, 0, 0), (2, 1, 0, 3)):
        expected = by_torch(x, side, padding)
        if not torch.equal(space_to_depth(x, side, padding), expected):
            raise AssertionError(f"other values than torch's with padding {padding}")


def space_to_depth(x: Tensor, side: int, padding: Sequence[int]) -> Tensor:
    """Computes :func:`._space_to_depth.space_to_depth` in one kernel."""
    format, (rows, columns) = memory_format(x), squares(x, side, padding)
    y = empty_on(x.device)((x.shape[0], x.shape[1] * side**2, rows, columns), x.dtype, format)
    if y.numel():
        top, left = padding[:2]
        last = format == torch.channels_last
        with on_device(x):
            _native.load().cuda_space_to_depth(
                address(x), y.data_ptr(), x.shape, y.shape, side, top, left, x.itemsize, last, *_where(x)
            )
    return y


def conv_block_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: Sequence[Any], stages: Stages, save: bool
) -> Results:
    """Computes all images at once; parts that stay in L2 take 1.1 to 1.2 times as long (AlexNet, H200)."""
    return convolve_then(epilogue_forward, x, weight, bias, conv, stages, save, convolve_fastest)
