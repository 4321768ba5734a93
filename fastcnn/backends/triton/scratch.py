"""Steps of a convolution block's program: space to depth, the convolution, then LRN and pooling in scratch.

A row of scratch is a pixel, its channels in whole vectors of 8, the last filled with zeros; v counts vectors.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import lanes
from .formulas import INTERPRETED, NAN, inverse_power, larger, nothing
from .lanes import V, load


@triton.jit
def rearrange(
    image, patch, strides, size, top, left, parts,
    CIN: tl.constexpr, SIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """patch[i, j, k, a, b] = image[k, top + i*SIDE + a, left + j*SIDE + b], 0 outside: space to depth.

    A lane copies runs of SIDE values: single values take more instructions, copies by torch more traffic.
    """
    b = tl.arange(0, triton.next_power_of_2(SIDE))[None, :]
    p = 0
    while p < parts:
        run = tl.minimum(p * B + tl.arange(0, B), ROWS * COLUMNS * CIN * SIDE - 1)
        square = run // (CIN * SIDE)
        h = top + square // COLUMNS * SIDE + run % SIDE
        w = (left + square % COLUMNS * SIDE)[:, None] + b
        ok = ((h >= 0) & (h < size[0]))[:, None] & (w >= 0) & (w < size[1]) & (b < SIDE)
        at = run // SIDE % CIN * strides[1] + h * strides[2]
        v = tl.load(image + (at[:, None] + w * strides[3]), mask=ok, other=0)
        tl.store(patch + ((run * SIDE)[:, None] + b), v, mask=b < SIDE)
        p += 1


@triton.jit
def convolved(
    corner, weight, start, strides, size, dilation, top, left, ok, c,
    CIN: tl.constexpr, MAPS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, PADDED: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """start + sums of a[k, top + i*d, left + j*d] w[c, i, j, k] over k, i and j, in float32.

    corner: where a[0, top, left] is. One loop over all three, so that loads run ahead of the products.
    Weights are read as they lie in channels_last: matrix units take the transpose from shared memory, too.
    PADDED: whether any place is outside a.
    """
    DEPTH: tl.constexpr = KH * KW * CIN
    total = start
    for first in range(0, DEPTH, BK):
        at = first + tl.arange(0, BK)
        i, j, k = at // (KW * CIN) * dilation[0], at // CIN % KW * dilation[1], at % CIN
        inside = ok[:, None] & (at < DEPTH)[None, :]
        if PADDED:
            h, w = top[:, None] + i[None, :], left[:, None] + j[None, :]
            inside &= (h >= 0) & (h < size[0]) & (w >= 0) & (w < size[1])
        offset = k * strides[1] + i * strides[2] + j * strides[3]
        a = tl.load(corner[:, None] + offset[None, :], mask=inside, other=0)
        there = (at < DEPTH)[:, None] & (c < MAPS)[None, :]
        b = tl.load(weight + (c * DEPTH)[None, :] + at[:, None], mask=there, other=0)
        if INTERPRETED:  # which multiplies bfloat16's bits as integers
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def outputs(t, n, th, tw, g, size, strides, MAPS: tl.constexpr, CV: tl.constexpr, T: tl.constexpr):
    """Returns where a tile's output vectors t are in y and tensors like it, and which of them exist."""
    pixel, c = t // CV, (t % CV * 8)[:, None] + tl.arange(0, 8)[None, :]
    h, w = th * T + pixel // T, tw * T + pixel % T
    there = ((h < size[4]) & (w < size[5]))[:, None]
    if MAPS % 8 != 0:
        there &= c < MAPS
    return n * strides[0] + ((h * strides[2] + w * strides[3])[:, None] + (g * MAPS + c) * strides[1]), there


@triton.jit
def normalised(scratch, v, spec, MAPS: tl.constexpr, GROUP: tl.constexpr):
    """o = r d^-beta, d = k + alpha/size * sum of r^2 over a window of GROUP's channels; r: vectors v."""
    c, all = v % spec.vectors, tl.full(v.shape, True, tl.int1)
    if spec.group > 0:
        _, o = lanes.normalised(scratch, v * V, c, all, None, spec)
    else:
        own = load(scratch, v * V, c, all, 0, spec, 0, V).to(tl.float32)
        channel = (c * V)[:, None] + tl.arange(0, V)[None, :]
        begin = channel // GROUP * GROUP
        end = tl.minimum(begin + GROUP, MAPS)
        total = tl.zeros(own.shape, tl.float32)
        SIZE: tl.constexpr = spec.size
        for i in tl.static_range(SIZE):
            by = i - SIZE // 2
            ok = (channel + by >= begin) & (channel + by < end)
            at = (v * V)[:, None] + (tl.arange(0, V) + by)[None, :]
            r = tl.load(scratch + at, mask=ok, other=0).to(tl.float32)
            total += r * r
        o = own * inverse_power(total * spec.alpha + spec.k, spec.beta, tl.float32)
    return o


@triton.jit
def pooled(
    scratch, v, top, left, size, spec, T: tl.constexpr, RW: tl.constexpr,
    PK: tl.constexpr, PS: tl.constexpr, LEAVES: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """The maxima over the windows of a tile's vectors v of outputs, and, PLACES, where in them.

    LEAVES: whether any window has places outside the map.
    """
    c, pixel = v % spec.vectors, v // spec.vectors
    i, j = pixel // T * PS, pixel % T * PS
    corner = ((i * RW + j) * spec.vectors + c) * V
    best, place = nothing((v.shape[0], V), tl.float32)
    for a in tl.static_range(PK):
        for b in tl.static_range(PK):
            ok = tl.full(v.shape, True, tl.int1)
            if LEAVES:
                h, w = top + i + a, left + j + b
                ok = (h >= 0) & (h < size[2]) & (w >= 0) & (w < size[3])
            value = load(scratch + (a * RW + b) * spec.vectors * V, corner, c, ok, float("-inf"), spec, 0, V)
            if PLACES:
                best, place = larger(value.to(tl.float32), a * PK + b, best, place, ok[:, None])
            else:
                best = tl.maximum(best, value, propagate_nan=NAN)
    return best, place
