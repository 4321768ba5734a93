"""Bias, ReLU, LRN and max pooling of channels_last tensors: a lane has 8 neighbouring channels of a pixel.

Where lanes need each other's values a program is one warp, and `tl.gather` a shuffle. Index v counts vectors
of 8 channels, spec.vectors of them a pixel. What makes a kernel take so many registers or instructions is in
docs/triton_resources.md.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...stages import LRN, MaxPool, Stages, memory_format
from .._launch import ceil_div, on_device
from .formulas import NAN, fast_power, rectified
from .lanes import Spec, V, load, lrn_input, neighbours, normalised, powers, store, sums, with_halo


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
        sign = tl.where(b[1] == float("inf"), tl.full(best.shape, -(2**15), tl.int16), sign)
    KH: tl.constexpr = pool.kh
    KW: tl.constexpr = pool.kw
    for i in tl.static_range(KH):
        for j in tl.static_range(KW):
            row, column, _ = place_of(h, w, i, j, H, W, pool)
            v = load(x, ((n * H + row) * W + column) * spec.x + c * V, c, ok, 0, spec, 0, V)
            v = (v.to(tl.int16, bitcast=True) ^ sign).to(TYPE, bitcast=True)
            best = tl.maximum(best, v.to(tl.float32), propagate_nan=NAN)
    best = (best.to(TYPE).to(tl.int16, bitcast=True) ^ sign).to(TYPE, bitcast=True).to(tl.float32)
    if b is not None:
        best += b[1]
    return rectified(best, spec.relu)


@triton.jit
def pool_kernel(
    x, bias, y, r, offsets, total, H, W, OH, OW,
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
    if offsets is None and spec.size == 0 and x.dtype.element_ty != tl.float32:
        best = pooled_early(x, b, h, w, n, c, ok, H, W, spec, pool)
    else:
        best, place = pooled(x, b, h, w, n, c, ok, H, W, spec, pool)
    to = pixel * spec.channels + c * V
    ok &= (lane >= EDGE) & (lane < B - EDGE)
    if offsets is not None:
        store(offsets, to, c, ok, place, spec)
    if after.size > 0:
        if r is not None:
            store(r, to, c, ok, best, spec)
        if not spec.whole:
            best = tl.where((c * V)[:, None] + tl.arange(0, V)[None, :] < spec.channels, best, 0.0)
        q = best * best
        s0, s1, s2, s3 = neighbours(q, c, after)
        s = sums(s0, s1, q, s2, s3, after.size, after.size // 2)
        p, _ = fast_power(s * after.alpha + after.k, after.beta, x.dtype.element_ty == tl.float32)
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
    x, bias, y, r, offsets, total, H, W, OH, OW, spec: tl.constexpr,
    LEAVES: tl.constexpr, ROWS: tl.constexpr, G: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """y = the maxima over 3x3 windows two apart of LRN(r), r = max(x + bias, 0); unpadded but for ceil mode.

    One warp: its lanes are G neighbouring vectors of B / G neighbouring pairs of columns, of which the last
    pair is only a neighbour's third column. They go down ROWS pairs of rows; the lower row is the next
    window's first. So each LRN value is made about once.
    total = N ceil(H // 2 / ROWS) ceil(vectors / G) (W // 2 + 1) G, of which a program has B - G.
    """
    PARTS: tl.constexpr = (spec.vectors + G - 1) // G
    PLACES: tl.constexpr = offsets is not None
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
            store(offsets, to, c, out, p, spec)
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
        g -= own * (2 * spec.alpha * spec.beta) * seen
    elif spec.relu:
        own = load(r, at, c, ok, 0, spec, 0, V)
    if spec.relu:
        g = tl.where(own <= 0, 0.0, g)
    return g


@triton.jit
def unpooled(grad, r, offsets, n, a, b, c, ok, OH, OW, i, j, spec, pool):
    """The gradient at place (i, j) of square (a, b): the sum over windows with their maximum there.

    r: of pooling without an LRN the output, which tells what the ReLU let through.
    """
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
            here = load(offsets, at, c, inside, 255, spec, 0, V) == u * pool.kw + v
            value = load(grad, at, c, inside, 0, spec, 0, V).to(tl.float32)
            if r is not None:
                here &= (load(r, at, c, inside, 0, spec, 0, V) <= 0) == 0
            g = tl.where(here, g + value, g)
    return g


@triton.jit
def backward_kernel(
    grad, r, bias, offsets, grad_x, sums_, total, H, W, OH, OW, spec: tl.constexpr, pool: tl.constexpr,
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
            y = None if spec.size > 0 or not spec.relu else r
            SH: tl.constexpr = pool.sh
            SW: tl.constexpr = pool.sw
            gs = ()
            for s in tl.static_range(SH):
                for t in tl.static_range(SW):
                    g = unpooled(grad, y, offsets, n, a, right, c, ok, OH, OW, s, t, spec, pool)
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


MOST_PLACES = 25  # of a pooling window: their loops are unrolled
MOST_INPUTS = 4  # of a square in backward, whose gradients are in registers at once
SIZES, BETAS, LEAST_K = range(1, 6), (0.5, 0.75, 1.0), 1e-30  # a halo of two channels; a normal d
EACH = 4  # vectors, or squares, that a lane takes one after another in a large tensor ...
MANY = 2**19  # ... of so many of them, which fill any GPU's lanes four times
ROWS, ENOUGH = (
    (9, 3, 1),
    1024,
)  # pairs of rows that lrn_pool_kernel goes down, while there are so many programs
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
        if lrn.size not in SIZES or lrn.beta not in BETAS or lrn.k < LEAST_K or not whole:
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
    x: Tensor, bias: Tensor | None, stages: Stages, y: Tensor, r: Tensor | None, offsets: Tensor | None
) -> None:
    """Fills y, and r and offsets where there are any; all in channels_last."""
    relu, lrn, pool = bool(stages.relu), stages.lrn, stages.pool
    if pool is None:
        _pointwise(x, bias, relu, lrn, y, r)
    elif stages.pool_first:
        _pool(x, bias, relu, None, pool, y, r, offsets, lrn)
    elif pool.pairs == ((3, 3), (2, 2), (0, 0), (1, 1)):
        _lrn_pool(x, bias, relu, lrn, y, r, offsets)
    elif r is None and all(size <= stride for size, stride in zip(pool.extent, pool.pairs[1], strict=True)):
        _pool(x, bias, relu, lrn, pool, y, None, offsets)
    else:  # windows share values: each is normalised once, and waits in memory for pooling
        between = torch.empty_like(x, memory_format=torch.channels_last)
        _pointwise(x, bias, relu, lrn, between, r)
        _pool(between, None, False, None, pool, y, None, offsets)


def backward(
    grad_y: Tensor,
    r: Tensor | None,
    bias: Tensor | None,
    offsets: Tensor | None,
    stages: Stages,
    grad_x: Tensor,
    need_bias: bool,
) -> Tensor | None:
    """Fills grad_x and returns the bias's gradient, (C,) float32, if it is needed; all in channels_last."""
    relu, lrn, pool = bool(stages.relu), stages.lrn, stages.pool
    if lrn is not None and pool is not None and stages.pool_first:
        between = torch.empty_like(grad_y)
        _backward(grad_y, r, None, None, relu, lrn, None, between, False)
        return _backward(between, None, None, offsets, False, None, pool, grad_x, need_bias)
    return _backward(grad_y, r, bias, offsets, relu, lrn, pool, grad_x, need_bias)


def _lanes(x: Tensor, warps: int) -> int:
    if x.is_cpu:
        return INTERPRETED_LANES
    return warps * int(triton.runtime.driver.active.get_current_target().warp_size)


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
    def leaves(axis: int) -> bool:
        stride, padding = pool.pairs[1][axis], pool.pairs[2][axis]
        return padding > 0 or (outputs[axis] - 1) * stride + pool.extent[axis] > size[axis]

    return Window._make((*(i for pair in pool.pairs for i in pair), leaves(0) or leaves(1)))


def _programs(total: int, lanes: int, vectors: int, each: int) -> int:
    """A whole number of pixels, of so many vectors, is between a lane's."""
    step = vectors // math.gcd(vectors, lanes)
    return ceil_div(ceil_div(total, lanes * each), step) * step


def _launch(kernel: Any, x: Tensor, programs: int, warps: int, *arguments: Any, **constants: Any) -> None:
    with on_device(x):
        kernel[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)


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
    offsets: Tensor | None,
    after: LRN | None = None,
) -> None:
    edge, warps = (1, 1) if after else (0, WARPS)
    lanes = _lanes(x, warps)
    total = y.numel() // y.shape[1] * ceil_div(y.shape[1], V.value)
    _launch(
        pool_kernel, x, ceil_div(total, lanes - 2 * edge), warps,
        x, bias, y, r, offsets, total, *x.shape[2:], *y.shape[2:],
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
    offsets: Tensor | None,
) -> None:
    n, c, h, w = x.shape
    lanes, vectors, down = _lanes(x, 1), ceil_div(c, V.value), h // 2
    # Vectors side by side: 64 bytes at once, or fewer where more than a tenth of the lanes had no channel.
    together = next(g for g in (4, 2, 1) if ceil_div(vectors, g) * g <= 1.1 * vectors)

    def total(rows: int) -> int:
        return n * ceil_div(down, rows) * ceil_div(vectors, together) * together * (w // 2 + 1)

    def programs(rows: int) -> int:
        return ceil_div(total(rows), lanes - together)

    rows = next((rows for rows in ROWS if programs(rows) >= ENOUGH), ROWS[-1])
    outputs = y.shape[2:]
    _launch(
        lrn_pool_kernel, x, programs(rows), 1,
        x, bias, y, r, offsets, total(rows), h, w, *outputs, _spec(x, relu, lrn, bias),
        LEAVES=2 * outputs[0] + 1 > h or 2 * outputs[1] + 1 > w, ROWS=rows, G=together, B=lanes,
    )  # fmt: skip


def _backward(
    grad_y: Tensor,
    r: Tensor | None,
    bias: Tensor | None,
    offsets: Tensor | None,
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
        grad_y, r, bias, offsets, grad_x, sums_, total, h, w, *grad_y.shape[2:],
        _spec(grad_x, relu, lrn, grad_y, r, bias), pool and _window(pool, grad_x.shape[2:], grad_y.shape[2:]),
        EACH=each, EDGE=edge, B=lanes,
    )  # fmt: skip
    return None if sums_ is None else sums_.view(-1, vectors * V.value)[:, :c].sum(0)
