"""Bias, ReLU, LRN and max pooling, forward and backward: one value a lane, for every option and stride.

What windows share is read again, from cache, and computed again: simple, and the same on every GPU that
Triton knows. Sums have one order, so the same bits come out every time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...stages import LRN, MaxPool, Stages, memory_format
from .._launch import ceil_div, on_device
from ..reference import lrn_input
from .formulas import inverse_power, larger, nothing, uncut

BLOCK = 128  # a value a lane of NVIDIA's
INTERPRETED_BLOCK = 16384  # where each operation on a block costs as much as on a single value


@triton.jit
def place(i, C, H, W, CHANNELS_LAST: tl.constexpr):
    """n, c, h, w of the i-th value of (N, C, H, W), in the order of memory."""
    if CHANNELS_LAST:
        c, pixel = i % C, i // C
        n, h, w = pixel // W // H, pixel // W % H, pixel % W
    else:
        row = i // W
        n, c, h, w = row // H // C, row // H % C, row % H, i % W
    return n, c, h, w


@triton.jit
def index(n, c, h, w, C, H, W, CHANNELS_LAST: tl.constexpr):
    """The inverse of place."""
    return ((n * H + h) * W + w) * C + c if CHANNELS_LAST else ((n * C + c) * H + h) * W + w


@triton.jit
def load(t, strides, n, c, h, w, inside, ACC: tl.constexpr):
    """A value of (N, C, H, W), 0 outside."""
    offset = n * strides[0] + c * strides[1] + h * strides[2] + w * strides[3]
    return tl.load(t + offset, mask=inside, other=0).to(ACC)


@triton.jit
def rectified(x, bias, strides, n, c, h, w, inside, RELU: tl.constexpr, ACC: tl.constexpr):
    """r = max(a + bias, 0), a NaN staying one; 0 outside."""
    v = load(x, strides, n, c, h, w, inside, ACC)
    if bias is not None:
        v += tl.load(bias + c, mask=inside, other=0).to(ACC)
    if RELU:
        v = tl.where(v < 0, 0.0, v).to(ACC)
    return v


@triton.jit
def covered(size, pool, oh, ow, i, j, inside):
    """Row and column of a place of an output's window, and whether it is inside the map."""
    h = oh * pool[0] - pool[2] + i * pool[4]
    w = ow * pool[1] - pool[3] + j * pool[5]
    return h, w, inside & (h >= 0) & (h < size[1]) & (w >= 0) & (w < size[2])


@triton.jit
def covering(argmax, size, pool, n, c, h, w, i, j, KW: tl.constexpr, inside, CHANNELS_LAST: tl.constexpr):
    """The output whose window has an input as its place (i, j), and whether its maximum was there."""
    top = h + pool[2] - i * pool[4]
    left = w + pool[3] - j * pool[5]
    oh, ow = top // pool[0], left // pool[1]
    ok = inside & (top >= 0) & (top % pool[0] == 0) & (oh < size[3])
    ok &= (left >= 0) & (left % pool[1] == 0) & (ow < size[4])
    at = index(n, c, oh, ow, size[0], size[3], size[4], CHANNELS_LAST)
    return oh, ow, ok & (tl.load(argmax + at, mask=ok, other=0).to(tl.int32) == i * KW + j)


@triton.jit
def pooled(
    x, bias, strides, size, pool, n, c, oh, ow, inside,
    RELU: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The maximum of r over an output's window, and where in it."""
    best, best_at = nothing(n.shape, ACC)
    for i in range(KH):
        for j in range(KW):
            h, w, ok = covered(size, pool, oh, ow, i, j, inside)
            v = rectified(x, bias, strides, n, c, h, w, ok, RELU, ACC)
            best, best_at = larger(v, i * KW + j, best, best_at, ok)
    return best, uncut(best_at, best, RELU)


@triton.jit
def normalised(
    x, bias, strides, size, pool, n, c, h, w, inside,
    RELU: tl.constexpr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    POOLED: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """o = r d^-beta, d = k + alpha/size * sum of r^2 over a window of channels; POOLED: of the pooled r."""
    begin = c // size[5] * size[5]
    total = tl.zeros(n.shape, ACC)
    own = tl.zeros(n.shape, ACC)
    for o in range(SIZE):
        j = c + o - SIZE // 2
        ok = inside & (j >= begin) & (j < begin + size[5])
        if POOLED:
            v, _ = pooled(x, bias, strides, size, pool, n, j, h, w, ok, RELU, KH, KW, ACC)
            v = tl.where(ok, v, 0.0).to(ACC)
        else:
            v = rectified(x, bias, strides, n, j, h, w, ok, RELU, ACC)
        total += v * v
        own = tl.where(j == c, v, own)
    return own * inverse_power(K + ALPHA / SIZE * total, BETA, ACC)


@triton.jit
def forward_kernel(
    x, bias, y, r, argmax, strides, size, pool, total,
    RELU: tl.constexpr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    POOL_FIRST: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = the stages on x, one output a lane; size: C, H, W, OH, OW, channels of an LRN group.

    pool: stride, padding and dilation, (height, width) each. KH 0: none; SIZE 0: no LRN.
    """
    i = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    inside = i < total
    n, c, h, w = place(i, size[0], size[3], size[4], CHANNELS_LAST)
    if KH > 0 and (POOL_FIRST or SIZE == 0):
        v, at = pooled(x, bias, strides, size, pool, n, c, h, w, inside, RELU, KH, KW, ACC)
        if r is not None:
            tl.store(r + i, v, mask=inside)
        if argmax is not None:
            tl.store(argmax + i, at, mask=inside)
        if SIZE > 0:
            v = normalised(
                x, bias, strides, size, pool, n, c, h, w, inside,
                RELU, SIZE, ALPHA, BETA, K, True, KH, KW, ACC,
            )  # fmt: skip
    elif KH > 0:
        v, at = nothing(n.shape, ACC)
        for a in range(KH):
            for b in range(KW):
                row, column, ok = covered(size, pool, h, w, a, b, inside)
                o = normalised(
                    x, bias, strides, size, pool, n, c, row, column, ok,
                    RELU, SIZE, ALPHA, BETA, K, False, KH, KW, ACC,
                )  # fmt: skip
                v, at = larger(o, a * KW + b, v, at, ok)
        if argmax is not None:
            tl.store(argmax + i, at, mask=inside)
    elif SIZE > 0:
        v = normalised(
            x, bias, strides, size, pool, n, c, h, w, inside,
            RELU, SIZE, ALPHA, BETA, K, False, KH, KW, ACC,
        )  # fmt: skip
    else:
        v = rectified(x, bias, strides, n, c, h, w, inside, RELU, ACC)
    tl.store(y + i, v, mask=inside)


@triton.jit
def given(
    grad, argmax, grad_strides, size, pool, n, c, h, w, inside,
    UNPOOL: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient at an output; or, UNPOOL, at an input: the sum over windows with their maximum there."""
    if UNPOOL:
        g = tl.zeros(n.shape, ACC)
        for i in range(KH):
            for j in range(KW):
                oh, ow, ok = covering(argmax, size, pool, n, c, h, w, i, j, KW, inside, CHANNELS_LAST)
                g += load(grad, grad_strides, n, c, oh, ow, ok, ACC)
    else:
        g = load(grad, grad_strides, n, c, h, w, inside, ACC)
    return g


@triton.jit
def denominator(
    r, strides, n, c, h, w, begin, end, inside,
    SIZE: tl.constexpr, ALPHA: tl.constexpr, K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    total = tl.zeros(n.shape, ACC)
    for o in range(SIZE):
        j = c + o - SIZE // 2
        v = load(r, strides, n, j, h, w, inside & (j >= begin) & (j < end), ACC)
        total += v * v
    return K + ALPHA / SIZE * total


@triton.jit
def through(
    grad, r, argmax, grad_strides, strides, size, pool, n, c, h, w, inside,
    RELU: tl.constexpr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    UNPOOL: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient g at the output of LRN and ReLU, as given, as that at their input.

    dr[i] = g[i] d[i]^-beta - 2 alpha beta/size r[i] sum of g[j] r[j] d[j]^-beta / d[j], over the j whose
    window holds i; 0 where the ReLU let nothing through, if r tells.
    """
    g = given(grad, argmax, grad_strides, size, pool, n, c, h, w, inside, UNPOOL, KH, KW, CHANNELS_LAST, ACC)
    if SIZE > 0:
        own = load(r, strides, n, c, h, w, inside, ACC)
        begin = c // size[5] * size[5]
        end = begin + size[5]
        direct = tl.zeros(n.shape, ACC)
        seen = tl.zeros(n.shape, ACC)
        for o in range(SIZE):
            j = c + o - (SIZE - 1) // 2
            ok = inside & (j >= begin) & (j < end)
            d = denominator(r, strides, n, j, h, w, begin, end, ok, SIZE, ALPHA, K, ACC)
            gj = given(
                grad, argmax, grad_strides, size, pool, n, j, h, w, ok, UNPOOL, KH, KW, CHANNELS_LAST, ACC
            )
            passed = gj * inverse_power(d, BETA, ACC)
            term = passed * load(r, strides, n, j, h, w, ok, ACC) / d
            seen += tl.where(ok, term, 0.0).to(ACC)
            direct = tl.where(j == c, passed, direct)
        g = direct - 2 * ALPHA * BETA / SIZE * own * seen
    if RELU and r is not None:
        g = tl.where(load(r, strides, n, c, h, w, inside, ACC) <= 0, 0.0, g).to(ACC)
    return g


@triton.jit
def backward_kernel(
    grad, r, argmax, grad_x, grad_strides, strides, size, pool, total,
    RELU: tl.constexpr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    POOL_FIRST: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient at x from that at y, one input a lane; strides: of r, whatever backward was left."""
    i = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    inside = i < total
    n, c, h, w = place(i, size[0], size[1], size[2], CHANNELS_LAST)
    if KH > 0 and (POOL_FIRST or SIZE == 0):
        g = tl.zeros(n.shape, ACC)
        for a in range(KH):
            for b in range(KW):
                oh, ow, ok = covering(argmax, size, pool, n, c, h, w, a, b, KW, inside, CHANNELS_LAST)
                v = through(
                    grad, r, argmax, grad_strides, strides, size, pool, n, c, oh, ow, ok,
                    RELU, SIZE, ALPHA, BETA, K, False, KH, KW, CHANNELS_LAST, ACC,
                )  # fmt: skip
                g += tl.where(ok, v, 0.0).to(ACC)
    else:
        g = through(
            grad, r, argmax, grad_strides, strides, size, pool, n, c, h, w, inside,
            RELU, SIZE, ALPHA, BETA, K, KH > 0, KH, KW, CHANNELS_LAST, ACC,
        )  # fmt: skip
    tl.store(grad_x + i, g, mask=inside)


def extent(t: Tensor) -> int:
    """From a tensor's first value to its last, in values."""
    return 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))


def arguments(x: Tensor, y: Tensor, stages: Stages, r: Tensor | None = None) -> dict[str, Any]:
    """Returns the sizes and stages for both kernels; x and y: input and output, or their gradients."""
    tensors = [t for t in (x, y, r) if t is not None]
    lrn, pool = stages.lrn or LRN(), stages.pool or MaxPool(1)
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = pool.pairs
    _, c, h, w = x.shape
    return {
        "size": (c, h, w, *y.shape[2:], c // lrn.groups),
        "pool": (sh, sw, ph, pw, dh, dw),
        "RELU": bool(stages.relu),
        "SIZE": lrn.size if stages.lrn else 0,
        "ALPHA": float(lrn.alpha),
        "BETA": float(lrn.beta),
        "K": float(lrn.k),
        "POOL_FIRST": stages.pool_first,
        "KH": kh if stages.pool else 0,
        "KW": kw if stages.pool else 0,
        "ACC": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "INDEX": tl.int64 if max(map(extent, tensors)) >= 2**31 else tl.int32,
        "BLOCK": block(x),
    }


def block(x: Tensor) -> int:
    return INTERPRETED_BLOCK if x.is_cpu else BLOCK


def forward(
    x: Tensor, bias: Tensor | None, stages: Stages, y: Tensor, r: Tensor | None, argmax: Tensor | None
) -> None:
    """Fills y, and r and argmax where there are any, laid out as y."""
    with_y = r if stages.pool_first and stages.pool else None
    _forward(x, bias, stages, y, with_y, argmax)
    if r is not None and with_y is None:
        _forward(x, bias, Stages(stages.relu), r, None, None)


def _forward(
    x: Tensor, bias: Tensor | None, stages: Stages, y: Tensor, r: Tensor | None, argmax: Tensor | None
) -> None:
    total = y.numel()
    with on_device(x):
        forward_kernel[(ceil_div(total, block(x)),)](
            x, bias, y, r, argmax, x.stride(), total=total,
            CHANNELS_LAST=memory_format(x) == torch.channels_last, **arguments(x, y, stages),
        )  # fmt: skip


def backward(
    grad_y: Tensor,
    r: Tensor | None,
    bias: Tensor | None,
    argmax: Tensor | None,
    stages: Stages,
    grad_x: Tensor,
    need_bias: bool,
) -> Tensor | None:
    """Fills grad_x and returns the bias's gradient, (C,), if it is needed; argmax is laid out as grad_x."""
    r = lrn_input(r, bias, stages)
    total = grad_x.numel()
    with on_device(grad_x):
        backward_kernel[(ceil_div(total, block(grad_x)),)](
            grad_y, r, argmax, grad_x, grad_y.stride(), r.stride() if r is not None else (0, 0, 0, 0),
            total=total, CHANNELS_LAST=memory_format(grad_x) == torch.channels_last,
            **arguments(grad_x, grad_y, stages, r),
        )  # fmt: skip
    wide = torch.float64 if grad_x.dtype == torch.float64 else torch.float32
    return grad_x.sum((0, 2, 3), dtype=wide) if need_bias else None
