"""Kernels for contiguous NCHW tensors; planes.py launches them.

A lane owns pixels of a map and walks down the channels. It keeps the channels of an LRN window in registers,
so that it loads each value once. Loops over channels are unrolled: moving the window by a channel then only
renames registers. The state of a lane is a tuple.

Constants: NORM is as in walk.py; POOL is (height, width) of the window, stride, padding and dilation. size
and out are (H, W) of x and y.
"""
# Tuples grow, and Triton does not unpack them.
# mypy: disable-error-code="assignment, var-annotated"
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl

from .formulas import NAN, flipped, larger, nothing, rounded, sign_at_infinity, uncut
from .walk import biased, channel_bias, channels, kept, minus_zero, normalised, powers

UNROLL = tl.constexpr(4)  # the usual LRN's size - 1: after so many channels, the registers are the same again
OUTSIDE = tl.constexpr(float("-inf"))


@triton.jit
def relu_kernel(
    x, bias, y, N, C, HW, RELU: tl.constexpr, V: tl.constexpr, EACH: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    """y = max(x + bias, 0). A lane has V values of at most two channels (V <= HW), in EACH images."""
    i = tl.program_id(0) * B + tl.arange(0, B)
    per_image = C * HW // V
    e = tl.arange(0, V)[None, :]
    add = minus_zero([1, 1])
    if bias is not None:
        c = V * i // HW
        add = tl.load(bias + c, mask=c < C)[:, None].to(tl.float32)
        if V > 1:
            following = tl.load(bias + c + 1, mask=c + 1 < C)[:, None].to(tl.float32)
            add = tl.where(V * i[:, None] + e < (c[:, None] + 1) * HW, add, following)
    n = tl.program_id(1) * EACH
    loaded = ()
    for s in tl.static_range(EACH):
        at = V * ((n + s) * per_image + i[:, None]) + e
        loaded = loaded + (tl.load(x + at, mask=(i < per_image)[:, None] & (n + s < N)),)
    for s in tl.static_range(EACH):
        at = V * ((n + s) * per_image + i[:, None]) + e
        r = rounded(biased(loaded[s], add, RELU), y.dtype.element_ty)
        tl.store(y + at, r, mask=(i < per_image)[:, None] & (n + s < N))


@triton.jit
def window_max(
    x, at, mine, bias, c, live, size, h, w, RELU: tl.constexpr, POOL: tl.constexpr, CHECK: tl.constexpr,
    ARGMAX: tl.constexpr,
):  # fmt: skip
    """Returns the maximum of max(x + bias, 0) over the window that starts at (h, w), and its place there.

    CHECK: some windows leave the map. Without ARGMAX, 16-bit values are compared before bias and ReLU, which
    keep their order; a bias of inf makes NaN of -inf, so signs are changed there, to find the least value.
    It is 0 where a lane is not mine or channel c not live.
    """
    TYPE: tl.constexpr = x.dtype.element_ty
    EARLY: tl.constexpr = not ARGMAX and TYPE.primitive_bitwidth == 16
    HEIGHT: tl.constexpr = POOL[0]
    WIDTH: tl.constexpr = POOL[1]
    best, place = nothing(at.shape, tl.float32)
    b = channel_bias(bias, c, live)
    sign = sign_at_infinity(b)
    for i in tl.static_range(HEIGHT):
        row = x + (c * size[0] + i * POOL[6]) * size[1] + at
        for j in tl.static_range(WIDTH):
            inside = mine
            if CHECK:
                inside &= (h + i * POOL[6] >= 0) & (h + i * POOL[6] < size[0])
                inside &= (w + j * POOL[7] >= 0) & (w + j * POOL[7] < size[1])
            a = tl.load(row + j * POOL[7], mask=inside & live, other=0)
            if EARLY and bias is not None:
                a = flipped(a, sign)
            v = a.to(tl.float32) if EARLY else biased(a, b, RELU)
            if CHECK:
                v = tl.where(inside, v, OUTSIDE)
            if ARGMAX:
                best, place = larger(v, i * WIDTH + j, best, place, inside if CHECK else True)
            else:
                best = v if i + j == 0 else tl.maximum(best, v, propagate_nan=NAN)
    if EARLY:
        if bias is not None:
            best = flipped(best.to(TYPE), sign)
        best = biased(best, b, RELU)
    place = uncut(place, best, ARGMAX and RELU)
    if CHECK:
        best = tl.where(mine & live, best, 0.0)
    return best, place


@triton.jit
def forward_kernel(
    x, bias, y, r, argmax, total, C, size, out, group, CHUNK, RELU: tl.constexpr, NORM: tl.constexpr,
    POOL: tl.constexpr, CHECK: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """y = LRN(r), r = max over a window of max(x + bias, 0); a window of one place: no pooling.

    A lane owns pixels of the output; total = N OH OW.
    """
    ARGMAX: tl.constexpr = argmax is not None
    AFTER: tl.constexpr = NORM[0] - 1 - NORM[0] // 2
    i = tl.program_id(0) * B + tl.arange(0, B)
    mine = i < total
    row, ow = i // out[1], i % out[1]
    n, oh = row // out[0], row % out[0]
    h, w = oh * POOL[2] - POOL[4], ow * POOL[3] - POOL[5]
    at = (n * C * size[0] + h) * size[1] + w
    to = (n * C * out[0] + oh) * out[1] + ow
    begin, end, first, last = channels(group, CHUNK)
    past = ()
    for s in tl.static_range(1 - NORM[0], 0):
        j = first + AFTER + s
        v, place = window_max(
            x, at, mine, bias, j, (j >= begin) & (j < end), size, h, w, RELU, POOL, CHECK, ARGMAX
        )
        past = past + (v,)
        if ARGMAX:
            keep = mine & (j >= first) & (j < last)
            tl.store(argmax + j * out[0] * out[1] + to, place.to(tl.uint8), mask=keep)
    c = first
    while c < last:
        loaded = ()  # of all UNROLL channels before the stores, which later loads could not pass
        for s in tl.static_range(UNROLL):
            j = c + s + AFTER
            both = window_max(x, at, mine, bias, j, j < end, size, h, w, RELU, POOL, CHECK, ARGMAX)
            loaded = loaded + (both,)
        for s in tl.static_range(UNROLL):
            j = c + s + AFTER
            if ARGMAX:
                stored = loaded[s][1].to(tl.uint8)
                tl.store(argmax + j * out[0] * out[1] + to, stored, mask=mine & (j < last))
            window = past + (loaded[s][0],)
            past = window[1:]
            here = (c + s) * out[0] * out[1] + to
            keep = mine & (c + s < last)
            if r is not None:
                tl.store(r + here, rounded(window[NORM[0] // 2], r.dtype.element_ty), mask=keep)
            tl.store(y + here, rounded(normalised(window, NORM), y.dtype.element_ty), mask=keep)
        c += UNROLL


@triton.jit
def max_of_three(a, b, c, STEP: tl.constexpr, ARGMAX: tl.constexpr):
    """Returns the maximum of three (value, place), whose places are STEP apart, and its place."""
    best, place = a
    if ARGMAX:
        best, place = larger(b[0], b[1] + STEP, best, place, True)
        best, place = larger(c[0], c[1] + 2 * STEP, best, place, True)
    else:
        best = tl.maximum(tl.maximum(best, b[0], propagate_nan=NAN), c[0], propagate_nan=NAN)
    return best, place


@triton.jit
def two_columns(x, at, right, W, live, ROWS: tl.constexpr):
    """Returns two neighbouring values of each of ROWS rows, row by row; 0 where the channel is not live."""
    loaded = ()
    for q in tl.static_range(ROWS):
        row = x + q * W + at
        loaded = loaded + (tl.load(row, mask=live, other=0), tl.load(row + right, mask=live, other=0))
    return loaded


@triton.jit
def lrn_pool_kernel(
    x, bias, y, r, argmax, total, C, size, out, group, CHUNK, RELU: tl.constexpr, NORM: tl.constexpr,
    STRIP: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """y = max over 3x3 windows two apart, all inside the map, of LRN(r), r = max(x + bias, 0).

    A lane owns two columns of 2 STRIP + 1 rows. The third column of a window is the next lane's first, by a
    shuffle: a program is one warp of B lanes, the last of which stores nothing. The last strip of rows ends
    with the map; where it overlaps another, both store the same. total = N ceil(OH / STRIP) ceil(W / 2).
    """
    ARGMAX: tl.constexpr = argmax is not None
    AFTER: tl.constexpr = NORM[0] - 1 - NORM[0] // 2
    ROWS: tl.constexpr = 2 * STRIP + 1
    lane = tl.arange(0, B)
    neighbour = tl.minimum(lane + 1, B - 1)
    i = tl.program_id(0) * (B - 1) + lane
    mine = (lane < B - 1) & (i < total)
    i = tl.minimum(i, total - 1)
    pairs, strips = (size[1] + 1) // 2, (out[0] + STRIP - 1) // STRIP
    strip, ow = i // pairs, i % pairs
    n, oh = strip // strips, tl.minimum(strip % strips * STRIP, out[0] - STRIP)
    at = (n * C * size[0] + 2 * oh) * size[1] + 2 * ow
    right = tl.minimum(size[1] - 1 - 2 * ow, 1)  # 0 where an odd width ends
    to = (n * C * out[0] + oh) * out[1] + ow
    begin, end, first, last = channels(group, CHUNK)
    past = ()
    for _ in tl.static_range(2 * ROWS):
        past = past + ((),)
    for s in tl.static_range(1 - NORM[0], 0):
        j = first + AFTER + s
        live = (j >= begin) & (j < end)
        b = channel_bias(bias, j, live)
        loaded = two_columns(x + j * size[0] * size[1], at, right, size[1], live, ROWS)
        longer = ()
        for q in tl.static_range(2 * ROWS):
            longer = longer + (past[q] + (biased(loaded[q], b, RELU),),)
        past = longer
    c = first
    while c < last:
        for _ in tl.static_range(UNROLL):
            j = c + AFTER
            add = channel_bias(bias, j, j < end)
            ahead = two_columns(x + j * size[0] * size[1], at, right, size[1], j < end, ROWS)
            keep = mine & (c < last)
            o = ()
            moved = ()
            for q in tl.static_range(2 * ROWS):
                window = past[q] + (biased(ahead[q], add, RELU),)
                moved = moved + (window[1:],)
                o = o + (normalised(window, NORM),)
                if r is not None:
                    own = rounded(window[NORM[0] // 2], r.dtype.element_ty)
                    row = r + (c * size[0] + q // 2) * size[1] + at
                    shared = q // 2 == ROWS - 1  # the next strip's first row
                    kept = keep & (oh + STRIP == out[0]) if shared else keep
                    tl.store(row if q % 2 == 0 else row + right, own, mask=kept)
            rows = ()
            for q in tl.static_range(ROWS):
                third = tl.gather(o[2 * q], neighbour, 0)
                rows = rows + (max_of_three((o[2 * q], 0), (o[2 * q + 1], 0), (third, 0), 1, ARGMAX),)
            for q in tl.static_range(STRIP):
                best, place = max_of_three(rows[2 * q], rows[2 * q + 1], rows[2 * q + 2], 3, ARGMAX)
                here = (c * out[0] + q) * out[1] + to
                tl.store(y + here, rounded(best, y.dtype.element_ty), mask=keep & (ow < out[1]))
                if ARGMAX:
                    tl.store(argmax + here, place.to(tl.uint8), mask=keep & (ow < out[1]))
            past = moved
            c += 1


@triton.jit
def added(
    sum, g, place, DOWN: tl.constexpr, ACROSS: tl.constexpr, T: tl.constexpr, U: tl.constexpr,
    POOL: tl.constexpr,
):  # fmt: skip
    """Returns sum plus a window's g if its maximum was at the input DOWN and ACROSS in a lane's rectangle.

    The window starts T and U strides before the rectangle. The input may be none of its places.
    """
    i: tl.constexpr = DOWN + T * POOL[2]
    j: tl.constexpr = ACROSS + U * POOL[3]
    if i % POOL[6] == 0 and j % POOL[7] == 0 and i // POOL[6] < POOL[0] and j // POOL[7] < POOL[1]:
        sum += tl.where(place == i // POOL[6] * POOL[1] + j // POOL[7], g, 0.0)
    return sum


@triton.jit
def unpooled(grad, y, argmax, c, live, to, windows, out, MASKS: tl.constexpr, POOL: tl.constexpr):
    """Returns the gradients at a lane's inputs: the sums over windows with their maximum there.

    MASKS: without pooling, gradients are 0 where y <= 0.
    """
    ACROSS: tl.constexpr = (POOL[1] - 1) * POOL[7] // POOL[3] + 1
    loaded = ()
    places = ()
    for t in tl.static_range(len(windows)):
        row = (c * out[0] - t // ACROSS) * out[1]
        ok = live & (c < windows[t])
        g = tl.load(grad + to + row - t % ACROSS, mask=ok, other=0).to(tl.float32)
        if MASKS:
            g = tl.where(tl.load(y + to + row - t % ACROSS, mask=ok, other=0).to(tl.float32) <= 0, 0.0, g)
        loaded = loaded + (g,)
        if argmax is not None:  # any place does for a g of 0
            places = places + (tl.load(argmax + to + row - t % ACROSS, mask=ok).to(tl.int32),)
    gathered = ()
    for q in tl.static_range(POOL[2] * POOL[3]):
        if argmax is None:
            sum = loaded[q]
        else:
            sum = minus_zero(to.shape)
            for t in tl.static_range(len(windows)):
                sum = added(
                    sum, loaded[t], places[t], q // POOL[3], q % POOL[3], t // ACROSS, t % ACROSS, POOL
                )
        gathered = gathered + (sum,)
    return gathered


@triton.jit
def backward_kernel(
    grad, r, bias, argmax, grad_x, sums, total, C, size, out, group, CHUNK, RELU: tl.constexpr,
    NORM: tl.constexpr, POOL: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The gradient at x from that at y = pool(LRN(r)), r = max(x + bias, 0), where any stage may be missing.

    With g the gradient at the LRN's output, gathered from the windows with their maximum there:
    dr[i] = g[i] d[i]^-beta - 2 alpha beta/size r[i] sum of g[j] r[j] d[j]^-beta / d[j], over the j whose
    window of channels holds i; 0 where r[i] <= 0. Without LRN and pooling, r is y.

    A lane owns a rectangle of inputs as large as the stride, into which the same windows reach. total is the
    number of such rectangles. sums: [programs, C] float32, each program's share of the bias gradient.
    """
    SIZE: tl.constexpr = NORM[0]
    BEFORE: tl.constexpr = SIZE // 2
    ROWS: tl.constexpr = (POOL[0] - 1) * POOL[6] // POOL[2] + 1
    COLUMNS: tl.constexpr = (POOL[1] - 1) * POOL[7] // POOL[3] + 1
    INPUTS: tl.constexpr = POOL[2] * POOL[3]
    MASKS: tl.constexpr = RELU and NORM[2] == 0 and argmax is None
    i = tl.program_id(0) * B + tl.arange(0, B)
    mine = i < total
    across = (size[1] + POOL[5] + POOL[3] - 1) // POOL[3]
    down = (size[0] + POOL[4] + POOL[2] - 1) // POOL[2]
    row, ow = i // across, i % across
    n, oh = row // down, row % down
    h, w = oh * POOL[2] - POOL[4], ow * POOL[3] - POOL[5]
    at = (n * C * size[0] + h) * size[1] + w
    to = (n * C * out[0] + oh) * out[1] + ow
    begin, end, first, last = channels(group, CHUNK)
    # Channels are compared with integers: predicate registers are few.
    inputs = ()
    until = ()
    for q in tl.static_range(INPUTS):
        top, left = h + q // POOL[3], w + q % POOL[3]
        ok = mine & (top >= 0) & (top < size[0]) & (left >= 0) & (left < size[1])
        inputs = inputs + (ok,)
        until = until + (tl.where(ok, end, begin),)
    windows = ()
    for t in tl.static_range(ROWS * COLUMNS):
        top, left = oh - t // COLUMNS, ow - t % COLUMNS
        ok = mine & (top >= 0) & (top < out[0]) & (left >= 0) & (left < out[1])
        windows = windows + (tl.where(ok, end, begin),)
    zero = tl.zeros([B], tl.float32)
    past = ()  # of each input: r, the terms of the sum, and g d^-beta, of the channels before
    for q in tl.static_range(INPUTS):
        before = ()
        zeros = ()
        for s in tl.static_range(1 - SIZE, 0):
            j = first + s
            place = r + (j * size[0] + q // POOL[3]) * size[1] + at
            v = tl.load(place + q % POOL[3], mask=(j >= begin) & (j < until[q]), other=0)
            b = channel_bias(bias, j, (j >= begin) & (j < end))
            before = before + (kept(v, b, bias, RELU, grad_x.dtype.element_ty),)
            zeros = zeros + (zero,)
        past = past + ((before, zeros, zeros[:BEFORE]),)
    c = first - (SIZE - 1)
    while c < last:
        for _ in tl.static_range(UNROLL):
            m, j = c + BEFORE, c + (SIZE - 1)
            g = unpooled(grad, r, argmax, m, m >= begin, to, windows, out, MASKS, POOL)
            loaded = ()
            if NORM[2] != 0:
                add = channel_bias(bias, j, j < end)
                for q in tl.static_range(INPUTS):
                    place = r + at + (j * size[0] + q // POOL[3]) * size[1]
                    v = tl.load(place + q % POOL[3], mask=j < until[q], other=0)
                    loaded = loaded + (v,)
            keep = (c >= first) & (c < last)
            sum = minus_zero([B])
            moved = ()
            for q in tl.static_range(INPUTS):
                dr = g[q]
                if NORM[2] != 0:
                    own = kept(loaded[q], add, bias, RELU, grad_x.dtype.element_ty)
                    window = past[q][0] + (own,)
                    p, inverse = powers(window, NORM)
                    terms = past[q][1] + (g[q] * p * (window[BEFORE] * inverse),)
                    passed = past[q][2] + (g[q] * p,)
                    moved = moved + ((window[1:], terms[1:], passed[1:]),)
                    seen = terms[0]
                    for s in tl.static_range(1, SIZE):
                        seen += terms[s]
                    dr = tl.fma(-2 * NORM[1] * NORM[2] * window[0], seen, passed[0])
                    if RELU:
                        dr = tl.where(window[0] <= 0, 0.0, dr)
                place = grad_x + at + (c * size[0] + q // POOL[3]) * size[1]
                tl.store(place + q % POOL[3], rounded(dr, grad_x.dtype.element_ty), mask=inputs[q] & keep)
                sum += dr  # 0 outside the map, where no window has its maximum
            if sums is not None:
                tl.store(sums + tl.program_id(0) * C + c, tl.sum(sum, 0), mask=keep)
            if NORM[2] != 0:
                past = moved
            c += 1
