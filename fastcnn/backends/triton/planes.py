"""Bias, ReLU, LRN and max pooling of contiguous NCHW tensors.

A lane owns pixels of a map and walks down the channels. It keeps what the LRN's window of channels shares in
registers, so that each value is loaded once and computed once. The loops over channels are unrolled UNROLL
times: moving the window by a channel is then a renaming of registers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...stages import LRN, MaxPool, Stages
from .._launch import on_device
from .formulas import NAN, fast_power, larger, rectified, rounded

UNROLL = tl.constexpr(4)
OUTSIDE = tl.constexpr(float("-inf"))


@triton.jit
def chunk(GC, CHUNK):
    """First channel and end of this program's LRN group of GC channels, and of its chunk of the group."""
    chunks = (GC + CHUNK - 1) // CHUNK
    q = tl.program_id(1)
    begin = q // chunks * GC
    first = begin + q % chunks * CHUNK
    return begin, begin + GC, first, tl.minimum(first + CHUNK, begin + GC)


@triton.jit
def channel_bias(bias, c, live):
    """bias[c], 0 where channel c is not live; None if bias is."""
    if bias is not None:
        bias = tl.load(bias + c, mask=live, other=0).to(tl.float32)
    return bias


@triton.jit
def biased(a, b, RELU: tl.constexpr):
    """r = max(a + b, 0), in float32."""
    r = a.to(tl.float32)
    if b is not None:
        r += b
    return rectified(r, RELU)


@triton.jit
def denominator(window, SIZE: tl.constexpr, ALPHA: tl.constexpr, K: tl.constexpr):
    """d = k + alpha/size sum of r^2, of SIZE channels' r."""
    total = window[0] * window[0]
    for s in tl.static_range(1, SIZE):
        total += window[s] * window[s]
    return K + ALPHA / SIZE * total


@triton.jit
def normalised(
    window, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr
):  # fmt: skip
    """o = r d^-beta of a window of SIZE channels; BETA 0: no LRN."""
    o = window[SIZE // 2]
    if BETA != 0:
        p, _ = fast_power(denominator(window, SIZE, ALPHA, K), BETA, EXACT)
        o *= p
    return o


@triton.jit
def relu_kernel(
    x, bias, y, N, C, HW, RELU: tl.constexpr, V: tl.constexpr, EACH: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    """y = max(x + bias, 0). A lane has V values of at most two channels (HW >= V), in EACH images."""
    i = tl.program_id(0) * B + tl.arange(0, B)
    per_image = C * HW // V
    e = tl.arange(0, V)[None, :]
    if bias is not None:
        c = V * i // HW
        add = tl.load(bias + c, mask=c < C)[:, None].to(tl.float32)
        if V > 1:
            next = tl.load(bias + c + 1, mask=c + 1 < C)[:, None].to(tl.float32)
            add = tl.where(V * i[:, None] + e < (c[:, None] + 1) * HW, add, next)
    loaded = ()
    for s in tl.static_range(EACH):
        n = tl.program_id(1) * EACH + s
        at = V * (n * per_image + i[:, None]) + e
        loaded = loaded + (tl.load(x + at, mask=(i < per_image)[:, None] & (n < N)),)  # noqa: RUF005
    for s in tl.static_range(EACH):
        n = tl.program_id(1) * EACH + s
        at = V * (n * per_image + i[:, None]) + e
        r = loaded[s].to(tl.float32)
        if bias is not None:
            r += add
        r = rounded(rectified(r, RELU), y.dtype.element_ty)
        tl.store(y + at, r, mask=(i < per_image)[:, None] & (n < N))


@triton.jit
def pooled(
    x, at, bias, c, live, H, W, h, w, RELU: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, CHECK: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """The maximum of r = max(x + bias, 0) over a window whose first place is (h, w), and its place.

    CHECK: whether windows leave the map. Without PLACES values are compared as they came; bias and ReLU, which
    keep order, follow once. 0 where channel c is not live.
    """
    best, place = tl.full(at.shape, OUTSIDE, tl.float32), tl.full(at.shape, -1, tl.int32)
    b = channel_bias(bias, c, live)
    for i in tl.static_range(KH):
        row = x + (c * H + i * DH) * W + at
        for j in tl.static_range(KW):
            if CHECK:
                inside = (h + i * DH >= 0) & (h + i * DH < H) & (w + j * DW >= 0) & (w + j * DW < W)
                a = tl.load(row + j * DW, mask=inside & live, other=OUTSIDE)
            else:
                inside = True
                a = tl.load(row + j * DW, mask=live, other=0)
            if PLACES:
                best, place = larger(biased(a, b, RELU), i * KW + j, best, place, inside)
            else:
                best = a if i + j == 0 else tl.maximum(best, a, propagate_nan=NAN)
    if not PLACES:
        best = biased(best, b, RELU)
    if CHECK:
        best = tl.where(live, best, 0.0)
    return best, place


@triton.jit
def forward_kernel(
    x, bias, y, r, offsets, total, C, H, W, OH, OW, GC, CHUNK,
    RELU: tl.constexpr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, CHECK: tl.constexpr, EXACT: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """y = LRN(r), r = max over a window of max(x + bias, 0); a window of one place: no pooling.

    total = N OH OW. A lane owns pixels of the output.
    """
    i = tl.program_id(0) * B + tl.arange(0, B)
    mine = i < total
    i = tl.minimum(i, total - 1)
    row, ow = i // OW, i % OW
    n, oh = row // OH, row % OH
    h, w = oh * SH - PH, ow * SW - PW
    at = (n * C * H + h) * W + w
    to = (n * C * OH + oh) * OW + ow
    begin, end, first, last = chunk(GC, CHUNK)
    past = ()
    for s in tl.static_range(1 - SIZE, 0):
        j = first + (SIZE - 1) // 2 + s
        v, place = pooled(
            x, at, bias, j, (j >= begin) & (j < end), H, W, h, w,
            RELU, KH, KW, DH, DW, CHECK, offsets is not None,
        )  # fmt: skip
        if offsets is not None:
            keep = mine & (j >= first) & (j < last)
            tl.store(offsets + j * OH * OW + to, place.to(tl.uint8), mask=keep)
        past = past + (v,)  # noqa: RUF005
    c = first
    while c < last:
        loaded = ()  # of all UNROLL channels: loads do not pass stores
        for s in tl.static_range(UNROLL):
            j = c + s + (SIZE - 1) // 2
            both = pooled(
                x, at, bias, j, j < end, H, W, h, w, RELU, KH, KW, DH, DW, CHECK, offsets is not None
            )
            loaded = loaded + (both,)  # noqa: RUF005
        for s in tl.static_range(UNROLL):
            j = c + s + (SIZE - 1) // 2
            if offsets is not None:
                tl.store(offsets + j * OH * OW + to, loaded[s][1].to(tl.uint8), mask=mine & (j < last))
            window = past + (loaded[s][0],)  # noqa: RUF005
            here = (c + s) * OH * OW + to
            keep = mine & (c + s < last)
            if r is not None:
                tl.store(r + here, rounded(window[SIZE // 2], r.dtype.element_ty), mask=keep)
            o = normalised(window, SIZE, ALPHA, BETA, K, EXACT)
            tl.store(y + here, rounded(o, y.dtype.element_ty), mask=keep)
            past = window[1:]
        c += UNROLL


@triton.jit
def largest_of_row(a, b, next, PLACES: tl.constexpr):
    """The maximum of three columns and which: this lane's a and b, and the next lane's a."""
    best, place = a, tl.zeros(a.shape, tl.int32)
    if PLACES:
        best, place = larger(b, 1, best, place, True)
        best, place = larger(tl.gather(a, next, 0), 2, best, place, True)
    else:
        best = tl.maximum(best, b, propagate_nan=NAN)
        best = tl.maximum(best, tl.gather(a, next, 0), propagate_nan=NAN)
    return best, place


@triton.jit
def two_columns(x, at, right, W, live, ROWS: tl.constexpr):
    """Two neighbouring values of each of ROWS rows, row by row; 0 where the channel is not live."""
    loaded = ()
    for q in tl.static_range(ROWS):
        row = x + q * W + at
        loaded = loaded + (tl.load(row, mask=live, other=0), tl.load(row + right, mask=live, other=0))  # noqa: RUF005
    return loaded


@triton.jit
def lrn_pool_kernel(
    x, bias, y, r, offsets, total, C, H, W, OH, OW, GC, CHUNK,
    RELU: tl.constexpr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    STRIP: tl.constexpr, EXACT: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """y = max over 3x3 windows two apart, all inside the map, of LRN(r), r = max(x + bias, 0).

    One warp of B lanes. A lane owns two columns by 2 STRIP + 1 rows; a window's third column is the next lane's
    first, by a shuffle, so the last lane only helps. total = N ceil(OH / STRIP) ceil(W / 2). The last strip of
    rows is moved up to end with the map; what two strips store is the same.
    """
    ROWS: tl.constexpr = 2 * STRIP + 1
    lane = tl.arange(0, B)
    next = tl.minimum(lane + 1, B - 1)
    i = tl.program_id(0) * (B - 1) + lane
    mine = (lane < B - 1) & (i < total)
    i = tl.minimum(i, total - 1)
    pairs, strips = (W + 1) // 2, (OH + STRIP - 1) // STRIP
    rest, ow = i // pairs, i % pairs
    n, oh = rest // strips, tl.minimum(rest % strips * STRIP, OH - STRIP)
    at = (n * C * H + 2 * oh) * W + 2 * ow
    right = tl.minimum(W - 1 - 2 * ow, 1)  # an odd width's last column is the lane's second, too
    to = (n * C * OH + oh) * OW + ow
    out = mine & (ow < OW)
    begin, end, first, last = chunk(GC, CHUNK)
    past = ()
    for _ in tl.static_range(2 * ROWS):
        past = past + ((),)  # noqa: RUF005
    for s in tl.static_range(1 - SIZE, 0):
        j = first + (SIZE - 1) // 2 + s
        live = (j >= begin) & (j < end)
        b = channel_bias(bias, j, live)
        loaded = two_columns(x + j * H * W, at, right, W, live, ROWS)
        longer = ()
        for q in tl.static_range(2 * ROWS):
            longer = longer + (past[q] + (biased(loaded[q], b, RELU),),)  # noqa: RUF005
        past = longer
    c = first
    while c < last:
        for _ in tl.static_range(UNROLL):
            j = c + (SIZE - 1) // 2
            ahead = two_columns(x + j * H * W, at, right, W, j < end, ROWS)
            add = channel_bias(bias, j, j < end)
            keep = mine & (c < last)
            moved = ()
            for q in tl.static_range(ROWS):
                pair = ()
                for k in tl.static_range(2 * q, 2 * q + 2):
                    window = past[k] + (biased(ahead[k], add, RELU),)  # noqa: RUF005
                    moved = moved + (window[1:],)  # noqa: RUF005
                    pair = pair + (normalised(window, SIZE, ALPHA, BETA, K, EXACT),)  # noqa: RUF005
                    if r is not None:
                        # The last row is the next strip's first.
                        kept = keep if q < ROWS - 1 else keep & (oh + STRIP == OH)
                        own = rounded(window[SIZE // 2], r.dtype.element_ty)
                        row = r + (c * H + q) * W + at
                        if k % 2 == 0:
                            tl.store(row, own, mask=kept)
                        else:
                            tl.store(row + right, own, mask=kept)
                v, place = largest_of_row(pair[0], pair[1], next, offsets is not None)
                if q % 2 == 1:
                    if offsets is not None:
                        best, best_at = larger(v, place + 3, best, best_at, True)
                    else:
                        best = tl.maximum(best, v, propagate_nan=NAN)
                else:
                    if q > 0:
                        here = (c * OH + q // 2 - 1) * OW + to
                        if offsets is not None:
                            best, best_at = larger(v, place + 6, best, best_at, True)
                            tl.store(offsets + here, best_at.to(tl.uint8), mask=out & (c < last))
                        else:
                            best = tl.maximum(best, v, propagate_nan=NAN)
                        tl.store(y + here, rounded(best, y.dtype.element_ty), mask=out & (c < last))
                    best, best_at = v, place
            past = moved
            c += 1


@triton.jit
def routed(
    sum, g, place, I: tl.constexpr, J: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
):  # fmt: skip
    """Adds a window's gradient to the input I rows and J columns into it, if its maximum was there."""
    if I % DH == 0 and J % DW == 0 and I // DH < KH and J // DW < KW:
        sum += tl.where(place == I // DH * KW + J // DW, g, 0.0)
    return sum


@triton.jit
def given(
    grad, r, offsets, c, live, to, windows, OH, OW, RELU: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
):  # fmt: skip
    """The gradients at SH x SW inputs, of the windows that have their maximum there.

    RELU: 0 from where the output r is not positive.
    """
    DOWN: tl.constexpr = (KH - 1) * DH // SH + 1
    ACROSS: tl.constexpr = (KW - 1) * DW // SW + 1
    gs = ()
    places = ()
    for t in tl.static_range(DOWN * ACROSS):
        row = (c * OH - t // ACROSS) * OW
        ok = windows[t] & live
        if offsets is None:
            g = tl.load(grad + row + to, mask=ok, other=0).to(tl.float32)
        else:  # where there is no window, its place is no input's
            g = tl.load(grad + row + to - t % ACROSS, mask=ok).to(tl.float32)
            place = tl.load(offsets + row + to - t % ACROSS, mask=ok, other=255).to(tl.int32)
            places = places + (place,)  # noqa: RUF005
        if RELU:
            g = tl.where(tl.load(r + row + to - t % ACROSS, mask=ok, other=0).to(tl.float32) <= 0, 0.0, g)
        gs = gs + (g,)  # noqa: RUF005
    if offsets is None:
        sums = gs
    else:
        sums = ()
        for q in tl.static_range(SH * SW):
            sum = tl.zeros(to.shape, tl.float32)
            for t in tl.static_range(DOWN * ACROSS):
                sum = routed(
                    sum, gs[t], places[t], q // SW + t // ACROSS * SH, q % SW + t % ACROSS * SW, KH, KW, DH, DW
                )
            sums = sums + (sum,)  # noqa: RUF005
    return sums


@triton.jit
def backward_kernel(
    grad, r, bias, offsets, grad_x, sums, total, C, H, W, OH, OW, GC, CHUNK,
    RELU: tl.constexpr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, EXACT: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The gradient at x from that at y = pool(LRN(r)), r = max(x + bias, 0), where any stage may be missing.

    With g the gradient at the LRN's output, gathered from the windows with their maximum there:
    dr[i] = g[i] d[i]^-beta - 2 alpha beta/size r[i] sum of g[j] r[j] d[j]^-beta / d[j], over the j whose
    window of channels holds i; 0 where r[i] <= 0. BETA 0: no LRN, and r is the output y.

    A lane owns SH x SW inputs, into which the same windows reach: no scatter. total is their number.
    sums: [programs, C] float32, each program's share of the bias gradient.
    """
    BEFORE: tl.constexpr = SIZE // 2
    AFTER: tl.constexpr = (SIZE - 1) // 2
    DOWN: tl.constexpr = (KH - 1) * DH // SH + 1
    ACROSS: tl.constexpr = (KW - 1) * DW // SW + 1
    i = tl.program_id(0) * B + tl.arange(0, B)
    mine = i < total
    i = tl.minimum(i, total - 1)
    down, across = (H + PH + SH - 1) // SH, (W + PW + SW - 1) // SW
    rest, b = i // across, i % across
    n, a = rest // down, rest % down
    h, w = a * SH - PH, b * SW - PW
    at = (n * C * H + h) * W + w
    to = (n * C * OH + a) * OW + b
    inputs = ()
    for q in tl.static_range(SH * SW):
        y, x = h + q // SW, w + q % SW
        inputs = inputs + (mine & (y >= 0) & (y < H) & (x >= 0) & (x < W),)  # noqa: RUF005
    windows = ()
    for t in tl.static_range(DOWN * ACROSS):
        y, x = a - t // ACROSS, b - t % ACROSS
        windows = windows + ((y >= 0) & (y < OH) & (x >= 0) & (x < OW),)  # noqa: RUF005
    begin, end, first, last = chunk(GC, CHUNK)
    zero = tl.zeros([B], tl.float32)
    past = ()  # of each input: r of SIZE - 1 channels, as many terms of the sum, and g d^-beta of BEFORE
    for q in tl.static_range(SH * SW):
        before = ()
        zeros = ()
        for s in tl.static_range(1 - SIZE, 0):
            j = first + s
            live = (j >= begin) & (j < end)
            v = tl.load(r + (j * H + q // SW) * W + at + q % SW, mask=inputs[q] & live, other=0)
            before = before + (biased(v, channel_bias(bias, j, live), RELU),)  # noqa: RUF005
            zeros = zeros + (zero,)  # noqa: RUF005
        past = past + ((before, zeros, zeros[:BEFORE]),)  # noqa: RUF005
    c = first - (SIZE - 1)
    while c < last:
        for _ in tl.static_range(UNROLL):
            m, j = c + BEFORE, c + (SIZE - 1)
            g = given(
                grad, r, offsets, m, (m >= begin) & (m < end), to, windows, OH, OW,
                RELU and BETA == 0, KH, KW, SH, SW, DH, DW,
            )  # fmt: skip
            loaded = ()
            if BETA != 0:
                add = channel_bias(bias, j, j < end)
                for q in tl.static_range(SH * SW):
                    row = r + (j * H + q // SW) * W + at
                    v = tl.load(row + q % SW, mask=inputs[q] & (j < end), other=0)
                    loaded = loaded + (v,)  # noqa: RUF005
            keep = (c >= first) & (c < last)
            sum = zero
            moved = ()
            for q in tl.static_range(SH * SW):
                dr = g[q]
                if BETA != 0:
                    window = past[q][0] + (biased(loaded[q], add, RELU),)  # noqa: RUF005
                    p, inverse = fast_power(denominator(window, SIZE, ALPHA, K), BETA, EXACT)
                    passed = past[q][2] + (g[q] * p,)  # noqa: RUF005
                    terms = past[q][1] + (g[q] * p * window[BEFORE] * inverse,)  # noqa: RUF005
                    seen = terms[0]
                    for s in tl.static_range(1, SIZE):
                        seen += terms[s]
                    dr = passed[0] - 2 * ALPHA * BETA / SIZE * window[0] * seen
                    if RELU:
                        dr = tl.where(window[0] <= 0, 0.0, dr)
                    moved = moved + ((window[1:], terms[1:], passed[1:]),)  # noqa: RUF005
                row = grad_x + (c * H + q // SW) * W + at
                tl.store(row + q % SW, rounded(dr, grad_x.dtype.element_ty), mask=inputs[q] & keep)
                sum += dr  # 0 outside the map, where no window has its maximum
            if sums is not None:
                sum = tl.sum(tl.where(mine, sum, 0.0), 0)
                tl.store(sums + tl.program_id(0) * C + c, sum, mask=keep)
            if BETA != 0:
                past = moved
            c += 1


PROGRAMS = 2048  # one-warp programs: 16 on each multiprocessor of an H100; fewer blocks share out the channels
LEAST_CHUNK = 8  # channels, beside a halo of SIZE - 1 or, backward, twice that
INTERPRETED_LANES = 1024  # where each operation on a block costs as much as on a single value
PIXEL = MaxPool(1)


def takes(x: Tensor, stages: Stages, *others: Tensor | None) -> bool:
    """Whether these kernels can run the stages on x (N, C, H, W), with the other tensors of the call."""
    dense = all(t is None or (t.is_contiguous() and t.numel() < 2**31 - 2**20) for t in (x, *others))
    lrn, pool = stages.lrn, stages.pool
    return (
        dense
        and x.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and (
            lrn is None
            or (lrn.size <= 5 and lrn.beta in (0.5, 0.75, 1.0) and lrn.k > 1e-30 and lrn.alpha >= 0)
        )
        and (pool is None or (max(pool.pairs[0]) <= 5 and max(pool.pairs[1]) <= 3))
    )


def lanes(x: Tensor) -> int:
    """Of a warp."""
    return torch.cuda.get_device_properties(x.device).warp_size if x.is_cuda else INTERPRETED_LANES


def walk(blocks: int, channels: int, groups: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid of programs that walk down the channels, and what they are told of these."""
    group = channels // groups
    chunks = min(triton.cdiv(PROGRAMS, blocks * groups), triton.cdiv(group, LEAST_CHUNK))
    size = triton.cdiv(triton.cdiv(group, chunks), UNROLL.value) * UNROLL.value
    return (blocks, groups * triton.cdiv(group, size)), {"GC": group, "CHUNK": size, "num_warps": 1}


def norm(lrn: LRN | None, x: Tensor) -> dict[str, Any]:
    size, alpha, beta, k = (lrn.size, lrn.alpha, lrn.beta, lrn.k) if lrn else (1, 0.0, 0.0, 1.0)
    return {
        "SIZE": size, "ALPHA": float(alpha), "BETA": float(beta), "K": float(k),
        "EXACT": x.dtype == torch.float32, "enable_fp_fusion": True,
    }  # fmt: skip


def window(pool: MaxPool | None) -> dict[str, int]:
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = (pool or PIXEL).pairs
    return {"KH": kh, "KW": kw, "SH": sh, "SW": sw, "PH": ph, "PW": pw, "DH": dh, "DW": dw}


def leaves_the_map(x: Tensor, y: Tensor, pool: MaxPool) -> bool:
    """Whether a window has a place outside of x (N, C, H, W)."""
    _, stride, padding, _ = pool.pairs
    return any(
        p > 0 or (out - 1) * s + extent > size
        for out, s, p, extent, size in zip(
            y.shape[2:], stride, padding, pool.extent, x.shape[2:], strict=True
        )
    )


def forward(
    x: Tensor, bias: Tensor | None, stages: Stages, y: Tensor, r: Tensor | None, offsets: Tensor | None
) -> None:
    """Fills y, and r and offsets unless None, from x (N, C, H, W) and bias (C,)."""
    lrn, pool = stages.lrn, stages.pool
    with on_device(x):
        if lrn is None and pool is None:
            _relu(x, bias, stages.relu, y)
        elif lrn is None or pool is None or stages.pool_first:
            _forward(x, bias, stages, y, r, offsets)
        elif pool.pairs == ((3, 3), (2, 2), (0, 0), (1, 1)) and not leaves_the_map(x, y, pool):
            if r is not None and x.shape[2] % 2 == 0:  # no window reaches the last row
                _relu(x, bias, stages.relu, r)
                r = None
            _lrn_pool(x, bias, stages, y, r, offsets)
        else:
            o = torch.empty_like(x)
            _forward(x, bias, Stages(stages.relu, lrn), o, r, None)
            _forward(o, None, Stages(False, None, pool), y, None, offsets)


def _relu(x: Tensor, bias: Tensor | None, relu: bool, y: Tensor) -> None:
    n, c, h, w = x.shape
    vector, each, block = 16 // x.element_size(), min(n, 4), 4 * lanes(x)
    if h * w < vector or c * h * w % vector:
        vector = 1
    grid = triton.cdiv(c * h * w // vector, block), triton.cdiv(n, each)
    relu_kernel[grid](
        x, bias, y, n, c, h * w, RELU=relu, V=vector, EACH=each, B=block, num_warps=4, enable_fp_fusion=True
    )


def _maps(t: Tensor, pool: MaxPool | None) -> tuple[int, int]:
    """Rows and columns; one row where there is no pooling, whose values may then be loaded as vectors."""
    return (t.shape[2], t.shape[3]) if pool else (1, t.shape[2] * t.shape[3])


def _forward(
    x: Tensor, bias: Tensor | None, stages: Stages, y: Tensor, r: Tensor | None, offsets: Tensor | None
) -> None:
    pool, (n, c) = stages.pool, x.shape[:2]
    size, out = _maps(x, pool), _maps(y, pool)
    total, block = n * out[0] * out[1], lanes(x) if pool else 4 * lanes(x)
    grid, channels = walk(triton.cdiv(total, block), c, stages.lrn.groups if stages.lrn else 1)
    forward_kernel[grid](
        x, bias, y, r, offsets, total, c, *size, *out, RELU=stages.relu, B=block,
        CHECK=pool is not None and leaves_the_map(x, y, pool),
        **window(pool), **norm(stages.lrn, x), **channels,
    )  # fmt: skip


def _lrn_pool(
    x: Tensor, bias: Tensor | None, stages: Stages, y: Tensor, r: Tensor | None, offsets: Tensor | None
) -> None:
    assert stages.lrn is not None
    n, c, h, w = x.shape
    oh, ow = y.shape[2:]
    strip = min(oh, 2 if r is not None else 3)  # more rows, more registers
    total, block = n * triton.cdiv(oh, strip) * triton.cdiv(w, 2), lanes(x)
    grid, channels = walk(triton.cdiv(total, block - 1), c, stages.lrn.groups)
    lrn_pool_kernel[grid](
        x, bias, y, r, offsets, total, c, h, w, oh, ow, RELU=stages.relu, STRIP=strip, B=block,
        **norm(stages.lrn, x), **channels,
    )  # fmt: skip


def backward(
    grad_y: Tensor,
    r: Tensor | None,
    bias: Tensor | None,
    offsets: Tensor | None,
    stages: Stages,
    grad_x: Tensor,
    need_bias: bool,
) -> Tensor | None:
    """Fills grad_x; returns the bias gradient (C,) in float32, if needed.

    r: what :meth:`Stages.residual` names. bias: where r is the stages' input and the LRN's is to be made from
    both.
    """
    lrn, pool, apart = stages.lrn, stages.pool, Stages(False, None, stages.pool)
    with on_device(grad_x):
        if lrn and pool and stages.pool_first:
            grad = torch.empty_like(grad_y)
            _backward(grad_y, r, None, None, Stages(stages.relu, lrn), grad, False)
            return _backward(grad, None, None, offsets, apart, grad_x, need_bias)
        if lrn and pool and not _few(pool):
            grad = torch.empty_like(grad_x)
            _backward(grad_y, None, None, offsets, apart, grad, False)
            return _backward(grad, r, bias, None, Stages(stages.relu, lrn), grad_x, need_bias)
        return _backward(grad_y, r, bias, offsets, stages, grad_x, need_bias)


def _few(pool: MaxPool) -> bool:
    """Whether inputs and windows of a lane are few enough for an LRN's registers beside them."""
    (sh, sw), (rows, columns) = pool.pairs[1], pool.extent
    return sh * sw <= 4 and ((rows - 1) // sh + 1) * ((columns - 1) // sw + 1) <= 4


def _backward(
    grad_y: Tensor,
    r: Tensor | None,
    bias: Tensor | None,
    offsets: Tensor | None,
    stages: Stages,
    grad_x: Tensor,
    need_bias: bool,
) -> Tensor | None:
    pool, (n, c) = stages.pool, grad_x.shape[:2]
    (h, w), out = _maps(grad_x, pool), _maps(grad_y, pool)
    (sh, sw), (ph, pw) = (pool or PIXEL).pairs[1:3]
    total = n * triton.cdiv(h + ph, sh) * triton.cdiv(w + pw, sw)
    block = lanes(grad_x) if pool else 4 * lanes(grad_x)
    blocks = triton.cdiv(total, block)
    grid, channels = walk(blocks, c, stages.lrn.groups if stages.lrn else 1)
    sums = torch.empty(blocks, c, device=grad_x.device) if need_bias else None
    backward_kernel[grid](
        grad_y, r, bias, offsets, grad_x, sums, total, c, h, w, *out, RELU=stages.relu, B=block,
        **window(pool), **norm(stages.lrn, grad_x), **channels,
    )  # fmt: skip
    return None if sums is None else sums.sum(0)
