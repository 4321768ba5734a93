"""A block's convolution: torch's, and on a GPU the fastest of a few ways to call it.

``conv`` is stride, padding, dilation and groups, each for rows and columns, as torch has them; padding may
also be (top, left, bottom, right).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from ..stages import Conv, memory_format
from ._channel_groups import join, split
from ._fastest import fastest
from ._space_to_depth import depth_to_space, space_to_depth, squares

Gradients: TypeAlias = tuple[Tensor | None, Tensor | None]  # of x and of the weight


def sides(padding: Sequence[int]) -> list[int]:
    """Returns padding as [top, left, bottom, right]."""
    return [*padding, *padding][:4]


def conv_output_size(x: Tensor, weight: Tensor, conv: Conv) -> list[int]:
    """Returns [rows, columns] of the output; what makes no sense is for the convolution to refuse."""
    return output_size(x.shape, weight.shape, conv)


def output_size(shape: Sequence[int], weight: Sequence[int], conv: Conv) -> list[int]:
    """Returns the same for the shapes of both."""
    stride, padding, dilation, _ = conv
    around = sides(padding)
    sizes = zip(shape[2:], weight[2:], stride, around[:2], around[2:], dilation, strict=False)
    return [(n + a + b - d * (k - 1) - 1) // max(1, s) + 1 for n, k, s, a, b, d in sizes]


def output_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Returns the format that torch's convolution on the CPU gives its output."""
    last = _is_channels_last(x) or _is_channels_last(weight)
    return torch.channels_last if last else torch.contiguous_format


def _is_channels_last(t: Tensor) -> bool:
    """Returns what torch says by the strides alone, where one channel would fit either format."""
    (_, c, h, w), (sn, sc, sh, sw) = t.shape, t.stride()
    least = sc * max(c, 1)
    if sc == 0 or sw < least:
        return False
    least = sw * max(w, 1)
    if sh < least:
        return False
    least = sh * max(h, 1)
    return sn >= least and least != sc


def padded(x: Tensor, weight: Tensor, conv: Conv) -> tuple[Tensor, Conv, list[int]]:
    """Returns x with the zeros that one side has more than its opposite, conv without, and F.pad's sizes.

    Where torch would read past x's columns, x has exactly those that the convolution takes.
    """
    stride, padding, dilation, groups = conv
    one_column = _reads_too_far(x, weight, conv)
    if len(padding) != 4 and not one_column:
        return x, conv, []
    top, left, bottom, right = sides(padding)
    rows, columns = min(top, bottom), min(left, right)
    if one_column:
        right = (weight.shape[3] - 1) * dilation[1] + 1 - left - x.shape[3]
        stride, columns = (stride[0], 1), 0
    sizes = [left - columns, right - columns, top - rows, bottom - rows]
    return F.pad(x, sizes) if any(sizes) else x, (stride, (rows, columns), dilation, groups), sizes


def _reads_too_far(x: Tensor, weight: Tensor, conv: Conv) -> bool:
    """Returns whether oneDNN may read memory that was never written.

    With AVX-512 or AMX it does in half precision, where a stride leaves a single output column and columns
    of x over: values are up to 1e37, others at each call (torch 2.13, oneDNN 3.12).
    """
    stride, padding, dilation, _ = conv
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16):
        return False
    if len(stride) != 2 or stride[1] < 2 or len(padding) not in (2, 4) or min(padding) < 0:
        return False
    rows, *columns = conv_output_size(x, weight, conv)
    return rows > 0 and columns == [1] and padding[1] <= (weight.shape[3] - 1) * dilation[1]


def convolve(x: Tensor, weight: Tensor, conv: Conv, bias: Tensor | None = None) -> Tensor:
    """Returns the convolution, in x's dtype under autocast too."""
    x, (stride, padding, dilation, groups), _ = padded(x, weight, conv)
    return torch.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, conv: Conv, needed: Sequence[bool]
) -> Gradients:
    """Returns the gradients of x and weight, None for what is not needed; torch can differentiate it."""
    x, (stride, padding, dilation, groups), sizes = padded(x, weight, conv)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [*needed, False]
    )
    if needed[0] and any(sizes):
        grad_x = F.pad(grad_x, [-size for size in sizes])
    return grad_x, grad_weight


# A strided convolution of few channels is also one without stride of many, whose channels are squares of
# pixels. AlexNet's first layer, 11x11 with stride 4 over 3 channels, is one of 3x3 over 48: 432 products for
# an output instead of 363, but of a length that matrix units take whole. Which is faster depends on the GPU
# and on cuDNN.
_FEW_CHANNELS = 4  # with more, a convolution fills matrix units by itself


def applies(x: Tensor, weight: Tensor, conv: Conv) -> bool:
    """Returns whether there are few channels, and squares as wide as the stride give no window too many."""
    stride, padding, dilation, groups = conv
    side = stride[0]
    if [*stride] != [side, side] or side < 2 or [*dilation] != [1, 1] or groups != 1:
        return False
    if len(padding) not in (2, 4) or min(padding) < 0 or weight.shape[1] > _FEW_CHANNELS:
        return False
    windows = zip(squares(x, side, sides(padding)), weight.shape[2:], strict=True)
    return conv_output_size(x, weight, conv) == [n + -k // side + 1 for n, k in windows]


def rearranged(x: Tensor, weight: Tensor, conv: Conv) -> tuple[Tensor, Tensor, Conv]:
    """Returns another convolution with the same result, up to rounding."""
    (side, _), padding, dilation, groups = conv
    # Not kept from call to call: a write through weight.data, or a replayed graph, would not be noticed.
    parts = space_to_depth(x, side, sides(padding)), space_to_depth(weight, side)
    return *parts, ((1, 1), (0, 0), dilation, groups)


def _rearranged_backward(
    grad: Tensor, x: Tensor, weight: Tensor, conv: Conv, needed: Sequence[bool]
) -> Gradients:
    (side, _), padding, *_ = conv
    squares, dense = convolution_backward(grad, *rearranged(x, weight, conv), needed)
    return (
        None if squares is None else depth_to_space(squares, side, x.shape, sides(padding)),
        None if dense is None else depth_to_space(dense, side, weight.shape),
    )


_FEW_GROUPS = 4  # by reasoning: with more, each call has too little to do


def _has_few_groups(x: Tensor, weight: Tensor, conv: Conv) -> bool:
    return 1 < conv[3] <= _FEW_GROUPS and weight.shape[0] % conv[3] == 0


def _grouped(x: Tensor, weight: Tensor, conv: Conv) -> list[tuple[Tensor, Tensor, Conv]]:
    """Returns a convolution for each group."""
    *rest, groups = conv
    pairs = zip(split(x, groups), weight.chunk(groups), strict=True)
    return [(part, kernels, (*rest, 1)) for part, kernels in pairs]


def _by_group_backward(
    grad: Tensor, x: Tensor, weight: Tensor, conv: Conv, needed: Sequence[bool]
) -> Gradients:
    parts = zip(split(grad, conv[3]), _grouped(x, weight, conv), strict=True)
    of_x, of_weight = zip(*(convolution_backward(g, *part, needed) for g, part in parts), strict=True)
    return join(of_x) if needed[0] else None, torch.cat(of_weight) if needed[1] else None


class Way(NamedTuple):
    """A way to convolve: whether it can, and what it calls."""

    applies: Callable[[Tensor, Tensor, Conv], bool]
    forward: Callable[[Tensor, Tensor, Conv], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor, Conv, Sequence[bool]], Gradients]


WAYS = {
    "as it is": Way(lambda *_: True, convolve, convolution_backward),
    "space to depth": Way(applies, lambda *given: convolve(*rearranged(*given)), _rearranged_backward),
    "by group": Way(
        _has_few_groups,
        lambda *given: join([convolve(*part) for part in _grouped(*given)]),
        _by_group_backward,
    ),
}


# Where nothing may be timed, a way is taken that was the faster one wherever it was timed on such a GPU:
# published networks' layers, of 1 to 128 images, on an H200 (bench/results/gpu_first.json and gpu_full.json).
_MEASURED = {(9, 0)}  # compute capabilities
_LEAST_STRIDE = 4  # 11x11 windows 4 apart: forward 2.2 to 5.0 times as fast; of 7x7 2 apart: .5 to 3.2
_LEAST_CHANNELS = 48  # of each of two groups, in channels_last; of 8: .3 to 1.0
# Outputs of a map. Fewer may save the GPU's time, too, but less of it than more launches take of Python's.
_LEAST_OUTPUTS = {
    ("space to depth", "forward"): 90_000,
    ("space to depth", "backward"): 90_000,  # the weight's gradient: 1.05 to 3.6; of 24,200: .8
    ("by group", "forward"): 20_000,  # 1.3 to 2.6; of 10,800: .9
    ("by group", "backward"): 5_000,  # 1.04 to 9.4; of 1,352: .6
}


@cache
def _is_measured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) in _MEASURED


def _untimed(x: Tensor, weight: Tensor, conv: Conv, phase: str) -> str:
    """Returns the way to convolve on a GPU where nothing may be timed."""
    (stride, *_), *_, groups = conv
    if x.dtype == torch.float64 or not _is_measured(x.device):
        return "as it is"
    if groups == 1:
        name, known = "space to depth", stride >= _LEAST_STRIDE
    else:
        name, known = "by group", groups == 2 and weight.shape[1] >= _LEAST_CHANNELS
        known = known and memory_format(x) == torch.channels_last
    outputs = x.shape[0] * math.prod(conv_output_size(x, weight, conv))
    return name if known and outputs >= _LEAST_OUTPUTS[name, phase] else "as it is"


def _ways(x: Tensor, weight: Tensor, conv: Conv, phase: str) -> list[str]:
    """Returns those that can, the first of which is taken where nothing may be timed."""
    names = [name for name, way in WAYS.items() if way.applies(x, weight, conv)]
    if len(names) > 1:
        names.sort(key=_untimed(x, weight, conv, phase).__ne__)
    return names


def _key(name: str, weight: Tensor, conv: Conv) -> tuple[Any, ...]:
    return name, tuple(weight.shape), memory_format(weight), *map(tuple, conv[:3]), conv[3]


def convolve_fastest(x: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    """Returns :func:`convolve`'s result, up to rounding, in the way that is or was timed as the fastest."""
    given = x, weight, conv
    ways = {name: partial(WAYS[name].forward, *given) for name in _ways(*given, "forward")}
    return ways[fastest(_key("convolution", weight, conv), x, ways)]()


def convolution_backward_fastest(
    grad: Tensor, x: Tensor, weight: Tensor, conv: Conv, needed: Sequence[bool]
) -> Gradients:
    """Returns :func:`convolution_backward`'s results, up to rounding, likewise."""
    given = x, weight, conv
    ways = {name: partial(WAYS[name].backward, grad, *given, needed) for name in _ways(*given, "backward")}
    key = *_key("its gradients", weight, conv), *needed, grad.stride()
    return ways[fastest(key, x, ways)]()
