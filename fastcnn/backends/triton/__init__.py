"""Triton on a GPU, NVIDIA's or AMD's; or in Triton's interpreter on the CPU, for tests."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...stages import DTYPES, Stages, memory_format
from .. import trust
from .._block import convolve_then
from .._convolution import convolution_backward_fastest, convolve_fastest
from .._fastest import fastest
from .._launch import Results


def _interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def missing_reason() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; on a machine with a GPU: pip install 'fastcnn[triton]'"
    if torch.cuda.is_available() or _interprets():
        return None
    return (
        "torch sees no GPU; with TRITON_INTERPRET=1 in the environment it runs on the CPU, slowly, for tests"
    )


def unsupported_reason(x: Tensor, stages: Stages) -> str | None:
    reason = missing_reason()
    if reason is not None:
        return reason
    if x.device.type != "cuda" and not _interprets():
        return f"input is on {x.device}, not on a GPU"
    if x.dtype not in DTYPES:
        return f"input is {x.dtype}, not one of {DTYPES}"
    if x.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(x.device) < (8, 0):
        return f"{x.device} is older than sm_80, the first that Triton compiles these kernels for"
    lrn = stages.lrn
    if lrn is not None and (lrn.k < 0 or lrn.alpha < 0):
        return f"LRN's k and alpha must not be negative, but are {lrn.k} and {lrn.alpha}"
    return None


@functools.cache
def sources() -> str:
    """A hash of the kernels' sources and their compiler."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    found = hashlib.sha256(version("triton").encode() + b"".join(file.read_bytes() for file in files))
    return found.hexdigest()[:16]


def declined_reason(x: Tensor, stages: Stages, weight: Tensor | None) -> str | None:
    """Returns why ``auto`` declines: no LRN, no fast kernels, or kernels not known to be right on this GPU.

    Without an LRN plain torch has two or three operations, and the Python of a launch of Triton's may take
    longer than they do; with one it has nine and more (tests/counting.py).
    """
    if stages.lrn is None:
        return "there is no LRN: plain torch has two or three operations, and none is measured"
    last = torch.channels_last in (memory_format(t) for t in (x, weight) if t is not None)
    format = torch.channels_last if last else torch.contiguous_format
    channels = int(x.shape[1] if weight is None else weight.shape[0])
    if channels % stages.lrn.groups:
        return f"{channels} channels are not {stages.lrn.groups} equal groups"
    if not _fast(stages, x.dtype, format, channels):
        return "only the general kernels take it, which are slower; they run by name"
    if (x.device, stages, x.dtype, channels) not in _launched and _capturing(x):
        return "not compiled yet, and nothing can be while a CUDA graph is captured: run it once before"
    return trust.epilogue_reason("triton", x.device, stages, x.dtype, format, channels)


_launched: set[tuple[torch.device, Stages, torch.dtype, int]] = set()


def _capturing(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


@functools.lru_cache(maxsize=1024)
def _fast(stages: Stages, dtype: torch.dtype, format: torch.memory_format, channels: int) -> bool:
    """Returns whether there are fast kernels, forward and backward."""
    from . import epilogue, general

    x = torch.empty((2, channels, 21, 19), dtype=dtype, device="meta", memory_format=format)
    return all(epilogue.kernels(x, stages, backward) is not general for backward in (False, True))


def epilogue_forward(
    x: Tensor, bias: Tensor | None, stages: Stages, save: bool, keep_r: bool = True
) -> Results:
    from . import epilogue

    _launched.add((x.device, stages, x.dtype, x.shape[1]))
    return epilogue.forward(x, bias, stages, save, keep_r)


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
    from . import epilogue

    return epilogue.backward(grad_y, r, argmax, stages, size, format, need_bias, bias)


convolution_backward = convolution_backward_fastest


def _in_two_kernels(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: Sequence[Any], stages: Stages, save: bool
) -> Results:
    return convolve_then(epilogue_forward, x, weight, bias, conv, stages, save, convolve_fastest)


def _in_one_kernel(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: Sequence[Any], stages: Stages, save: bool
) -> Results:
    from . import conv as kernels

    last = torch.channels_last in (memory_format(x), memory_format(weight))
    format = torch.channels_last if last else torch.contiguous_format
    return kernels.block_forward(x, weight, bias, conv, stages, save, format)


# Where nothing is timed it is the first. By estimate, on an H100, of 128 images in bf16: the one kernel moves
# 1.4 GB from and to L2 for AlexNet's first block and 1.6 for its second, 200 and 225 us at 7 TB/s, though it
# takes 102 and 85 to issue. cuDNN and the epilogue kernel take 120-150 and 100-130.
WAYS = {"in two kernels": _in_two_kernels, "in one kernel": _in_one_kernel}


def conv_block_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: Sequence[Any], stages: Stages, save: bool
) -> Results:
    from . import conv as kernels

    given = x, weight, bias, conv, stages, save
    if (save and stages.lrn_first) or kernels.unsupported_reason(x, weight, conv, stages) is not None:
        # Backward needs the convolution's output, which the one kernel never writes to memory.
        return _in_two_kernels(*given)
    ways = {name: functools.partial(way, *given) for name, way in WAYS.items()}
    key = ("triton", weight.shape, memory_format(weight), repr(conv), stages, save)
    return ways[fastest(key, x, ways)]()
