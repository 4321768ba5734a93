"""Epilogues of channels_last tensors: which kernels they are, and how these are launched."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...stages import LRN, MaxPool, Stages, memory_format
from .._launch import ceil_div, on_device
from .lanes import Spec, V
from .pixels_kernels import Window, backward_kernel, lrn_pool_kernel, pointwise_kernel, pool_kernel
from .rules import leaves_the_map, takes_lrn, warp_size

MOST_PLACES = 25  # of a pooling window: their loops are unrolled
MOST_INPUTS = 4  # of a square in backward, whose gradients are in registers at once
EACH = 4  # vectors, or squares, that a lane takes one after another in a large tensor ...
MANY = 2**19  # ... of so many of them, which fill any GPU's lanes four times
ROWS = 9, 3, 1  # pairs of rows that lrn_pool_kernel goes down: the first that leaves ...
ENOUGH = 1024  # ... so many programs
WARPS = 4
INTERPRETED_LANES = 256  # where each operation on a block costs as much as on a single value


def takes(x: Tensor, stages: Stages, backward: bool = False) -> bool:
    """Returns whether these kernels take x, (N, C, H, W), or for backward its gradient."""
    _, c, h, w = x.shape
    n_stride, _, h_stride, w_stride = x.stride()
    if x.dtype == torch.float64 or memory_format(x) != torch.channels_last:
        return False
    if (h > 1 and h_stride != w * w_stride) or (x.shape[0] > 1 and n_stride != h * w * w_stride):
        return False  # rows or columns were cut off: pixels are not at equal distances
    lrn, pool = stages.lrn, stages.pool
    if lrn is not None:
        whole = lrn.groups == 1 or c // lrn.groups % V.value == 0
        if not whole or not takes_lrn(lrn, x.dtype):
            return False
    if pool is not None:
        kernel, stride, padding, dilation = pool.pairs
        dilated = dilation != (1, 1)
        if math.prod(kernel) > MOST_PLACES or (dilated and (padding != (0, 0) or pool.ceil_mode)):
            return False  # the place in the map that is nearest to a window's may then be none of it
        if backward and (math.prod(stride) > MOST_INPUTS or dilated):
            return False
    return x.shape[0] * h * w * max(w_stride, ceil_div(c, V.value) * V.value) < 2**31


def forward(
    x: Tensor, bias: Tensor | None, stages: Stages, y: Tensor, r: Tensor | None, argmax: Tensor | None
) -> None:
    """Fills y, and r and argmax where there are any; all in channels_last."""
    relu, lrn, pool = bool(stages.relu), stages.lrn, stages.pool
    if pool is None:
        _pointwise(x, bias, relu, lrn, y, r)
    elif stages.pool_first:
        _pool(x, bias, relu, None, pool, y, r, argmax, lrn)
    elif pool.pairs == ((3, 3), (2, 2), (0, 0), (1, 1)):
        _lrn_pool(x, bias, relu, lrn, y, r, argmax)
    elif r is None and all(size <= stride for size, stride in zip(pool.extent, pool.pairs[1], strict=True)):
        _pool(x, bias, relu, lrn, pool, y, None, argmax)
    else:  # windows share values: each is normalised once, and waits in memory for pooling
        between = torch.empty_like(x, memory_format=torch.channels_last)
        _pointwise(x, bias, relu, lrn, between, r)
        _pool(between, None, False, None, pool, y, None, argmax)


def backward(
    grad_y: Tensor,
    r: Tensor | None,
    bias: Tensor | None,
    argmax: Tensor | None,
    stages: Stages,
    grad_x: Tensor,
    need_bias: bool,
) -> Tensor | None:
    """Fills grad_x and returns the bias's gradient, (C,) float32, if it is needed; all in channels_last."""
    relu, lrn, pool = bool(stages.relu), stages.lrn, stages.pool
    if lrn is not None and pool is not None and stages.pool_first:
        between = torch.empty_like(grad_y)
        _backward(grad_y, r, None, None, relu, lrn, None, between, False)
        return _backward(between, None, None, argmax, False, None, pool, grad_x, need_bias)
    return _backward(grad_y, r, bias, argmax, relu, lrn, pool, grad_x, need_bias)


def _lanes(x: Tensor, warps: int) -> int:
    return INTERPRETED_LANES if x.is_cpu else warps * warp_size(x, INTERPRETED_LANES)


def _spec(x: Tensor, relu: bool, lrn: LRN | None, *others: Tensor | None) -> Spec:
    """others: read or written by the same lanes, with C values from pixel to pixel."""
    c, stride, norm = x.shape[1], x.stride(3), lrn or LRN()
    aligned = all(t.data_ptr() % 16 == 0 for t in (x, *others) if t is not None)
    return Spec(
        relu,
        norm.size if lrn else 0,
        norm.alpha / norm.size,
        norm.beta,
        norm.k,
        ceil_div(c, V.value) // norm.groups,
        ceil_div(c, V.value),
        c % V.value == 0,
        c,
        math.gcd(16 // x.itemsize, c, stride) if aligned else 1,
        stride,
    )


def _window(pool: MaxPool, size: torch.Size, outputs: torch.Size) -> Window:
    sides = (i for pair in pool.pairs for i in pair)
    return Window._make((*sides, leaves_the_map(pool, size, outputs)))


def _programs(total: int, lanes: int, vectors: int, each: int) -> int:
    """A whole number of pixels, of so many vectors, is between a lane's."""
    step = vectors // math.gcd(vectors, lanes)
    return ceil_div(ceil_div(total, lanes * each), step) * step


def _launch(kernel: Any, x: Tensor, programs: int, warps: int, *arguments: Any, **constants: Any) -> None:
    with on_device(x):
        kernel[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=False)


def _pointwise(
    x: Tensor, bias: Tensor | None, relu: bool, lrn: LRN | None, y: Tensor, r: Tensor | None
) -> None:
    spec, lanes = _spec(x, relu, lrn, bias), _lanes(x, WARPS)
    vectors = ceil_div(x.shape[1], V.value)
    total = y.numel() // x.shape[1] * vectors
    each = EACH if total >= MANY else 1
    programs = _programs(total, lanes, vectors, each)
    _launch(pointwise_kernel, x, programs, WARPS, x, bias, y, r, total, spec, EACH=each, B=lanes)


def _pool(
    x: Tensor,
    bias: Tensor | None,
    relu: bool,
    lrn: LRN | None,
    pool: MaxPool,
    y: Tensor,
    r: Tensor | None,
    argmax: Tensor | None,
    after: LRN | None = None,
) -> None:
    edge, warps = (1, 1) if after else (0, WARPS)
    lanes = _lanes(x, warps)
    total = y.numel() // y.shape[1] * ceil_div(y.shape[1], V.value)
    _launch(
        pool_kernel, x, ceil_div(total, lanes - 2 * edge), warps,
        x, bias, y, r, argmax, total, *x.shape[2:], *y.shape[2:],
        _spec(x, relu, lrn, bias), _spec(x, relu, after, bias), _window(pool, x.shape[2:], y.shape[2:]),
        EDGE=edge, B=lanes,
    )  # fmt: skip


def _lrn_pool(
    x: Tensor,
    bias: Tensor | None,
    relu: bool,
    lrn: LRN | None,
    y: Tensor,
    r: Tensor | None,
    argmax: Tensor | None,
) -> None:
    n, c, h, w = x.shape
    lanes, vectors, down = _lanes(x, 1), ceil_div(c, V.value), h // 2
    # Vectors side by side: 64 bytes at once, or fewer where more than a tenth of the lanes had no channel.
    beside = next(g for g in (4, 2, 1) if ceil_div(vectors, g) * g <= 1.1 * vectors)

    def total(rows: int) -> int:
        return n * ceil_div(down, rows) * ceil_div(vectors, beside) * beside * (w // 2 + 1)

    def programs(rows: int) -> int:
        return ceil_div(total(rows), lanes - beside)

    rows = next((rows for rows in ROWS if programs(rows) >= ENOUGH), ROWS[-1])
    outputs = y.shape[2:]
    _launch(
        lrn_pool_kernel, x, programs(rows), 1,
        x, bias, y, r, argmax, total(rows), h, w, *outputs, _spec(x, relu, lrn, bias),
        LEAVES=2 * outputs[0] + 1 > h or 2 * outputs[1] + 1 > w, ROWS=rows, G=beside, B=lanes,
    )  # fmt: skip


def _backward(
    grad_y: Tensor,
    r: Tensor | None,
    bias: Tensor | None,
    argmax: Tensor | None,
    relu: bool,
    lrn: LRN | None,
    pool: MaxPool | None,
    grad_x: Tensor,
    need_bias: bool,
) -> Tensor | None:
    n, c, h, w = grad_x.shape
    edge, warps = (1, 1) if lrn else (0, WARPS)
    lanes, vectors = _lanes(grad_x, warps), ceil_div(c, V.value)
    pairs = pool.pairs if pool else ((1, 1), (1, 1), (0, 0), (1, 1))
    down, across = (ceil_div(i + p, s) for i, p, s in zip((h, w), pairs[2], pairs[1], strict=True))
    total = n * down * across * vectors
    each = EACH if total >= MANY else 1
    helped = lanes - 2 * edge
    programs = _programs(total, helped, vectors, each)
    sums_ = grad_x.new_empty(programs * helped, V.value, dtype=torch.float32) if need_bias else None
    _launch(
        backward_kernel, grad_x, programs, warps,
        grad_y, r, bias, argmax, grad_x, sums_, total, h, w, *grad_y.shape[2:],
        _spec(grad_x, relu, lrn, grad_y, r, bias), pool and _window(pool, grad_x.shape[2:], grad_y.shape[2:]),
        EACH=each, EDGE=edge, B=lanes,
    )  # fmt: skip
    return None if sums_ is None else sums_.view(-1, vectors * V.value)[:, :c].sum(0)
