"""The formulas that the kernels share: ReLU, LRN's power, the larger of two values, and rounding.

Values are float32, or float64 where an input is; of any shape. Products and sums that are to be fused
say so (`tl.fma`), and in forward kernels the compiler fuses no others: it would not fuse the same ones in
inference and in training, whose bits then differed (float32 on an H200).
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

from ... import stages

NO_PLACE = tl.constexpr(stages.NO_PLACE)
NAN = tl.constexpr(tl.PropagateNan.ALL)
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def rectified(v, RELU: tl.constexpr):
    """r = max(v, 0) if RELU else v; a NaN stays one."""
    if RELU:
        v = tl.maximum(v, 0.0, propagate_nan=NAN)
    return v


@triton.jit
def inverse_power(d, BETA: tl.constexpr, ACC: tl.constexpr):
    """d^-beta by correctly rounded functions; for beta = 3/4, q sqrt(q) with q = 1/sqrt(d)."""
    if BETA != 1.0 and BETA != 0.75 and BETA != 0.5:
        p = tl.exp2(-BETA * tl.log2(d.to(tl.float64))).to(ACC)
    elif BETA == 1.0:
        p = 1.0 / d
    elif d.dtype == tl.float64:
        q = 1.0 / tl.sqrt(d)
        p = q * tl.sqrt(q) if BETA == 0.75 else q
    else:  # in float32 `/` and sqrt are approximate
        q = tl.div_rn(1.0, tl.sqrt_rn(d))
        p = q * tl.sqrt_rn(q) if BETA == 0.75 else q
    return p


@triton.jit
def fast_power(d, BETA: tl.constexpr, EXACT: tl.constexpr):
    """d^-beta and 1/d of normal d; for beta 1/2, 3/4 and 1 by q = d^-1/2 from the special function unit.

    Such values are right to 22 bits; EXACT, for float32, adds a step of Newton's method to each result. Other
    powers are right to 16 bits and more: their error grows with the logarithm.
    """
    q = tl.rsqrt(d)
    inverse = q * q
    if BETA == 0.75:
        p = q * tl.sqrt(q)
    elif BETA == 0.5 or BETA == 1.0:
        p = q
    else:
        p = tl.exp2(tl.log2(d) * -BETA)
    if EXACT:
        finite = d < float("inf")
        if BETA == 0.75:
            h = p * d * p  # d^-1/2, and h^2 d = 1
            p = tl.where(finite, tl.fma(-0.25 * p, tl.fma(h * h, d, -1.0), p), p)
        else:
            p = tl.where(finite, tl.fma(-0.5 * p, tl.fma(p * d, p, -1.0), p), p)
        inverse = tl.where(finite, tl.fma(-1.0 * inverse, tl.fma(inverse, d, -1.0), inverse), inverse)
    if BETA == 1.0:
        p = inverse
    return p, inverse


@triton.jit
def nothing(shape: tl.constexpr, dtype: tl.constexpr):
    """The maximum of no values, and its place."""
    return tl.full(shape, float("-inf"), dtype), tl.full(shape, NO_PLACE, tl.int32)


@triton.jit
def larger(v, at, best, best_at, inside):
    """The larger value and its place: the last NaN, else the first of equals; any beats `nothing`."""
    take = inside & ((best_at < 0) | (v > best) | (v != v))
    return tl.where(take, v, best), tl.where(take, at, best_at)


@triton.jit
def uncut(place, best, CUTS: tl.constexpr):
    """A maximum's place in its window; none where the ReLU just before cut the maximum, if there is one."""
    if CUTS:
        place = tl.where(best <= 0, NO_PLACE, place)
    return place


@triton.jit
def sign_at_infinity(b):
    """The sign bit of 16 where b is inf, else 0: `flipped`, a maximum finds -inf, whose sum with b is NaN."""
    return tl.where(b == float("inf"), tl.full(b.shape, -(2**15), tl.int16), tl.zeros(b.shape, tl.int16))


@triton.jit
def flipped(v, sign):
    """16-bit values with this sign bit changed."""
    return (v.to(tl.int16, bitcast=True) ^ sign).to(v.dtype, bitcast=True)


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """The value in dtype, rounded to nearest even. The interpreter's own conversion to bfloat16 cuts off."""
    if INTERPRETED and dtype == tl.bfloat16 and value.dtype == tl.float32:
        bits = value.to(tl.int32, bitcast=True)
        bits = tl.where(value != value, bits, bits + 0x7FFF + ((bits >> 16) & 1))
        value = (bits & -65536).to(tl.float32, bitcast=True)
    return value.to(dtype)
