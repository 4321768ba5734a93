"""Bias, ReLU, LRN and max pooling of contiguous NCHW tensors: which stages the kernels take, and launches.

What AlexNet's takes is counted in docs/triton_resources.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...stages import LRN, MaxPool, Stages
from .._launch import ceil_div, on_device
from .planes_kernels import UNROLL, backward_kernel, forward_kernel, lrn_pool_kernel, relu_kernel
from .rules import leaves_the_map, takes_lrn, warp_size

# Channels are split to make so many programs of a warp: over 16 on each multiprocessor of an H100. With more,
# halos of channels grow, and with them the instructions.
PROGRAMS, INTERPRETED_PROGRAMS = 3072, 1
LEAST_CHUNK = 8  # channels, beside a halo of SIZE - 1, or of twice that in backward
EACH_LANE = 4  # pixels without pooling; loaded as a vector where Triton knows H W to be divisible by 16
INTERPRETED_LANES = 1024  # the interpreter's time is per operation, whatever the size of the block
PIXEL = MaxPool(1)


def takes(x: Tensor, stages: Stages, backward: bool = False) -> bool:
    """Returns whether these kernels take x, (N, C, H, W), or for backward its gradient."""
    lrn, pool = stages.lrn, stages.pool
    return (
        x.dtype != torch.float64
        and x.is_contiguous()
        and max(x.shape[:2]) < 2**16  # of a grid's second axis
        and x.numel() < 2**31 - 2**20
        and (lrn is None or takes_lrn(lrn, x.dtype))
        and (pool is None or _takes_pool(pool))
    )


def _takes_pool(pool: MaxPool) -> bool:
    """Returns whether windows and strides are small, and every window has a place inside the map."""
    kernel, stride, padding, dilation = pool.pairs
    return max(kernel) <= 5 and max(stride) <= 3 and (max(dilation) == 1 or max(padding) == 0)


def _walk(x: Tensor, blocks: int, lrn: LRN | None) -> tuple[tuple[int, int], dict[str, int]]:
    """Returns the grid of programs that walk down the channels, and the kernels' arguments for it."""
    groups = lrn.groups if lrn else 1
    group = x.shape[1] // groups
    programs = INTERPRETED_PROGRAMS if x.is_cpu else PROGRAMS
    chunks = min(ceil_div(programs, blocks * groups), ceil_div(group, LEAST_CHUNK))
    chunk = ceil_div(ceil_div(group, chunks), UNROLL.value) * UNROLL.value
    return (blocks, groups * ceil_div(group, chunk)), {"group": group, "CHUNK": chunk, "num_warps": 1}


def _constants(x: Tensor, stages: Stages) -> dict[str, Any]:
    lrn, single = stages.lrn, x.dtype == torch.float32
    norm = (
        (lrn.size, lrn.alpha / lrn.size, float(lrn.beta), float(lrn.k), single)
        if lrn
        else (1, 0.0, 0.0, 1.0, single)
    )
    return {"RELU": bool(stages.relu), "NORM": norm}


def _places(t: Tensor, pool: MaxPool | None) -> tuple[int, int]:
    """Returns (H, W); without pooling as a single row, so that vectors may cross the ends of rows."""
    return (t.shape[2], t.shape[3]) if pool else (1, t.shape[2] * t.shape[3])


def _lanes(x: Tensor, pool: MaxPool | None) -> dict[str, Any]:
    """Returns the lanes of a program and the constants of the pooling."""
    return {
        "B": warp_size(x, INTERPRETED_LANES) * (1 if pool else EACH_LANE),
        "POOL": sum((pool or PIXEL).pairs, ()),
    }


def forward(
    x: Tensor, bias: Tensor | None, stages: Stages, y: Tensor, r: Tensor | None, argmax: Tensor | None
) -> None:
    """Fills y, and r and argmax unless None, from x (N, C, H, W) and bias (C,)."""
    lrn, pool = stages.lrn, stages.pool
    with on_device(x):
        if lrn is None and pool is None:
            _relu(x, bias, stages.relu, y)
        elif lrn is None or pool is None or stages.pool_first:
            _forward(x, bias, stages, y, r, argmax)
        elif pool.pairs == ((3, 3), (2, 2), (0, 0), (1, 1)) and not leaves_the_map(
            pool, x.shape[2:], y.shape[2:]
        ):
            if r is not None and x.shape[2] % 2 == 0:  # whose last row no window holds
                _relu(x, bias, stages.relu, r)
                r = None
            _lrn_pool(x, bias, stages, y, r, argmax)
        else:
            o = torch.empty_like(x)
            _forward(x, bias, Stages(stages.relu, lrn), o, r, None)
            _forward(o, None, Stages(False, None, pool), y, None, argmax)


def _relu(x: Tensor, bias: Tensor | None, relu: bool, y: Tensor) -> None:
    n, c, h, w = x.shape
    vector, each, block = 16 // x.element_size(), min(n, 4), 4 * warp_size(x, INTERPRETED_LANES)
    if h * w < vector or c * h * w % vector:
        vector = 1
    grid = ceil_div(c * h * w // vector, block), ceil_div(n, each)
    relu_kernel[grid](
        x, bias, y, n, c, h * w, RELU=bool(relu), V=vector, EACH=each, B=block,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def _forward(
    x: Tensor, bias: Tensor | None, stages: Stages, y: Tensor, r: Tensor | None, argmax: Tensor | None
) -> None:
    pool, (n, c) = stages.pool, x.shape[:2]
    out, lanes = _places(y, pool), _lanes(x, pool)
    total = n * out[0] * out[1]
    grid, channels = _walk(x, ceil_div(total, lanes["B"]), stages.lrn)
    forward_kernel[grid](
        x, bias, y, r, argmax, total, c, _places(x, pool), out,
        CHECK=pool is not None and leaves_the_map(pool, x.shape[2:], y.shape[2:]),
        **channels, **lanes, **_constants(x, stages), enable_fp_fusion=False,
    )  # fmt: skip


def _lrn_pool(
    x: Tensor, bias: Tensor | None, stages: Stages, y: Tensor, r: Tensor | None, argmax: Tensor | None
) -> None:
    (n, c, _, w), rows, block = x.shape, y.shape[2], warp_size(x, INTERPRETED_LANES)
    strip = min(rows, 3 if r is None else 2)  # 3 with r: 12 warps a multiprocessor
    total = n * ceil_div(rows, strip) * ceil_div(w, 2)
    grid, channels = _walk(x, ceil_div(total, block - 1), stages.lrn)
    lrn_pool_kernel[grid](
        x, bias, y, r, argmax, total, c, tuple(x.shape[2:]), tuple(y.shape[2:]), STRIP=strip, B=block,
        **channels, **_constants(x, stages), enable_fp_fusion=False,
    )  # fmt: skip


def backward(
    grad_y: Tensor,
    r: Tensor | None,
    bias: Tensor | None,
    argmax: Tensor | None,
    stages: Stages,
    grad_x: Tensor,
    need_bias: bool,
) -> Tensor | None:
    """Fills grad_x; returns the bias gradient (C,) in float32, or None.

    r: the tensor that :meth:`Stages.saved_name` names. bias: given where r is the stages' input; both make
    the LRN's input again.
    """
    lrn, pool, apart = stages.lrn, stages.pool, Stages(False, None, stages.pool)
    with on_device(grad_x):
        if lrn and pool and stages.pool_first:
            grad = torch.empty_like(grad_y)
            _backward(grad_y, r, None, None, Stages(stages.relu, lrn), grad, False)
            return _backward(grad, None, None, argmax, apart, grad_x, need_bias)
        if lrn and pool and not _few(pool):
            grad = torch.empty_like(grad_x)
            _backward(grad_y, None, None, argmax, apart, grad, False)
            return _backward(grad, r, bias, None, Stages(stages.relu, lrn), grad_x, need_bias)
        return _backward(grad_y, r, bias, argmax, stages, grad_x, need_bias)


def _few(pool: MaxPool) -> bool:
    """Returns whether a lane has so few inputs and windows that an LRN's state fits beside them."""
    (sh, sw), (rows, columns) = pool.pairs[1], pool.extent
    return sh * sw <= 4 and ((rows - 1) // sh + 1) * ((columns - 1) // sw + 1) <= 4


def _backward(
    grad_y: Tensor,
    r: Tensor | None,
    bias: Tensor | None,
    argmax: Tensor | None,
    stages: Stages,
    grad_x: Tensor,
    need_bias: bool,
) -> Tensor | None:
    pool, (n, c) = stages.pool, grad_x.shape[:2]
    (h, w), lanes = _places(grad_x, pool), _lanes(grad_x, pool)
    _, _, sh, sw, ph, pw, _, _ = lanes["POOL"]
    total = n * ceil_div(h + ph, sh) * ceil_div(w + pw, sw)
    blocks = ceil_div(total, lanes["B"])
    grid, channels = _walk(grad_x, blocks, stages.lrn)
    sums = torch.empty(blocks, c, device=grad_x.device) if need_bias else None
    backward_kernel[grid](
        grad_y, r, bias, argmax, grad_x, sums, total, c, (h, w), _places(grad_y, pool),
        **channels, **lanes, **_constants(grad_x, stages), enable_fp_fusion=True,
    )  # fmt: skip
    return None if sums is None else sums.sum(0)
