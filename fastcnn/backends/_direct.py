"""The direct convolution on the CPU, for few channels and small maps, with the block's other stages.

Of a small convolution through oneDNN most is descriptors and allocation, and a thin one uses a fraction of
its lanes. Ours, csrc/cpu/direct.h, is one call, and so is its backward.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..stages import Conv, Stages
from ._block import BlockGradients
from ._convolution import output_format, output_size, sides
from ._launch import Results, address, allocate, empty_on, params

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_empty = empty_on(torch.device("cpu"))


class Geometry:
    """A convolution's sizes, given its input's shape: of its output, and the products that it takes."""

    def __init__(self, shape: Sequence[int], weight: Sequence[int], conv: Conv) -> None:
        self.images, self.channels = shape[0], weight[0]
        self.rows, self.columns = output_size(shape, weight, conv)
        self.taps = math.prod(weight[1:])
        self.products = self.images * self.channels * self.rows * self.columns * self.taps

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.images, self.channels, self.rows, self.columns


def _fits(shape: Sequence[int], weight: Sequence[int], conv: Conv) -> bool:
    """Returns whether the kernel knows this; what is no convolution at all is for torch to refuse."""
    stride, padding, dilation, groups = conv
    if not (len(stride) == len(dilation) == 2 and len(padding) in (2, 4)):
        return False
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0 or groups < 1 or 0 in weight:
        return False
    return shape[1] == weight[1] * groups and weight[0] % groups == 0


def fits_bias(bias: Tensor | None, weight: Tensor) -> bool:
    """Returns whether bias is one of this weight's."""
    if bias is None:
        return True
    return bias.shape == weight.shape[:1] and bias.dtype == weight.dtype and bias.device == weight.device


# Up to this many products a library's set-up costs more than it saves. Fewer in half precision, for which a
# library may use matrix units.
_FEW = {torch.float32: 4 << 20, torch.bfloat16: 1 << 20, torch.float16: 1 << 20}
# The same of a depthwise convolution, for which a library has kernels of its own. With 128 channels of 56 x
# 56 our kernel has 0.6 times its speed, 0.3 with stride 2; with 16 channels of 32 x 32, 2.3 and 1.9 times.
_FEW_DEPTHWISE = {False: 3 << 16, True: 1 << 16}  # by whether it is strided
_FEW_NARROW = 1 << 17  # for fewer columns than sums that go on side by side: each waits for itself


def _has_set_up(shape: Sequence[int], weight: Sequence[int], dtype: torch.dtype, conv: Conv) -> bool:
    """Returns whether torch sets oneDNN up, which takes longer than a call of ours does in Python.

    Of one small image it doesn't in float32 (ATen's ConvParams::use_mkldnn).
    """
    small = shape[0] == 1 and math.prod(shape) <= 20480 and min(weight[2:]) <= 3
    return not small or conv[3] > 1 or dtype != torch.float32


def geometry(
    x: Tensor, weight: Tensor, conv: Conv, stages: Stages, prepared: bool = False
) -> Geometry | None:
    """Returns the sizes of a convolution that is best done directly, else None.

    prepared: whether the call's set-up is done already.
    """
    if stages.lrn or x.dtype not in _DTYPES or weight.dtype != x.dtype or not weight.is_cpu:
        return None
    stride, padding, dilation, groups = conv  # lists in an op
    numbers = tuple(stride), tuple(padding), tuple(dilation), groups
    return _geometry(x.shape, weight.shape, x.dtype, numbers, stages, prepared)


@functools.lru_cache(maxsize=128)  # a call asks up to three times
def _geometry(
    shape: torch.Size, weight: torch.Size, dtype: torch.dtype, conv: Conv, stages: Stages, prepared: bool
) -> Geometry | None:
    if not _fits(shape, weight, conv) or not (prepared or _has_set_up(shape, weight, dtype, conv)):
        return None
    sizes = Geometry(shape, weight, conv)
    if sizes.images == 0 or sizes.rows < 1 or sizes.columns < 1:
        return None
    if stages.pool and min(stages.pool.windows(sizes.rows, 0), stages.pool.windows(sizes.columns, 1)) < 1:
        return None
    return sizes if _is_best(dtype, weight, sizes, stages, conv, prepared) else None


def _is_best(
    dtype: torch.dtype, weight: Sequence[int], sizes: Geometry, stages: Stages, conv: Conv, prepared: bool
) -> bool:
    """Returns whether the kernel is faster than a library's; by `make sweep`, on one thread.

    A 1 x 1 kernel is a matrix product. Few channels leave a library's lanes idle; to pool at once saves
    writing and reading the maps, which of large ones a library also rearranges.
    """
    _, channels, *kernel = weight
    if max(kernel) == 1:
        return False
    is_strided = max(conv[0]) > 1
    if channels == 1 and conv[3] > 1:
        return sizes.products <= _FEW_DEPTHWISE[is_strided]
    narrow = sizes.columns < 4
    if sizes.products <= (_FEW_NARROW if narrow and not prepared else _FEW[dtype]):
        return True
    if dtype != torch.float32:
        return channels <= 4 and stages.pool is not None
    if sizes.rows * sizes.columns < 100 or narrow:
        return False
    if stages.pool:
        return channels <= 64
    if is_strided and sizes.taps > 100:  # 3 channels, 7 x 7, stride 2: .88 of torch's speed on two threads
        return False
    return channels <= (32 if sizes.rows * sizes.columns > 2000 else 4)


def backward_is_best(weight: Tensor, sizes: Geometry) -> bool:
    """Returns the same of the gradients; torch's own begin with what the forward here has saved, too."""
    few = sizes.products <= 2 << 20
    return few or (weight.shape[1] <= 8 and sizes.images > 1)  # an image is one thread's


GRAIN = 1 << 19  # products for which another thread is worth waking


def most_threads(products: int) -> int:
    return 1 + products // GRAIN


def threads(products: int) -> int:
    return min(torch.get_num_threads(), most_threads(products))


def convolution(x: Tensor, weight: Tensor, conv: Conv, after: Any) -> Any:
    """Returns the kernel's parameters; after: the stages', of the convolution's output."""
    stride, padding, dilation, groups = conv
    return _native.load().ConvParams(
        after,
        x.shape,
        address(x),
        address(weight),
        weight.shape[2:],
        stride,
        sides(padding)[:2],
        dilation,
        groups,
    )


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: Conv,
    stages: Stages,
    save: bool,
    sizes: Geometry,
) -> Results:
    """Returns y, no r, and the argmax if they are to be saved."""
    format = output_format(x, weight)
    y, _, argmax = allocate(_empty, sizes.shape, x.dtype, format, stages, save, makes_r=False)
    bias = None if bias is None else bias.contiguous()
    after = params(sizes.shape, y, None, argmax, bias, stages, format, threads(sizes.products))
    _native.load().convolution_forward(convolution(x, weight, conv, after))
    return y, None, argmax


def backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None,
    argmax: Tensor | None,
    conv: Conv,
    stages: Stages,
    needed: Sequence[bool],
    sizes: Geometry,
) -> BlockGradients:
    """Returns the gradients of x, weight and bias, None for what is not needed; y: if a ReLU comes last."""
    format = output_format(x, weight)
    grad_x = torch.empty_like(x, memory_format=format) if needed[0] else None
    grad_weight = torch.empty_like(weight) if needed[1] else None
    grad_bias = grad_y.new_empty(weight.shape[0]) if needed[2] else None
    after = params(sizes.shape, grad_y, y, argmax, None, stages, format, threads(3 * sizes.products))
    _native.load().convolution_backward(
        convolution(x, weight, conv, after),
        address(grad_x),
        address(grad_weight),
        0 if grad_bias is None else grad_bias.data_ptr(),
    )
    return grad_x, grad_weight, grad_bias
