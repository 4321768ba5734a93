"""The specification: every stage in plain torch, on any device, differentiable any number of times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..stages import LRN, NO_PLACE, MaxPool, Stages, memory_format
from ._block import convolve_then
from ._launch import Results


def unsupported_reason(x: Tensor, stages: Stages) -> str | None:
    return None


def missing_reason() -> str | None:
    return None


def _acc(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _window_sum(x: Tensor, before: int, after: int, groups: int) -> Tensor:
    """Sums x (N, C, H, W) over channels c-before..c+after of c's group."""
    grouped = x.unflatten(1, (groups, x.shape[1] // groups))
    padded = F.pad(grouped, (0, 0, 0, 0, before, after))
    return padded.unfold(2, before + after + 1, 1).sum(-1).flatten(1, 2)


def _denominator(r: Tensor, lrn: LRN) -> Tensor:
    """Computes d = k + alpha/size * sum of r**2 over the window."""
    return lrn.k + lrn.alpha / lrn.size * _window_sum(r * r, lrn.before, lrn.after, lrn.groups)


def _normalise(r: Tensor, lrn: LRN) -> Tensor:
    """Computes o = r / d**beta."""
    return r / _denominator(r, lrn).pow(lrn.beta)


def _normalise_backward(g: Tensor, r: Tensor, lrn: LRN) -> Tensor:
    """dr[i] = g[i] d[i]^-b - (2 a b/n) r[i] sum(g[j] r[j] d[j]^(-b-1)), over the j whose window holds i."""
    d = _denominator(r, lrn)
    seen = _window_sum(g * r * d.pow(-lrn.beta - 1), lrn.after, lrn.before, lrn.groups)
    return g / d.pow(lrn.beta) - (2 * lrn.alpha * lrn.beta / lrn.size) * r * seen


def _pool(x: Tensor, pool: MaxPool, cuts: bool = False) -> tuple[Tensor, Tensor]:
    """Returns pooled values, and each one's argmax in its window (row-major), from torch's flat indices.

    cuts: there is none where a ReLU made x, and cut the maximum.
    """
    y, index = F.max_pool2d(x, *pool.pairs, pool.ceil_mode, return_indices=True)  # type: ignore[call-overload]
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = pool.pairs
    rows = torch.arange(y.shape[2], device=x.device) * sh - ph
    columns = torch.arange(y.shape[3], device=x.device) * sw - pw
    row, column = index // x.shape[3], index % x.shape[3]
    argmax = (row - rows.view(-1, 1)) // dh * kw + (column - columns) // dw
    seen = _sees(rows, x.shape[2], kh, dh).view(-1, 1) & _sees(columns, x.shape[3], kw, dw)
    if cuts:
        seen = seen & ~(y <= 0)  # a NaN lets its gradient pass
    return y, torch.where(seen, argmax, NO_PLACE).to(pool.argmax_dtype)


def _sees(starts: Tensor, size: int, kernel: int, dilation: int) -> Tensor:
    """Returns whether each window has a place inside; with padding and dilation one may have none."""
    at = starts.view(-1, 1) + torch.arange(kernel, device=starts.device) * dilation
    return ((at >= 0) & (at < size)).any(1)


def _pool_backward(g: Tensor, argmax: Tensor, size: Sequence[int], pool: MaxPool) -> Tensor:
    """Adds, for each place of the window in turn, its pooled gradients to the inputs that it covers."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = pool.pairs
    height = max(size[2] + 2 * ph, (g.shape[2] - 1) * sh + (kh - 1) * dh + 1)
    width = max(size[3] + 2 * pw, (g.shape[3] - 1) * sw + (kw - 1) * dw + 1)
    padded = g.new_zeros(size[0], size[1], height, width)
    for place in range(kh * kw):
        top, left = place // kw * dh, place % kw * dw
        rows = slice(top, top + (g.shape[2] - 1) * sh + 1, sh)
        columns = slice(left, left + (g.shape[3] - 1) * sw + 1, sw)
        padded[:, :, rows, columns] += torch.where(argmax == place, g, 0)
    return padded[:, :, ph : ph + size[2], pw : pw + size[3]]


def epilogue_forward(
    x: Tensor, bias: Tensor | None, stages: Stages, save: bool, keep_r: bool = True
) -> Results:
    format = memory_format(x)
    acc = _acc(x.dtype)
    v = x.to(acc)
    if bias is not None:
        v = v + bias.to(acc).view(1, -1, 1, 1)
    if stages.relu:
        v = v.relu()
    argmax = None
    if stages.pool and stages.pool_first:
        v, argmax = _pool(v, stages.pool, stages.relu)
    r = v
    if stages.lrn:
        v = _normalise(v, stages.lrn)
    if stages.pool and not stages.pool_first:
        v, argmax = _pool(v, stages.pool)

    def stored(t: Tensor) -> Tensor:
        return t.to(x.dtype).contiguous(memory_format=format)

    y = stored(v)
    if not save:
        return y, None, None
    keep = keep_r and stages.makes_r(bias is not None)
    if argmax is not None:
        argmax = argmax.contiguous(memory_format=format)
    return y, stored(r) if keep else None, argmax


def lrn_input(r: Tensor | None, bias: Tensor | None, stages: Stages) -> Tensor | None:
    """Computes max(r + bias, 0) of an r that is the stages' input; returns any other r as it is."""
    if r is None or not stages.lrn_first:
        return r
    v = r if bias is None else r + bias.view(-1, 1, 1)
    return v.relu() if stages.relu else v


def epilogue_backward(
    grad_y: Tensor,
    r: Tensor | None,
    argmax: Tensor | None,
    stages: Stages,
    size: Sequence[int],
    format: torch.memory_format,
    need_bias: bool,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Returns the gradients of the stages' input and, if ``need_bias``, of the bias.

    r: what :meth:`Stages.saved_name` names; size: the input's (N, C, H, W); format: its memory format.
    bias: (C,), where r is the stages' input and the LRN's is to be made from both.
    """
    acc = _acc(grad_y.dtype)
    g = grad_y.to(acc)
    r = lrn_input(r, bias, stages)
    saved = None if r is None else r.to(acc)
    if stages.pool and not stages.pool_first:
        assert argmax is not None
        g = _pool_backward(g, argmax, size, stages.pool)
    if stages.lrn:
        assert saved is not None
        g = _normalise_backward(g, saved, stages.lrn)
    if stages.relu and (stages.pool is None or not stages.pool_first):
        assert saved is not None
        g = torch.where(saved <= 0, 0, g)
    if stages.pool and stages.pool_first:
        assert argmax is not None
        g = _pool_backward(g, argmax, size, stages.pool)
    grad_bias = g.sum((0, 2, 3)).to(grad_y.dtype) if need_bias else None
    return g.to(grad_y.dtype).contiguous(memory_format=format), grad_bias


def conv_block_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: Sequence[Any], stages: Stages, save: bool
) -> Results:
    return convolve_then(epilogue_forward, x, weight, bias, conv, stages, save)


def epilogue(x: Tensor, bias: Tensor | None, stages: Stages) -> Tensor:
    """Computes the forward alone, as one differentiable composition of torch's own functions."""
    return epilogue_forward(x, bias, stages, save=False)[0]
