"""Lanes of 8 neighbouring channels: how they are loaded, stored, and summed over an LRN's windows.

Blocks are [B, 8], for B lanes. The compiler gives each lane one row, so that loads and stores have 16 bytes,
and a row is taken apart into eight [B], and put together, by renaming registers. c is the place of a lane's
vector among those of its pixel.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .formulas import fast_power, rectified, rounded

V = tl.constexpr(8)  # channels of a lane


class Spec(NamedTuple):
    """The constants that a kernel is compiled for."""

    relu: bool
    size: int  # of the LRN's window, 0: no LRN
    alpha: float  # over size
    beta: float
    k: float
    group: int  # vectors of an LRN group
    vectors: int  # of a pixel
    whole: bool  # whether all of them have 8 channels
    channels: int
    part: int  # how many channels a load may take at once
    x: int  # values from pixel to pixel of x; of all other tensors there are `channels`


@triton.jit
def split_half(t):
    """[B, 2 n] as two [B, n]."""
    return tl.split(t.reshape(t.shape[0], 2, t.shape[1] // 2).permute(0, 2, 1))


@triton.jit
def join_halves(a, b):
    """The inverse."""
    return tl.join(a, b).permute(0, 2, 1).reshape(a.shape[0], 2 * a.shape[1])


@triton.jit
def split8(t):
    """[B, 8] as eight [B]."""
    a, b = tl.split(t.reshape(t.shape[0], 2, 2, 2))
    a0, a1 = tl.split(a)
    b0, b1 = tl.split(b)
    v0, v4 = tl.split(a0)
    v2, v6 = tl.split(a1)
    v1, v5 = tl.split(b0)
    v3, v7 = tl.split(b1)
    return v0, v1, v2, v3, v4, v5, v6, v7


@triton.jit
def join8(v0, v1, v2, v3, v4, v5, v6, v7):
    """The inverse."""
    a, b = tl.join(tl.join(v0, v4), tl.join(v2, v6)), tl.join(tl.join(v1, v5), tl.join(v3, v7))
    return tl.join(a, b).reshape(v0.shape[0], 8)


@triton.jit
def load(p, at, c, ok, other, spec, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """COUNT channels from the lane's own plus FIRST on, [B, COUNT]; at: where in p the lane's own are."""
    if spec.part < COUNT:
        a = load(p, at, c, ok, other, spec, FIRST, COUNT // 2)
        t = join_halves(a, load(p, at, c, ok, other, spec, FIRST + COUNT // 2, COUNT // 2))
    else:
        if not spec.whole:
            ok &= c * V + FIRST < spec.channels
        t = tl.load(p + ((at + FIRST)[:, None] + tl.arange(0, COUNT)[None, :]), mask=ok[:, None], other=other)
    return t


@triton.jit
def store(p, at, c, ok, value, spec, FIRST: tl.constexpr = 0):
    """The inverse; FIRST: of a part of them."""
    COUNT: tl.constexpr = value.shape[1]
    if spec.part < COUNT:
        a, b = split_half(value)
        store(p, at, c, ok, a, spec, FIRST)
        store(p, at, c, ok, b, spec, FIRST + COUNT // 2)
    else:
        if not spec.whole:
            ok &= c * V + FIRST < spec.channels
        value = rounded(value, p.dtype.element_ty)
        tl.store(p + ((at + FIRST)[:, None] + tl.arange(0, COUNT)[None, :]), value, mask=ok[:, None])


@triton.jit
def with_halo(p, at, c, ok, spec):
    """The two channels before the lane's 8, these, the two after them, in float32; 0 outside the group."""
    own = load(p, at, c, ok, 0, spec, 0, V).to(tl.float32)
    if spec.size > 1:
        before = load(p, at, c, ok & (c % spec.group > 0), 0, spec, -2, 2).to(tl.float32)
        after = load(p, at, c, ok & (c % spec.group < spec.group - 1), 0, spec, V, 2).to(tl.float32)
    else:
        before = tl.zeros((own.shape[0], 2), tl.float32)
        after = before
    return before, own, after


@triton.jit
def lrn_input(x, at, c, ok, b, spec, KEPT: tl.constexpr = False):
    """r = max(x + b, 0) of the channels of `with_halo`; KEPT: rounded to x's type, as a kept one."""
    before, own, after = with_halo(x, at, c, ok, spec)
    if b is not None:
        before, own, after = before + b[0], own + b[1], after + b[2]
        if KEPT:
            TYPE: tl.constexpr = x.dtype.element_ty
            before, after = rounded(before, TYPE).to(tl.float32), rounded(after, TYPE).to(tl.float32)
            own = rounded(own, TYPE).to(tl.float32)
    return rectified(before, spec.relu), rectified(own, spec.relu), rectified(after, spec.relu)


@triton.jit
def fives(a, b, q, c, d):
    """Sums over windows of five channels, which share sums of two."""
    q0, q1, q2, q3, q4, q5, q6, q7 = split8(q)
    t0, t1, t2, t3, t4 = b + q0, q1 + q2, q3 + q4, q5 + q6, q7 + c
    u0, u1, u2, u3 = t0 + t1, t1 + t2, t2 + t3, t3 + t4
    return join8(a + u0, u0 + q3, q0 + u1, u1 + q5, q2 + u2, u2 + q7, q4 + u3, u3 + d)


@triton.jit
def sums(a, b, q, c, d, SIZE: tl.constexpr, BEFORE: tl.constexpr):
    """Over windows of SIZE channels, BEFORE of them before; a, b lie before q [B, 8], c, d after it."""
    if SIZE == 1:
        s = q
    elif SIZE == 5:
        s = fives(a, b, q, c, d)
    else:
        q0, q1, q2, q3, q4, q5, q6, q7 = split8(q)
        x = (a, b, q0, q1, q2, q3, q4, q5, q6, q7, c, d)
        t = ()
        for i in tl.static_range(V):
            total = x[i + 2 - BEFORE]
            for o in tl.static_range(1, SIZE):
                total += x[i + 2 - BEFORE + o]
            t += (total,)  # type: ignore[assignment]
        s = join8(*t)
    return s


@triton.jit
def powers(before, r, after, spec, EXACT: tl.constexpr):
    """d^-beta and 1/d of d = k + alpha/size * sum of r^2 over the window."""
    a, b = tl.split(before * before)
    c, d = tl.split(after * after)
    s = sums(a, b, r * r, c, d, spec.size, spec.size // 2)
    return fast_power(tl.fma(s, spec.alpha, spec.k), spec.beta, EXACT)


@triton.jit
def normalised(x, at, c, ok, b, spec):
    """r = max(x + bias, 0), and o = r d^-beta where there is an LRN, else r; 0 + bias where not ok."""
    before, r, after = lrn_input(x, at, c, ok, b, spec)
    o = r
    if spec.size > 0:
        p, _ = powers(before, r, after, spec, x.dtype.element_ty == tl.float32)
        o = r * p
    return r, o


@triton.jit
def neighbours(t, c, spec):
    """Two channels of the lane before, and two of the lane after, one warp's; 0 outside the group."""
    B: tl.constexpr = t.shape[0]
    lane = tl.arange(0, B)
    m0, m1, _, _, _, _, m6, m7 = split8(t)
    left, right = c % spec.group > 0, c % spec.group < spec.group - 1
    before, after = tl.maximum(lane - 1, 0), tl.minimum(lane + 1, B - 1)
    return (
        tl.where(left, tl.gather(m6, before, 0), 0.0),
        tl.where(left, tl.gather(m7, before, 0), 0.0),
        tl.where(right, tl.gather(m0, after, 0), 0.0),
        tl.where(right, tl.gather(m1, after, 0), 0.0),
    )
