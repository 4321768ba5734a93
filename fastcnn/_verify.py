"""Checks a backend against the reference in float64, by the error rule, on given tensors.

The tests draw the tensors; ``python -m fastcnn check`` and ``auto`` on a GPU take :func:`example`'s.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from .backends import reference
from .stages import LRN, NO_PLACE, MaxPool, Stages, memory_format, saved_tensor
from .testing import TOLERANCES, assert_within_twice, plain_epilogue, require

Saved: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]  # y, r, argmax

# What published networks have behind a convolution. The CUDA kernels of each are compiled apart.
FAMILIES = {
    "relu": Stages(),
    "relu, lrn": Stages(lrn=LRN(5, 0.1, k=2.0, groups=2)),
    "relu, pool 2/2": Stages(pool=MaxPool(2)),
    "relu, pool 3/2": Stages(pool=MaxPool(3, 2)),
    "relu, lrn, pool 3/2": Stages(lrn=LRN(5, 0.1, k=2.0, groups=2), pool=MaxPool(3, 2)),
    "relu, pool 3/2, lrn": Stages(lrn=LRN(5, 0.1, k=2.0, groups=2), pool=MaxPool(3, 2), order="pool_lrn"),
}


def example(
    shape: tuple[int, int, int, int], dtype: torch.dtype, format: torch.memory_format, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns an input (N, C, H, W) and a bias (C,), always the same ones."""
    generator = torch.Generator().manual_seed(0)
    x, bias = (torch.randn(size, generator=generator) for size in (shape, shape[1:2]))
    return x.to(device, dtype).contiguous(memory_format=format), bias.to(device, dtype)


def verify(backend: Any, x: Tensor, bias: Tensor | None, stages: Stages) -> None:
    """Checks inference, training's forward, argmax and backward; each runs twice, for the same bits.

    Raises:
        AssertionError: what was wrong.
    """
    saved = check_forward(backend, x, bias, stages)
    generator = torch.Generator().manual_seed(1)
    # Not below 0, so that a channel's sum does not cancel and an error in it shows.
    grad = torch.rand(saved[0].shape, generator=generator).to(x).contiguous(memory_format=memory_format(x))
    check_backward(backend, x, bias, stages, saved, grad)
    if saved[2] is not None:
        check_argmax(x, bias, stages, saved[2])


def _wide(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.double()


def _require_same_bits(first: Tensor | None, second: Tensor | None, what: str) -> None:
    if first is not None and second is not None:
        require(torch.equal(first.nan_to_num(), second.nan_to_num()), f"{what} has other bits")


def check_forward(backend: Any, x: Tensor, bias: Tensor | None, stages: Stages) -> Saved:
    """Returns the results of a forward for training, once they are right and inference gives the same."""
    y, r, argmax = backend.epilogue_forward(x, bias, stages, save=True)
    exact, exact_r, _ = reference.epilogue_forward(x.double(), _wide(bias), stages, save=True)
    assert_within_twice(y, plain_epilogue(x, bias, stages), exact)
    require((r is None) == (exact_r is None), f"r is {r}, the reference's {exact_r}")
    if r is not None and exact_r is not None:
        before = Stages(stages.relu, None, stages.pool if stages.pool_first else None)
        assert_within_twice(r, plain_epilogue(x, bias, before), exact_r)
    require(y.is_contiguous(memory_format=memory_format(x)), "y is in another format than x")
    inference, *nothing = backend.epilogue_forward(x, bias, stages, save=False)
    _require_same_bits(inference, y, "inference")
    require(nothing == [None, None], "inference keeps tensors for backward")
    again = backend.epilogue_forward(x, bias, stages, save=True)
    for a, b, what in zip(again, (y, r, argmax), ("y", "r", "argmax"), strict=True):
        _require_same_bits(a, b, f"{what} of a second forward")
    return y, r, argmax


def check_backward(
    backend: Any, x: Tensor, bias: Tensor | None, stages: Stages, saved: Saved, grad: Tensor
) -> None:
    """Checks backward with the forward's own r and argmax, so that near-ties in a window don't matter."""
    y, r, argmax = saved
    kept = saved_tensor(stages.saved_name(bias is not None), x, y, r)
    size = list(x.shape)
    rest = (stages, size, memory_format(x), True)
    grad_x, grad_bias = backend.epilogue_backward(grad, kept, argmax, *rest)
    plain_x, plain_bias = reference.epilogue_backward(grad, kept, argmax, *rest)
    exact_x, exact_bias = reference.epilogue_backward(grad.double(), _wide(kept), argmax, *rest)
    summed = _terms(grad, kept, argmax, size, stages)
    assert_within_twice(grad_x, plain_x, exact_x, summed)
    require(grad_x.is_contiguous(memory_format=memory_format(x)), "x's gradient is in another format")
    for a, b in zip(backend.epilogue_backward(grad, kept, argmax, *rest), (grad_x, grad_bias), strict=True):
        _require_same_bits(a, b, "a second backward")
    if stages.lrn_first and bias is not None:  # as in a block on a GPU, from the convolution's output
        own = x.clone(memory_format=memory_format(x))
        sources = (own, bias), (reference.lrn_input(own, bias, stages), None)
        found = [backend.epilogue_backward(grad, r, argmax, *rest, b) for r, b in sources]
        for a, b in zip(*found, strict=True):
            _require_same_bits(a, b, "backward from the stages' input")
    # A sum's rounding is judged against the size of what is summed.
    unit = TOLERANCES[x.dtype][0] if x.dtype == torch.float64 else torch.finfo(x.dtype).eps
    slack = unit * summed.sum((0, 2, 3))
    assert exact_bias is not None and plain_bias is not None
    error, plain_error = ((b.double() - exact_bias).abs() for b in (grad_bias, plain_bias))
    wrong = ~(error <= 2 * plain_error.max() + slack)  # of NaN, too
    require(
        not wrong.any(),
        f"the bias gradient is off by {error.max():.3g}, plain torch's by {plain_error.max():.3g}",
    )


def _terms(
    grad: Tensor, kept: Tensor | None, argmax: Tensor | None, size: list[int], stages: Stages
) -> Tensor:
    """Returns the magnitude of the terms whose sum or difference the gradient is."""
    largest = grad.double().abs()
    if stages.pool and argmax is not None:
        largest = reference._pool_backward(largest, argmax, size, stages.pool)
    if stages.lrn is None or kept is None:
        return largest
    return largest * reference._denominator(kept.double(), stages.lrn).pow(-stages.lrn.beta).max()


def check_argmax(x: Tensor, bias: Tensor | None, stages: Stages, argmax: Tensor) -> None:
    """Checks that each argmax is a place of the window's maximum, to rounding, unless the ReLU cut that."""
    assert stages.pool
    before = Stages(stages.relu, None if stages.pool_first else stages.lrn)
    full = plain_epilogue(x.double(), _wide(bias), before)
    pooled, exact = reference._pool(full, stages.pool, stages.relu and stages.pool_first)
    moved = argmax != exact
    if not moved.any():
        return
    require(torch.equal(argmax == NO_PLACE, exact == NO_PLACE), "another maximum is cut by the ReLU")
    unit = torch.ones_like(pooled)
    at = reference._pool_backward(torch.where(moved, unit, 0), argmax, list(x.shape), stages.pool)
    # A window whose place differs must hold a value as large there: compare sums over moved windows.
    off = ((full * at).sum() - pooled[moved].sum()).abs()
    eps = 8 * torch.finfo(torch.float32 if x.dtype != torch.float64 else torch.float64).eps
    if off <= eps * pooled[moved].abs().sum() + 1e-30:
        return
    # Where values are compared in x's dtype, as torch's layers do, those that round alike are equals.
    held, most = _values_at(full, argmax, stages.pool)[moved], pooled[moved]
    alike = (held + eps * held.abs()).to(x.dtype) >= (most - eps * most.abs()).to(x.dtype)
    require(x.dtype.itemsize == 2 and alike.all(), "an argmax names a place that is no maximum")


def _values_at(full: Tensor, argmax: Tensor, pool: MaxPool) -> Tensor:
    """Returns the value at each window's place; NaN for a place outside of full (N, C, H, W)."""
    (_, kw), (sh, sw), (ph, pw), (dh, dw) = pool.pairs
    places, (rows, columns) = argmax.long(), full.shape[2:]
    row = torch.arange(argmax.shape[2], device=full.device)[:, None] * sh - ph + places // kw * dh
    column = torch.arange(argmax.shape[3], device=full.device) * sw - pw + places % kw * dw
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    index = torch.where(inside, row * columns + column, 0).flatten(2)
    return full.flatten(2).gather(2, index).view(argmax.shape).where(inside, torch.nan)
