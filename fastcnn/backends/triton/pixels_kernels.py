"""Kernels for channels_last: bias, ReLU, LRN and max pooling; a lane has 8 neighbouring channels of a pixel.

Where lanes need each other's values a program is one warp, and `tl.gather` a shuffle. Index v counts vectors
of 8 channels. How many registers and instructions each takes is in docs/triton_resources.md.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .formulas import NAN, fast_power, flipped, rectified, sign_at_infinity, uncut
from .lanes import V, load, lrn_input, neighbours, normalised, powers, store, sums, with_halo


class Window(NamedTuple):
    """Of pooling, for rows and columns."""

    kh: int
    kw: int
    sh: int
    sw: int
    ph: int
    pw: int
    dh: int
    dw: int
    leaves: bool  # whether any window has places outside the map


@triton.jit
def pointwise_kernel(x, bias, y, r, total, spec: tl.constexpr, EACH: tl.constexpr, B: tl.constexpr):
    """y = LRN(r), r = max(x + bias, 0). A whole number of pixels lies between a lane's vectors."""
    v = tl.program_id(0) * B + tl.arange(0, B)
    c = v % spec.vectors
    b = bias
    if bias is not None:
        b = with_halo(bias, c * V, c, c >= 0, spec)
    for _ in range(EACH):
        ok, pixel = v < total, v // spec.vectors
        own, o = normalised(x, pixel * spec.x + c * V, c, ok, b, spec)
        store(y, pixel * spec.channels + c * V, c, ok, o, spec)
        if r is not None:
            store(r, pixel * spec.channels + c * V, c, ok, own, spec)
        v += tl.num_programs(0) * B


@triton.jit
def first(best, place, v, at):
    """The larger and its place: the last NaN, else the first of equals."""
    take = (v > best) | (v != v)
    return tl.where(take, v, best), tl.where(take, at, place)


@triton.jit
def place_of(h, w, i, j, H, W, pool):
    """Row, column and number of a window's place (i, j); for one outside the map the nearest inside."""
    row, column = h + i * pool.dh, w + j * pool.dw
    at = i * pool.kw + j
    if pool.leaves:
        row, column = tl.minimum(tl.maximum(row, 0), H - 1), tl.minimum(tl.maximum(column, 0), W - 1)
        at = ((row - h) * pool.kw + column - w)[:, None]
    return row, column, at


@triton.jit
def pooled(x, b, h, w, n, c, ok, H, W, spec, pool):
    """The maximum over a window of what `normalised` gives, and its place; the window begins at (h, w)."""
    KH: tl.constexpr = pool.kh
    KW: tl.constexpr = pool.kw
    for i in tl.static_range(KH):
        for j in tl.static_range(KW):
            row, column, at = place_of(h, w, i, j, H, W, pool)
            _, v = normalised(x, ((n * H + row) * W + column) * spec.x + c * V, c, ok, b, spec)
            if i + j == 0:
                best, place = v, at + tl.zeros(v.shape, tl.int32)
            else:
                best, place = first(best, place, v, at)
    return best, place


@triton.jit
def pooled_early(x, b, h, w, n, c, ok, H, W, spec, pool):
    """The same maximum of 16-bit values as they came, two at once, without LRN: bias and ReLU keep order.

    A bias of inf makes inf of all but -inf, which becomes NaN: there signs are changed, to find the least.
    """
    TYPE: tl.constexpr = x.dtype.element_ty
    best = tl.full((c.shape[0], V), float("-inf"), tl.float32)
    sign = tl.zeros(best.shape, tl.int16)
    if b is not None:
        sign = sign_at_infinity(b[1])
    KH: tl.constexpr = pool.kh
    KW: tl.constexpr = pool.kw
    for i in tl.static_range(KH):
        for j in tl.static_range(KW):
            row, column, _ = place_of(h, w, i, j, H, W, pool)
            v = load(x, ((n * H + row) * W + column) * spec.x + c * V, c, ok, 0, spec, 0, V)
            best = tl.maximum(best, flipped(v, sign).to(tl.float32), propagate_nan=NAN)
    best = flipped(best.to(TYPE), sign).to(tl.float32)
    if b is not None:
        best += b[1]
    return rectified(best, spec.relu)


@triton.jit
def pool_kernel(
    x, bias, y, r, argmax, total, H, W, OH, OW,
    spec: tl.constexpr, after: tl.constexpr, pool: tl.constexpr, EDGE: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """y = the maxima over windows of max(x + bias, 0), with spec's LRN before and after's LRN behind pooling.

    LRN before is made for each window that a value is in. after: one warp, whose first and last lane only
    help (EDGE 1). r: after's input.
    """
    lane = tl.arange(0, B)
    v = tl.program_id(0) * (B - 2 * EDGE) + lane - EDGE
    ok = (v >= 0) & (v < total)
    c = (v + spec.vectors) % spec.vectors
    pixel = (v - c) // spec.vectors
    row, ow = pixel // OW, pixel % OW
    n, oh = row // OH, row % OH
    h, w = oh * pool.sh - pool.ph, ow * pool.sw - pool.pw
    b = bias
    if bias is not None:
        b = with_halo(bias, c * V, c, c >= 0, spec)
    if argmax is None and spec.size == 0 and x.dtype.element_ty != tl.float32:
        best = pooled_early(x, b, h, w, n, c, ok, H, W, spec, pool)
    else:
        best, place = pooled(x, b, h, w, n, c, ok, H, W, spec, pool)
    to = pixel * spec.channels + c * V
    ok &= (lane >= EDGE) & (lane < B - EDGE)
    if argmax is not None:
        store(argmax, to, c, ok, uncut(place, best, spec.relu and spec.size == 0), spec)
    if after.size > 0:
        if r is not None:
            store(r, to, c, ok, best, spec)
        if not spec.whole:
            best = tl.where((c * V)[:, None] + tl.arange(0, V)[None, :] < spec.channels, best, 0.0)
        q = best * best
        s0, s1, s2, s3 = neighbours(q, c, after)
        s = sums(s0, s1, q, s2, s3, after.size, after.size // 2)
        p, _ = fast_power(tl.fma(s, after.alpha, after.k), after.beta, x.dtype.element_ty == tl.float32)
        best *= p
    store(y, to, c, ok, best, spec)


@triton.jit
def row_of_three(x, r, v, c, ok, second, keep, by, b, spec, LEAVES: tl.constexpr, PLACES: tl.constexpr):
    """The largest of three neighbouring LRN values and which: two of this lane's, one from lane `by`."""
    r0, o0 = normalised(x, v * spec.x + c * V, c, ok, b, spec)
    r1, o1 = normalised(x, (v + 1) * spec.x + c * V, c, ok & second, b, spec)
    if r is not None:
        store(r, v * spec.channels + c * V, c, keep, r0, spec)
        store(r, (v + 1) * spec.channels + c * V, c, keep & second, r1, spec)
    if LEAVES:
        o0 = tl.where(ok[:, None], o0, float("-inf"))
        o1 = tl.where((ok & second)[:, None], o1, float("-inf"))
    o2 = tl.gather(o0, by, 0)
    place = tl.zeros(o0.shape, tl.int32)
    if PLACES:
        best, place = first(o0, place, o1, 1)
        best, place = first(best, place, o2, 2)
    else:
        best = tl.maximum(tl.maximum(o0, o1, propagate_nan=NAN), o2, propagate_nan=NAN)
    return best, place


@triton.jit
def lrn_pool_kernel(
    x, bias, y, r, argmax, total, H, W, OH, OW, spec: tl.constexpr,
    LEAVES: tl.constexpr, ROWS: tl.constexpr, G: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """y = the maxima over 3x3 windows two apart of LRN(r), r = max(x + bias, 0); unpadded but for ceil mode.

    One warp: its lanes are G neighbouring vectors of B / G neighbouring pairs of columns, of which the last
    pair is only a neighbour's third column. They go down ROWS pairs of rows; the lower row is the next
    window's first. So each LRN value is made about once.
    total = N ceil(H // 2 / ROWS) ceil(vectors / G) (W // 2 + 1) G, of which a program has B - G.
    """
    PARTS: tl.constexpr = (spec.vectors + G - 1) // G
    PLACES: tl.constexpr = argmax is not None
    lane = tl.arange(0, B)
    i = tl.program_id(0) * (B - G) + lane
    by = tl.minimum(lane + G, B - 1)[:, None] + tl.zeros([1, V], tl.int32)
    down, pairs = H // 2, W // 2 + 1
    c, rest = i % G, i // G
    ow, rest = rest % pairs, rest // pairs
    c, rest = rest % PARTS * G + c, rest // PARTS
    strips = (down + ROWS - 1) // ROWS
    oh, n = rest % strips * ROWS, rest // strips
    end = tl.minimum(oh + ROWS, down)
    second = 2 * ow + 1 < W
    ok = (i < total) & (2 * ow < W) & (c < spec.vectors)
    mine = lane < B - G
    b = bias
    if bias is not None:
        b = with_halo(bias, c * V, c, c >= 0, spec)
    v = (n * H + 2 * oh) * W + 2 * ow
    to = ((n * OH + oh) * OW + ow) * spec.channels + c * V
    top, p = row_of_three(x, r, v, c, ok, second, ok & mine, by, b, spec, LEAVES, PLACES)
    for _ in range(ROWS):
        there = ok & (oh < end)
        middle, mp = row_of_three(x, r, v + W, c, there, second, there & mine, by, b, spec, LEAVES, PLACES)
        there &= 2 * oh + 2 < H
        keep = there & mine & ((oh + 1 < end) | (end == down))  # else it is the next strip's first
        low, lp = row_of_three(x, r, v + 2 * W, c, there, second, keep, by, b, spec, LEAVES, PLACES)
        out = ok & mine & (oh < end) & (oh < OH) & (ow < OW)
        if PLACES:
            best, p = first(top, p, middle, mp + 3)
            best, p = first(best, p, low, lp + 6)
            store(argmax, to, c, out, p, spec)
            p = lp
        else:
            best = tl.maximum(tl.maximum(top, middle, propagate_nan=NAN), low, propagate_nan=NAN)
        store(y, to, c, out, best, spec)
        top = low
        v += 2 * W
        to += OW * spec.channels
        oh += 1


@triton.jit
def through(g, r, at, c, ok, b, spec):
    """The gradient g at LRN's and ReLU's output as that at their input, of which r is kept, or r + bias.

    dr[i] = g[i] d[i]^-beta - 2 alpha beta/size r[i] sum of g[j] r[j] d[j]^-beta / d[j], over the j whose
    window holds i; 0 where r[i] <= 0. Terms of the next channels come from the lanes before and after.
    """
    if spec.size > 0:
        before, own, after = lrn_input(r, at, c, ok, b, spec, KEPT=True)
        p, i = powers(before, own, after, spec, r.dtype.element_ty == tl.float32)
        g *= p
        term = g * own * i
        s0, s1, s2, s3 = neighbours(term, c, spec)
        seen = sums(s0, s1, term, s2, s3, spec.size, (spec.size - 1) // 2)
        g = tl.fma(own * (-2 * spec.alpha * spec.beta), seen, g)
    elif spec.relu:
        own = load(r, at, c, ok, 0, spec, 0, V)
    if spec.relu:
        g = tl.where(own <= 0, 0.0, g)
    return g


@triton.jit
def unpooled(grad, argmax, n, a, b, c, ok, OH, OW, i, j, spec, pool):
    """The gradient at place (i, j) of square (a, b): the sum over windows with their maximum there."""
    g = tl.zeros((a.shape[0], V), tl.float32)
    KH: tl.constexpr = pool.kh
    KW: tl.constexpr = pool.kw
    SH: tl.constexpr = pool.sh
    SW: tl.constexpr = pool.sw
    for u in tl.static_range(i, KH, SH):
        for v in tl.static_range(j, KW, SW):
            oh, ow = a - u // pool.sh, b - v // pool.sw
            inside = ok & (oh >= 0) & (oh < OH) & (ow >= 0) & (ow < OW)
            at = ((n * OH + oh) * OW + ow) * spec.channels + c * V
            here = load(argmax, at, c, inside, 255, spec, 0, V) == u * pool.kw + v
            value = load(grad, at, c, inside, 0, spec, 0, V).to(tl.float32)
            g = tl.where(here, g + value, g)
    return g


@triton.jit
def backward_kernel(
    grad, r, bias, argmax, grad_x, sums_, total, H, W, OH, OW, spec: tl.constexpr, pool: tl.constexpr,
    EACH: tl.constexpr, EDGE: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The gradient at x from that at y. A lane has 8 channels of a square of inputs, as large as the stride.

    So each looks at the windows that reach into its square, and there is no scatter; without pooling (None)
    a square is a pixel. With an LRN a program is one warp, whose first and last lane only help (EDGE 1).
    The other lanes of all programs are a multiple of a pixel's vectors, so that each keeps its channels:
    sums_, [lanes, 8] float32, are their shares of the bias's gradient.
    """
    lane = tl.arange(0, B)
    i = tl.program_id(0) * (B - 2 * EDGE) + lane - EDGE
    mine = (lane >= EDGE) & (lane < B - EDGE)
    own = i
    c = (i + spec.vectors) % spec.vectors
    b = bias
    if bias is not None:
        b = with_halo(bias, c * V, c, c >= 0, spec)
    total_bias = tl.zeros((B, V), tl.float32)
    for _ in range(EACH):
        ok = (i >= 0) & (i < total)
        square = (i - c) // spec.vectors
        if pool is None:
            at = square * spec.channels + c * V
            g = through(load(grad, at, c, ok, 0, spec, 0, V).to(tl.float32), r, at, c, ok, b, spec)
            store(grad_x, at, c, ok & mine, g, spec)
            total_bias += g
        else:
            down, across = (H + pool.ph + pool.sh - 1) // pool.sh, (W + pool.pw + pool.sw - 1) // pool.sw
            row, right = square // across, square % across
            n, a = row // down, row % down
            SH: tl.constexpr = pool.sh
            SW: tl.constexpr = pool.sw
            gs = ()
            for s in tl.static_range(SH):
                for t in tl.static_range(SW):
                    g = unpooled(grad, argmax, n, a, right, c, ok, OH, OW, s, t, spec, pool)
                    gs += (g,)  # type: ignore[assignment]
            for s in tl.static_range(SH):
                for t in tl.static_range(SW):
                    h, w = a * pool.sh - pool.ph + s, right * pool.sw - pool.pw + t
                    inside = ok & (h < H) & (w < W)
                    if pool.ph > s or pool.pw > t:
                        inside &= (h >= 0) & (w >= 0)
                    at = ((n * H + h) * W + w) * spec.channels + c * V
                    g = gs[s * pool.sw + t]
                    if spec.size > 0:
                        g = through(g, r, at, c, inside, b, spec)
                    store(grad_x, at, c, inside & mine, g, spec)
                    total_bias += g
        i += tl.num_programs(0) * (B - 2 * EDGE)
    if sums_ is not None:
        tl.store(sums_ + ((own * V)[:, None] + tl.arange(0, V)[None, :]), total_bias, mask=mine[:, None])
