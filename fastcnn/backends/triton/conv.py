"""Convolution, bias, ReLU, LRN and max pooling in one kernel: only the pooled maps reach memory for good.

An implicit matrix product makes the convolution's outputs that a tile of pooled outputs needs, for all maps
of a group. They wait in scratch of the program's own, small enough for L2, where the LRN finds its
neighbouring channels and the pooling its windows, some rows at a time. They wait in x's type, as they would
between torch's layers: half the traffic in 16 bits, and the offsets see the ties that torch sees. A program
takes one tile after another into the same scratch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...stages import LRN, MaxPool, Stages, check
from .._convolution import conv_output_size
from .._launch import allocate, empty_on, on_device
from .formulas import inverse_power, larger
from .general import extent

SIDES = (8, 5, 4, 3, 2, 1)  # rows and columns of a tile of outputs: those of which most places are used
# Values of the convolution in a tile, 64 sums a thread. With more of them, more rows or larger parts
# registers spill, on which `make resources` fails; and a few with half as many, of which two programs would
# fit on a multiprocessor.
MOST_VALUES = 128 * 128
MOST_ROWS = 128
MOST_MAPS = 256  # of a group, in one tile
MOST_GROUPS = 65535
WARPS = 8
PART_VALUES = 2  # of a thread, normalised or pooled at a time
ROW_BYTES = 128  # of either factor of the product, taken at a time: a row of shared memory
INTERPRETED_PROGRAMS = 2  # few, so that tests come to reuse scratch


@triton.jit
def convolved(
    x, weight, strides, size, conv, n, oh, ow, ok, g, c,
    CIN: tl.constexpr, MAPS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of a[n, k, oh*s - p + i*d, ow*s - p + j*d] w[i, j, k, c] over k, i and j, in float32.

    One loop over all three, so that loads run ahead of the products.
    """
    total = tl.zeros((BM, BN), tl.float32)
    top, left = oh * conv[0] - conv[2], ow * conv[1] - conv[3]
    corner = x + n * strides[0] + (g * CIN * strides[1] + top * strides[2] + left * strides[3])
    for first in range(0, KH * KW * CIN, BK):
        at = first + tl.arange(0, BK)
        i, j, k = at // (KW * CIN) * conv[4], at // CIN % KW * conv[5], at % CIN
        h, w = top[:, None] + i[None, :], left[:, None] + j[None, :]
        inside = ok[:, None] & (h >= 0) & (h < size[0]) & (w >= 0) & (w < size[1])
        a = tl.load(
            corner[:, None] + (k * strides[1] + i * strides[2] + j * strides[3])[None, :],
            mask=inside & (at < KH * KW * CIN)[None, :],
            other=0,
        )
        b = tl.load(
            weight + at[:, None] * size[6] + (g * MAPS + c)[None, :],
            mask=(at < KH * KW * CIN)[:, None] & (c < MAPS)[None, :],
            other=0,
        )
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def normalised(
    scratch, rows, c,
    MAPS: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
    SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """o = r d^-beta, d = k + alpha/size * sum of r^2 over a window of channels; r: rows of scratch."""
    begin = c // GROUP * GROUP
    at = scratch + rows[:, None] * BN
    own = tl.load(at + c[None, :]).to(tl.float32)
    total = tl.zeros(own.shape, tl.float32)
    for o in range(SIZE):
        j = c + o - SIZE // 2
        ok = (j >= begin) & (j < begin + GROUP) & (j < MAPS)
        v = tl.load(at + j[None, :], mask=ok[None, :], other=0).to(tl.float32)
        total += v * v
    return own * inverse_power(K + ALPHA / SIZE * total, BETA, tl.float32)


@triton.jit
def pooled(
    scratch, size, top, left, i, j, c,
    RW: tl.constexpr, BN: tl.constexpr, PK: tl.constexpr, PS: tl.constexpr,
):  # fmt: skip
    """The maxima over the windows of outputs (i, j) of a tile, and where in them."""
    best = tl.full((i.shape[0], BN), float("-inf"), tl.float32)
    best_at = tl.full((i.shape[0], BN), -1, tl.int32)
    for a in range(PK):
        for b in range(PK):
            h, w = i * PS + a, j * PS + b
            ok = (top + h >= 0) & (top + h < size[2]) & (left + w >= 0) & (left + w < size[3]) & (h < RW)
            v = tl.load(scratch + (h * RW + w)[:, None] * BN + c[None, :], mask=ok[:, None], other=0)
            v = v.to(tl.float32)
            best, best_at = larger(v, a * PK + b, best, best_at, ok[:, None])
    return best, best_at


@triton.jit
def outputs(t, n, th, tw, g, c, size, strides, MAPS: tl.constexpr, T: tl.constexpr):
    """Where the t-th outputs of a tile are, in y and what is laid out like it, and which there are."""
    h, w = th * T + t // T, tw * T + t % T
    there = (t < T * T) & (h < size[4]) & (w < size[5])
    at = (h * strides[2] + w * strides[3])[:, None] + (g * MAPS + c)[None, :] * strides[1]
    return n * strides[0] + at, there[:, None] & (c < MAPS)[None, :]


@triton.jit
def block_kernel(
    x, weight, bias, y, r, offsets, scratch, strides, y_strides, size, conv, padding, tiles, parts,
    CIN: tl.constexpr, MAPS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    RELU: tl.constexpr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    GROUP: tl.constexpr, POOL_FIRST: tl.constexpr, PK: tl.constexpr, PS: tl.constexpr,
    T: tl.constexpr, RW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = the stages on the convolution of x.

    size: H, W of x; of the convolution; of y; all maps. tiles: in all; down and across an image. A tile has
    T x T outputs, of RW x RW of the convolution's, in so many parts of BR rows each. PK 1: no pooling;
    SIZE 0: no LRN. Loops to a bound that is no constant are written with while: the interpreter of Triton
    3.6 has no range to one with numpy 2.4. They compile to the same loops.
    """
    g = tl.program_id(1)
    slot = (g * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    first = scratch + slot * (2 * BM * BN)
    second = first + BM * BN
    m, part, c = tl.arange(0, BM), tl.arange(0, BR), tl.arange(0, BN)
    tile = tl.program_id(0)
    while tile < tiles[0]:
        n, th, tw = (tile // tiles[2] // tiles[1]).to(tl.int64), tile // tiles[2] % tiles[1], tile % tiles[2]
        top, left = th * T * PS - padding[0], tw * T * PS - padding[1]
        i, j = m // RW, m % RW
        oh, ow = top + i, left + j
        ok = (i < RW) & (oh >= 0) & (oh < size[2]) & (ow >= 0) & (ow < size[3])
        v = convolved(
            x, weight, strides, size, conv, n, oh, ow, ok, g, c, CIN, MAPS, KH, KW, BM, BN, BK, PRECISION
        )
        if bias is not None:
            v += tl.load(bias + g * MAPS + c, mask=c < MAPS, other=0).to(tl.float32)[None, :]
        if RELU:
            v = tl.where(v < 0, 0.0, v)
        tl.store(first + m[:, None] * BN + c[None, :], v)
        tl.debug_barrier()

        if PK > 1 and (POOL_FIRST or SIZE == 0):
            p = 0
            while p < parts[1]:
                t = p * BR + part
                at, there = outputs(t, n, th, tw, g, c, size, y_strides, MAPS, T)
                o, place = pooled(first, size, top, left, t // T, t % T, c, RW, BN, PK, PS)
                if offsets is not None:
                    tl.store(offsets + at, place, mask=there)
                if SIZE > 0:
                    tl.store(second + t[:, None] * BN + c[None, :], o)
                    if r is not None:
                        tl.store(r + at, o, mask=there)
                else:
                    tl.store(y + at, o, mask=there)
                p += 1
            tl.debug_barrier()
        if PK > 1 and SIZE > 0 and not POOL_FIRST:
            p = 0
            while p < parts[0]:
                t = p * BR + part
                o = normalised(first, t, c, MAPS, BN, GROUP, SIZE, ALPHA, BETA, K)
                tl.store(second + t[:, None] * BN + c[None, :], o)
                p += 1
            tl.debug_barrier()
            p = 0
            while p < parts[1]:
                t = p * BR + part
                at, there = outputs(t, n, th, tw, g, c, size, y_strides, MAPS, T)
                o, place = pooled(second, size, top, left, t // T, t % T, c, RW, BN, PK, PS)
                if offsets is not None:
                    tl.store(offsets + at, place, mask=there)
                tl.store(y + at, o, mask=there)
                p += 1
        elif PK == 1 or SIZE > 0:
            p = 0
            while p < parts[1]:
                t = p * BR + part
                at, there = outputs(t, n, th, tw, g, c, size, y_strides, MAPS, T)
                if SIZE > 0:
                    waiting = second if PK > 1 else first
                    o = normalised(waiting, t, c, MAPS, BN, GROUP, SIZE, ALPHA, BETA, K)
                else:
                    o = tl.load(first + t[:, None] * BN + c[None, :])
                tl.store(y + at, o, mask=there)
                p += 1
        tl.debug_barrier()
        tile += tl.num_programs(0)


def unsupported_reason(x: Tensor, weight: Tensor, conv: Sequence[Any], stages: Stages) -> str | None:
    """Why a block is left to a convolution of torch's, which also refuses what makes no sense."""
    stride, padding, dilation, groups = conv
    lrn, pool = stages.lrn, stages.pool
    pairs = len(stride) == len(dilation) == 2 and len(padding) in (2, 4)
    if not pairs or min(*stride, *dilation, groups) < 1 or min(padding) < 0:
        return f"stride, padding, dilation and groups are {conv}"
    if (
        x.dim() != 4
        or weight.dim() != 4
        or x.shape[1] != weight.shape[1] * groups
        or weight.shape[0] % groups
        or not (x.numel() and weight.numel())
        or x.device != weight.device
        or min(conv_output_size(x, weight, conv)) < 1
    ):
        return f"input {tuple(x.shape)} and weight {tuple(weight.shape)} don't fit, or are empty"
    kernel = sum((k - 1) * d * s for k, d, s in zip(weight.shape[2:], dilation, x.stride()[2:], strict=True))
    outputs = weight.shape[0] * math.prod(conv_output_size(x, weight, conv))
    values = max(extent(x[:1]) + kernel, outputs, weight.numel())
    if values >= 2**31:
        return f"an image's {values} values are too many for 32 bits"
    if groups > MOST_GROUPS:
        return f"{groups} groups are more than a grid's {MOST_GROUPS}"
    if x.dtype == torch.float64 or x.dtype != weight.dtype:
        return f"input is {x.dtype}, weight {weight.dtype}"
    if weight.shape[0] // groups > MOST_MAPS:
        return f"{weight.shape[0] // groups} maps in a group are more than {MOST_MAPS}"
    if lrn is not None and lrn.groups % groups:
        return f"LRN's {lrn.groups} groups reach across the convolution's {groups}"
    if pool is None:
        return None
    (kh, kw), stride, _, dilation = pool.pairs
    plain = kh == kw and kh in (2, 3) and stride == (2, 2) and dilation == (1, 1)
    return None if plain else f"pooling is {pool}, not 2x2 or 3x3 with stride 2"


def block_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: Sequence[Any],
    stages: Stages,
    save: bool,
    format: torch.memory_format,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x: (N, C, H, W); weight: (maps, C/groups, kh, kw); conv: stride, padding, dilation, groups.

    format: of y, and of what is kept.
    """
    rows, columns = conv_output_size(x, weight, conv)
    shape = (x.shape[0], weight.shape[0], rows, columns)
    check(x.new_empty(0, *shape[1:]), bias, stages)
    y, r, offsets = allocate(
        empty_on(x.device), shape, x.dtype, format, stages, save and stages.lrn is not None, save
    )
    if y.numel():
        _launch(x, weight, bias, conv, stages, shape, y, r, offsets)
    return y, r, offsets


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: Sequence[Any],
    stages: Stages,
    shape: Sequence[int],
    y: Tensor,
    r: Tensor | None,
    offsets: Tensor | None,
) -> None:
    values = arguments(x, weight, conv, stages, shape, y)
    programs = min(values["tiles"][0], max(1, _programs(x) // conv[3]))
    scratch = torch.empty(
        programs * conv[3] * 2 * values["BM"] * values["BN"], dtype=x.dtype, device=x.device
    )
    bias = bias if bias is None else bias.contiguous()
    packed = weight.permute(2, 3, 1, 0).contiguous()  # rows of maps
    if x.is_cpu:  # the interpreter multiplies bfloat16's bits as integers
        x, packed = x.float(), packed.float()
    with on_device(x):
        block_kernel[(programs, conv[3])](
            x, packed, bias, y, r, offsets, scratch,
            x.stride(), y.stride(), **values,
        )  # fmt: skip


def _allows_tf32() -> bool:
    """Of the two ways to say it, torch refuses to tell the older once the newer was used."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def _programs(x: Tensor) -> int:
    """That run at once, so that their scratch stays in L2."""
    if x.is_cpu:
        return INTERPRETED_PROGRAMS
    return 2 * torch.cuda.get_device_properties(x.device).multi_processor_count


def arguments(
    x: Tensor,
    weight: Tensor,
    conv: Sequence[Any],
    stages: Stages,
    shape: Sequence[int],
    y: Tensor,
    amd: bool = torch.version.hip is not None,
) -> dict[str, Any]:
    stride, padding, dilation, groups = conv
    lrn, pool = stages.lrn or LRN(), stages.pool or MaxPool(1)
    (width, _), (step, _), pool_padding, _ = pool.pairs
    maps, cin, kh, kw = weight.shape
    columns = max(16, triton.next_power_of_2(maps // groups))

    def rows(side: int) -> int:
        return max(16, triton.next_power_of_2(((side - 1) * step + width) ** 2))

    side = next(s for s in SIDES if rows(s) <= MOST_ROWS and rows(s) * columns <= MOST_VALUES)
    part = min(rows(side), max(1, WARPS * 32 * PART_VALUES // columns))
    down, across = (triton.cdiv(size, side) for size in y.shape[2:])
    tf32 = x.dtype == torch.float32 and not x.is_cpu and _allows_tf32()
    return {
        "size": (*x.shape[2:], *shape[2:], *y.shape[2:], maps),
        "conv": (*stride, *padding[:2], *dilation),
        "padding": tuple(pool_padding),
        "tiles": (x.shape[0] * down * across, down, across),
        "parts": (rows(side) // part, triton.cdiv(side**2, part)),
        "CIN": cin,
        "MAPS": maps // groups,
        "KH": kh,
        "KW": kw,
        "RELU": bool(stages.relu),
        "SIZE": lrn.size if stages.lrn else 0,
        "ALPHA": float(lrn.alpha),
        "BETA": float(lrn.beta),
        "K": float(lrn.k),
        "GROUP": maps // lrn.groups,
        "POOL_FIRST": stages.pool_first,
        "PK": width,
        "PS": step,
        "T": side,
        "RW": (side - 1) * step + width,
        "BM": rows(side),
        "BN": columns,
        "BR": part,
        "BK": min(ROW_BYTES // x.itemsize, max(16, triton.next_power_of_2(cin * kh * kw))),
        "PRECISION": "tf32" if tf32 else "ieee",
        "num_warps": WARPS,
        "num_stages": 2 if amd else 3,  # of 64 KB of shared memory, or of 100 KB and more
    }
