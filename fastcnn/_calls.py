"""The path of a call: from a layer or a function to one call of a backend.

The ops in :mod:`._ops` are called where PyTorch's dispatcher has something to do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _ops  # noqa: F401  registers the ops
from ._bypass import run
from ._dispatch import can_bypass, torch_alone_is_known
from .backends import PREFERENCE, choose, cpu, current_backend, plain
from .backends._convolution import sides
from .stages import DTYPES, Conv, Pair, Stages, check, numbers, whole

_fastcnn = torch.ops.fastcnn


def epilogue(input: Tensor, bias: Tensor | None, stages: Stages) -> Tensor:
    """Returns the stages on (N, C, H, W), or on (C, H, W) as one image."""
    if stages.empty and bias is None:
        return input
    if input.dim() == 3:
        return epilogue(input.unsqueeze(0), bias, stages).squeeze(0)
    if input.dtype not in DTYPES:
        return plain.epilogue(input, bias, stages)
    fast = _torch_is_as_fast(input, stages)
    if not fast and can_bypass(input, bias):
        check(input, bias, stages)
        return run(input, None, bias, stages)
    if fast or _is_plain(input, stages):
        check(input, bias, stages)
        return plain.epilogue(input, bias, stages)
    return _fastcnn.epilogue(input, bias, *stages.flat())


def block(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
    stages: Stages,
    recompute: bool = False,
    margins: Sequence[int] = (),
) -> Tensor:
    """Returns the stages on the convolution of (N, C, H, W), or of (C, H, W) as one image.

    margins: rows and columns of zeros, besides padding, at the top, left, bottom and right.
    """
    tensors = isinstance(input, Tensor) and isinstance(weight, Tensor)
    tensors = tensors and (bias is None or isinstance(bias, Tensor))
    if tensors and input.dim() == 3 and weight.dim() == 4:
        given = stride, padding, dilation, groups, stages, recompute, margins
        return block(input.unsqueeze(0), weight, bias, *given).squeeze(0)
    ours = tensors and input.dim() == weight.dim() == 4 and input.dtype in DTYPES and not stages.empty
    try:
        conv = conv_numbers(weight, stride, padding, dilation, groups, margins) if ours else None
    except TypeError:
        conv = None
    if conv is None:  # conv2d says what is wrong, if anything is
        if margins:
            top, left, bottom, right = margins
            input = F.pad(input, (left, right, top, bottom))
        return epilogue(F.conv2d(input, weight, bias, stride, padding, dilation, groups), None, stages)
    fast = _torch_is_as_fast(input, stages, weight, conv)
    if not fast and can_bypass(input, weight, bias):
        return run(input, weight, bias, stages, conv, recompute)
    if fast or _is_plain(input, stages, weight, conv):
        return plain.conv2d_block(input, weight, bias, conv, stages, recompute)
    return _fastcnn.conv2d_block(input, weight, bias, *conv, *stages.flat(), recompute)


def torch_is_as_fast(input: Tensor, weight: Tensor, conv: Conv, stages: Stages) -> bool:
    """Returns whether :func:`block` leaves (N, C, H, W) to torch's own functions, as no slower.

    conv: stride, padding, dilation and groups, as :class:`torch.nn.Conv2d` has them.
    """
    if input.dim() != 4 or input.dtype not in DTYPES:
        return False
    stride, padding, dilation, groups = conv
    numbers = conv_numbers(weight, stride, padding, dilation, groups, ())
    return stages.empty or _torch_is_as_fast(input, stages, weight, numbers)


def few_to_pool(x: Tensor, dilation: Pair) -> bool:
    """Returns whether ``auto`` leaves a lone pooling to torch, by the number of values alone."""
    if type(x) is not Tensor or torch.compiler.is_compiling() or not x.is_cpu or x.numel() >= 8 * cpu.SMALL:
        return False
    if current_backend() != "auto" or cpu.missing_reason() is not None:
        return False
    return cpu.torch_pools_right(x, dilation)


def _torch_is_as_fast(
    x: Tensor, stages: Stages, weight: Tensor | None = None, conv: Conv | None = None
) -> bool:
    """Returns whether :func:`choose` would leave this to torch's own functions as it is small.

    It is asked first since it costs the least, and to call them needs no :func:`can_bypass`.
    """
    if torch.compiler.is_compiling() or stages.lrn is not None or not x.is_cpu:
        return False
    if current_backend() != "auto" or torch.is_autocast_enabled("cpu"):
        return False
    if cpu.unsupported_reason(x, stages):
        return False
    return cpu.slower_reason(x, stages, weight, conv) is not None


def _is_plain(x: Tensor, stages: Stages, weight: Tensor | None = None, conv: Conv | None = None) -> bool:
    """Returns whether torch's own functions are called, of which whoever listens sees each.

    ONNX has the stages as torch does. While compiling, and under autocast, which changes the dtype, the op
    decides.
    """
    if torch.onnx.is_in_onnx_export():
        return True
    if torch.compiler.is_compiling():
        return False
    if torch_alone_is_known(x, weight):
        return True
    device = x.device.type
    if device in PREFERENCE and torch.is_autocast_enabled(device):
        return False
    return choose(x, stages, weight, conv) is plain


def conv_numbers(
    weight: Tensor,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
    margins: Sequence[int],
) -> Conv:
    """Returns the convolution as backends take it, see :mod:`.backends._convolution`.

    A wrong length is for the convolution itself to refuse; TypeError for other than ints.
    """
    if isinstance(padding, str):
        around = _named_padding(weight, stride, padding, dilation)
    else:
        around = numbers(padding)
        if len(around) > 2:
            raise TypeError(f"padding must be an int or a pair of ints, but got {padding!r}")
    if margins:
        around = tuple(p + m for p, m in zip(sides(around), margins, strict=True))
    return numbers(stride), around, numbers(dilation), whole(groups)


def _named_padding(weight: Tensor, stride: Pair, padding: str, dilation: Pair) -> tuple[int, ...]:
    """Returns "same" or "valid" in numbers: an odd total gets its extra zeros right and below."""
    if padding == "valid":
        return 0, 0
    if padding != "same":
        raise RuntimeError(f"padding must be 'same' or 'valid', but got {padding!r}")
    if any(s != 1 for s in numbers(stride)):
        raise RuntimeError(f"padding='same' is not supported for strided convolutions, got {stride}")
    kernel: Sequence[int] = weight.shape[2:]
    if torch.jit.is_tracing():  # type: ignore[attr-defined]  # each is a tensor then
        kernel = [int(size) for size in kernel]
    sizes = zip(numbers(dilation), kernel, strict=True)
    height, width = (d * (k - 1) for d, k in sizes)
    return height // 2, width // 2, -(-height // 2), -(-width // 2)
