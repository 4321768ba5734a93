"""The computation at each channel, for a lane that walks down the channels of NCHW.

NORM is (size, alpha / size, beta, k, whether values are float32); beta 0 means no LRN.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .formulas import fast_power, rectified, rounded


@triton.jit
def channels(group, CHUNK):
    """Returns the bounds of this program's LRN group of channels, and of its chunk of the group."""
    chunks = (group + CHUNK - 1) // CHUNK
    i = tl.program_id(1)
    begin = i // chunks * group
    first = begin + i % chunks * CHUNK
    return begin, begin + group, first, tl.minimum(first + CHUNK, begin + group)


@triton.jit
def minus_zero(shape: tl.constexpr):
    """Returns -0.0: adding it changes nothing, so the compiler drops the addition, as it may not for 0.0."""
    return tl.full(shape, -0x80000000, tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def channel_bias(bias, c, live):
    """Returns bias[c], or 0 where channel c is not live or there is no bias."""
    b = minus_zero([1])
    if bias is not None:
        b = tl.load(bias + c, mask=live, other=0).to(tl.float32)
    return b


@triton.jit
def biased(a, b, RELU: tl.constexpr):
    """r = max(a + b, 0), in float32."""
    return rectified(a.to(tl.float32) + b, RELU)


@triton.jit
def kept(a, b, bias, RELU: tl.constexpr, TYPE: tl.constexpr):
    """The same in the precision of TYPE, as a kept r is."""
    r = biased(a, b, RELU)
    if bias is not None:
        r = rounded(r, TYPE).to(tl.float32)
    return r


@triton.jit
def powers(window, NORM: tl.constexpr):
    """d^-beta and 1/d; d = k + alpha/size sum of r^2 over a window of channels."""
    SIZE: tl.constexpr = NORM[0]
    total = window[0] * window[0]
    for s in tl.static_range(1, SIZE):
        total = tl.fma(window[s], window[s], total)
    return fast_power(tl.fma(total, NORM[1], NORM[3]), NORM[2], NORM[4])


@triton.jit
def normalised(window, NORM: tl.constexpr):
    """o = r d^-beta, or r."""
    o = window[NORM[0] // 2]
    if NORM[2] != 0:
        p, _ = powers(window, NORM)
        o *= p
    return o
