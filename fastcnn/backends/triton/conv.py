"""Convolution, bias, ReLU, LRN and max pooling in one kernel: only the pooled maps reach memory for good.

An implicit matrix product makes the convolution's outputs that a tile of pooled outputs needs, for all maps
of a group. They wait in scratch of the program's own, small enough for L2, where the LRN finds its
neighbouring channels and the pooling its windows, some vectors at a time. They wait in x's type, as they
would between torch's layers: half the traffic in 16 bits, and the argmax see the ties that torch sees. A
program takes one tile after another into the same scratch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...stages import LRN, MaxPool, Stages, check
from .._convolution import applies, conv_output_size
from .._launch import allocate, ceil_div, empty_on, on_device
from .._space_to_depth import space_to_depth
from .formulas import rectified, rounded, uncut
from .general import extent
from .lanes import Spec, V, load, store
from .rules import leaves_the_map, takes_lrn
from .scratch import convolved, normalised, outputs, pooled, rearrange

TILE_SIDES = (8, 5, 4, 3, 2, 1)  # rows and columns of a tile of outputs: those of which most places are used
MOST_ROWS = 128  # of the product, in one tile
MOST_MAPS = 256  # of a group, in one tile
MOST_GROUPS = 65535
MOST_PATCH = 1 << 15  # values of a tile's part of x that are rearranged for it: they share L1 with scratch
WARPS = 8
# Vectors of a block. In LRN two a lane, so that one's loads hide behind the other's work; in float32, and in
# pooling, two would take more than 128 registers.
LRN_BLOCK, POOL_BLOCK = 512, 256
RUN_BLOCK = 1024  # runs of pixels copied at a time in space to depth
INTERPRETED_PROGRAMS = 2  # few, so that tests come to reuse scratch


class Limits(NamedTuple):
    """The largest sizes with which a kernel spills no registers."""

    values: int  # of the convolution in a tile
    bytes: int  # of either factor's rows, taken at a time
    stages: int  # how many of these are loaded ahead


def limits(target: str) -> Limits:
    """Returns those of a GPU, by its name for the compiler.

    RDNA has no matrix instruction for float32, and keeps the factors of the others in registers.
    """
    if target.startswith("gfx1"):
        return Limits(64 * 128, 64, 2)
    return Limits(128 * 128, 128, 2 if target.startswith("gfx") else 3)


def registers(target: str, dtype: torch.dtype, precision: str, lrn: bool) -> int | None:
    """Returns for how many to ask, so that two programs fit on a multiprocessor; None: as the compiler likes.

    Elsewhere 128 are too few, and spill: on sm_80 the factors take registers, too.
    """
    half = dtype.itemsize == 2
    wgmma = target == "sm_90" and (half or precision == "tf32")
    return 128 if wgmma or (target == "sm_100" and half and lrn) else None


@triton.jit
def block_kernel(
    x, weight, bias, y, r, argmax, scratch, strides, y_strides, size, conv, padding, tiles, parts,
    spec: tl.constexpr, CIN: tl.constexpr, MAPS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    PADDED: tl.constexpr, SQUARE: tl.constexpr, RELU: tl.constexpr, GROUP: tl.constexpr,
    POOL_FIRST: tl.constexpr, PK: tl.constexpr, PS: tl.constexpr, LEAVES: tl.constexpr,
    T: tl.constexpr, RW: tl.constexpr, SLOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, BL: tl.constexpr, BP: tl.constexpr, BR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = the stages on the convolution of x.

    weight: (maps, KH, KW, channels). SQUARE: pixels of x whose squares the kernel takes as channels, 1: it
    takes x as it is. size: H, W of x; of the convolution; of y. conv: stride, padding, dilation. tiles: in
    all; down and across an image. A tile has T x T outputs, of RW x RW of the convolution's. parts: of BL
    vectors in these; of BP in those; of BR runs in what x has of them. SLOT: values of scratch for a program.
    spec: of scratch, and its LRN, whose groups have GROUP channels. PK 1: no pooling. Loops to a bound that
    is no constant are written with while: the interpreter of Triton 3.6 has no range to one with numpy 2.4.
    They compile to the same loops.
    """
    CV: tl.constexpr = spec.vectors
    AREA: tl.constexpr = BM * CV * 8
    DEPTH: tl.constexpr = CIN * SQUARE * SQUARE
    COLUMNS: tl.constexpr = RW + KW - 1
    LRN_FIRST: tl.constexpr = spec.size > 0 and PK > 1 and not POOL_FIRST
    LRN_LAST: tl.constexpr = spec.size > 0 and not LRN_FIRST
    g = tl.program_id(1)
    first = scratch + (g * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * SLOT
    second, patch = first + AREA, first + 2 * AREA
    weight += g * (MAPS * KH * KW * DEPTH)
    m, c = tl.arange(0, BM), tl.arange(0, BN)
    tile = tl.program_id(0)
    while tile < tiles[0]:
        n, th, tw = (tile // tiles[2] // tiles[1]).to(tl.int64), tile // tiles[2] % tiles[1], tile % tiles[2]
        image = x + n * strides[0]
        top, left = th * T * PS - padding[0], tw * T * PS - padding[1]
        i, j = m // RW, m % RW
        oh, ow = top + i, left + j
        ok = (i < RW) & (oh >= 0) & (oh < size[2]) & (ow >= 0) & (ow < size[3])
        v = tl.zeros((BM, BN), tl.float32)
        if bias is not None:
            v += tl.load(bias + g * MAPS + c, mask=c < MAPS, other=0).to(tl.float32)[None, :]
        if SQUARE > 1:
            h, w = top * SQUARE - conv[2], left * SQUARE - conv[3]
            rearrange(image, patch, strides, size, h, w, parts[2], CIN, SQUARE, RW + KH - 1, COLUMNS, BR)
            tl.debug_barrier()
            v = convolved(
                patch + (i * COLUMNS + j) * DEPTH, weight, v, (0, 1, COLUMNS * DEPTH, DEPTH), size, (1, 1),
                i, j, ok, c, DEPTH, MAPS, KH, KW, False, BK, PRECISION,
            )  # fmt: skip
        else:
            h, w = oh * conv[0] - conv[2], ow * conv[1] - conv[3]
            corner = image + (g * CIN * strides[1] + h * strides[2] + w * strides[3])
            v = convolved(
                corner, weight, v, strides, size, (conv[4], conv[5]), h, w, ok, c,
                CIN, MAPS, KH, KW, PADDED, BK, PRECISION,
            )  # fmt: skip
        v = rectified(v, RELU)
        if MAPS % 8 != 0:
            v = tl.where((c < MAPS)[None, :], v, 0.0)
        at = m[:, None] * (CV * 8) + c[None, :]
        tl.store(first + at, rounded(v, scratch.dtype.element_ty), mask=(c < CV * 8)[None, :])
        tl.debug_barrier()

        if LRN_FIRST:
            p = 0
            while p < parts[0]:
                t = tl.minimum(p * BL + tl.arange(0, BL), RW * RW * CV - 1)
                o = normalised(first, t, spec, MAPS, GROUP)
                store(second, t * V, t, t >= 0, o, spec)
                p += 1
            tl.debug_barrier()
        if PK > 1:
            p = 0
            while p < parts[1]:
                t = tl.minimum(p * BP + tl.arange(0, BP), T * T * CV - 1)
                waiting = second if LRN_FIRST else first
                o, place = pooled(
                    waiting, t, top, left, size, spec, T, RW, PK, PS, LEAVES, argmax is not None
                )
                to, there = outputs(t, n, th, tw, g, size, y_strides, MAPS, CV, T)
                if argmax is not None:
                    place = uncut(place, o, RELU and not LRN_FIRST)
                    tl.store(argmax + to, place.to(tl.uint8), mask=there)
                if r is not None:
                    tl.store(r + to, rounded(o, r.dtype.element_ty), mask=there)
                if LRN_LAST:
                    store(second, t * V, t, t >= 0, o, spec)
                else:
                    tl.store(y + to, rounded(o, y.dtype.element_ty), mask=there)
                p += 1
            tl.debug_barrier()
        if PK == 1 or LRN_LAST:
            p = 0
            while p < parts[1]:
                t = tl.minimum(p * BP + tl.arange(0, BP), T * T * CV - 1)
                waiting = second if PK > 1 else first
                if LRN_LAST:
                    o = normalised(waiting, t, spec, MAPS, GROUP)
                else:
                    o = load(waiting, t * V, t, t >= 0, 0, spec, 0, V)
                to, there = outputs(t, n, th, tw, g, size, y_strides, MAPS, CV, T)
                tl.store(y + to, rounded(o, y.dtype.element_ty), mask=there)
                p += 1
            tl.debug_barrier()
        tile += tl.num_programs(0)


def unsupported_reason(x: Tensor, weight: Tensor, conv: Sequence[Any], stages: Stages) -> str | None:
    """Returns why a block is left to torch's convolution, which also refuses invalid arguments."""
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
    empty = empty_on(x.device)
    y, r, argmax = allocate(empty, shape, x.dtype, format, stages, save, stages.makes_r())
    if y.numel():
        _launch(x, weight, bias, conv, stages, shape, y, r, argmax)
    return y, r, argmax


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: Sequence[Any],
    stages: Stages,
    shape: Sequence[int],
    y: Tensor,
    r: Tensor | None,
    argmax: Tensor | None,
) -> None:
    with on_device(x):
        values = arguments(x, weight, conv, stages, shape, y, _target(x))
        if values["SQUARE"] > 1:
            weight = space_to_depth(weight, values["SQUARE"])
        # No copy in channels_last. None is kept from call to call: a write through weight.data, or a graph's
        # replay, would not be noticed.
        weight = weight.permute(0, 2, 3, 1).contiguous()
        bias = bias if bias is None else bias.contiguous()
        programs = min(values["tiles"][0], max(1, _programs(x) // conv[3]))
        scratch = torch.empty(programs * conv[3] * values["SLOT"], dtype=x.dtype, device=x.device)
        block_kernel[(programs, conv[3])](
            x, weight, bias, y, r, argmax, scratch,
            x.stride(), y.stride(), **values,
        )  # fmt: skip


def _spec(x: Tensor, lrn: LRN | None, maps: int, group: int) -> Spec:
    """Returns how scratch is laid out and normalised; a group of 0 vectors: not by vectors."""
    norm, vectors = lrn or LRN(), ceil_div(maps, 8)
    whole = group == maps or group % 8 == 0
    fast = whole and takes_lrn(norm, x.dtype)
    return Spec(
        relu=False,
        size=norm.size if lrn else 0,
        alpha=norm.alpha / norm.size,
        beta=norm.beta,
        k=norm.k,
        group=ceil_div(group, 8) if fast else 0,
        vectors=vectors,
        whole=True,
        channels=8 * vectors,
        part=16 // x.itemsize,
        x=8 * vectors,
    )


def _square(x: Tensor, weight: Tensor, conv: Sequence[Any], width: int) -> tuple[int, int]:
    """Returns the side of the squares of pixels that become channels, or 1, and how many values a tile has.

    width: of a tile, of the convolution's outputs.
    """
    side = conv[0][0] if applies(x, weight, conv) else 1
    rows, columns = (width + ceil_div(k, side) - 1 for k in weight.shape[2:])
    values = rows * columns * side**2 * weight.shape[1]
    return (side, values) if side > 1 and values <= MOST_PATCH else (1, 0)


def _block(size: int) -> int:
    """Returns the least power of two that holds so many and that a product of matrices takes."""
    return max(16, 1 << (size - 1).bit_length())


def _allows_tf32() -> bool:
    """Of the two ways to say it, torch refuses to tell the older once the newer was used."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def _target(x: Tensor) -> str:
    """Returns what the current GPU is called: "sm_90", "gfx942"; "cpu" in the interpreter."""
    if x.is_cpu:
        return "cpu"
    target = triton.runtime.driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


def _programs(x: Tensor) -> int:
    """That run at once, so that their scratch stays in L2."""
    if not x.is_cuda:
        return INTERPRETED_PROGRAMS
    return 2 * torch.cuda.get_device_properties(x.device).multi_processor_count


def arguments(
    x: Tensor,
    weight: Tensor,
    conv: Sequence[Any],
    stages: Stages,
    shape: Sequence[int],
    y: Tensor,
    target: str,
) -> dict[str, Any]:
    """Returns what the kernel is told besides tensors and their strides, and how it is to be compiled."""
    has_tf32 = target.startswith("sm_") or target == "gfx942"
    precision = "tf32" if x.dtype == torch.float32 and has_tf32 and _allows_tf32() else "ieee"
    most, few = limits(target), registers(target, x.dtype, precision, stages.lrn is not None)
    stride, padding, dilation, groups = conv
    lrn, pool = stages.lrn or LRN(), stages.pool or MaxPool(1)
    (width, _), (step, _), pool_padding, _ = pool.pairs
    maps, cin, kh, kw = weight.shape
    columns = _block(maps // groups)
    vectors = ceil_div(maps // groups, 8)

    def reach(side: int) -> int:
        return (side - 1) * step + width

    def rows(side: int) -> int:
        return _block(reach(side) ** 2)

    side = next(s for s in TILE_SIDES if rows(s) <= MOST_ROWS and rows(s) * columns <= most.values)
    square, patch = _square(x, weight, conv, reach(side))
    kh, kw = ceil_div(kh, square), ceil_div(kw, square)
    aligned = x.stride(1) == 1 and cin % 8 == 0 and all(s % 16 == 0 for s in x.stride()[2:])
    vectors_of_x = square > 1 or aligned
    depth = max(16, (most.bytes if vectors_of_x else most.bytes // 2) // x.itemsize)
    down, across = (ceil_div(size, side) for size in y.shape[2:])
    lrn_block = LRN_BLOCK if x.itemsize < 4 else POOL_BLOCK
    return {
        "size": (*x.shape[2:], *shape[2:], *y.shape[2:]),
        "conv": (*stride, *padding[:2], *dilation),
        "padding": tuple(pool_padding),
        "tiles": (x.shape[0] * down * across, down, across),
        "parts": (
            ceil_div(reach(side) ** 2 * vectors, lrn_block),
            ceil_div(side**2 * vectors, POOL_BLOCK),
            ceil_div(patch, square * RUN_BLOCK),
        ),
        "spec": _spec(x, stages.lrn, maps // groups, maps // lrn.groups),
        "CIN": cin,
        "MAPS": maps // groups,
        "KH": kh,
        "KW": kw,
        "PADDED": any(padding),
        "SQUARE": square,
        "RELU": bool(stages.relu),
        "GROUP": maps // lrn.groups,
        "POOL_FIRST": stages.pool_first,
        "PK": width,
        "PS": step,
        "LEAVES": leaves_the_map(pool, shape[2:], y.shape[2:]),
        "T": side,
        "RW": reach(side),
        "SLOT": 8 * (2 * rows(side) * vectors + ceil_div(patch, 8)),
        "BM": rows(side),
        "BN": columns,
        "BK": min(depth, _block(cin * square**2 * kh * kw)),
        "BL": lrn_block,
        "BP": POOL_BLOCK,
        "BR": RUN_BLOCK,
        "PRECISION": precision,
        "num_warps": WARPS,
        # Two, so that two programs' tiles of 64 x 256 fit in 227 KB.
        "num_stages": 2 if few and columns > 128 else most.stages,
        "enable_fp_fusion": True,  # which Triton 3.10 leaves out unless asked
        **({"maxnreg": few} if few and vectors_of_x else {}),
    }
