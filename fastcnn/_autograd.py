"""Autograd's part of a block: what forward saves and what backward computes, for ops and bypassing calls.

A second derivative goes through :mod:`.backends.reference`, which torch can differentiate again, and comes
back through r, which is therefore an output as well. An epilogue has no weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import backends
from ._dispatch import can_bypass
from .backends import reference
from .backends._block import BlockGradients, block_backward, convolution_gradients
from .backends._convolution import Gradients, conv_output_size, convolution_backward
from .backends._launch import Results
from .stages import Conv, Stages, memory_format, saved_tensor

_fastcnn = torch.ops.fastcnn


class How(NamedTuple):
    """The arguments of a call that are not tensors."""

    stages: Stages
    conv: Conv = ()
    recompute: bool = False
    backend: str = "auto"


def none_for_empty(t: Tensor | None) -> Tensor | None:
    """Returns None for an empty tensor, which stands for it among an op's results."""
    return t if t is not None and t.dim() > 1 else None


def save(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, how: How, results: Results) -> None:
    """Saves what :func:`gradients` needs; of results that it is to recompute, nothing."""
    y, r, argmax = results
    if weight is None:
        ctx.saved_name = how.stages.saved_name(bias is not None)
        ctx.size, ctx.format = x.shape, memory_format(x)
        ctx.save_for_backward(None, None, None, saved_tensor(ctx.saved_name, x, y, r), argmax)
    else:
        ctx.saved_name, ctx.format = how.stages.saved_name_in_block(x.device.type), memory_format(y)
        kept = (None, None) if how.recompute else (_saved_of_block(ctx, y, r), argmax)
        needs_bias = how.recompute or ctx.saved_name == "input"
        ctx.save_for_backward(x, weight, bias if needs_bias else None, *kept)
    ctx.how = how
    ctx.set_materialize_grads(False)


def _saved_of_block(ctx: Any, y: Tensor, r: Tensor | None) -> Tensor | None:
    """Returns what backward needs. In a block the stages' input, the convolution's output, is r."""
    return saved_tensor(ctx.saved_name, r, y, r)


def gradients(
    ctx: Any, grad_y: Tensor | None, grad_r: Tensor | None = None, _: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of x, weight and bias, and None for each other argument."""
    needed = ctx.needs_input_grad
    return *_gradients(ctx, needed[:3], grad_y, none_for_empty(grad_r)), *(None for _ in needed[3:])


def epilogue_gradients(
    ctx: Any, grad_y: Tensor | None, grad_r: Tensor | None = None, _: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Returns the same for the op that has no weight."""
    x, bias, *others = ctx.needs_input_grad
    grad_x, _, grad_bias = _gradients(ctx, (x, False, bias), grad_y, none_for_empty(grad_r))
    return grad_x, grad_bias, *(None for _ in others)


def _gradients(
    ctx: Any, needed: Sequence[bool], grad_y: Tensor | None, grad_r: Tensor | None
) -> BlockGradients:
    x, weight, bias, saved, argmax = ctx.saved_tensors
    stages, conv, recompute, name = ctx.how
    if recompute:
        with backends.use_backend(name):
            y, r, argmax = _fastcnn.conv2d_block_forward(x, weight, bias, *conv, *stages.flat(), True, False)
        saved, argmax, grad_r = none_for_empty(_saved_of_block(ctx, y, r)), none_for_empty(argmax), None
    bias = bias if ctx.saved_name == "input" else None
    backend = _backend(name, grad_y, x, weight, saved, argmax)
    if weight is not None and grad_y is not None and grad_r is None:
        given = (saved, argmax, bias, conv, stages, ctx.format, needed)
        return block_backward(backend, grad_y, x, weight, *given)
    size = (
        ctx.size if weight is None else (*x.shape[:1], *weight.shape[:1], *conv_output_size(x, weight, conv))
    )
    rest = (size, ctx.format, needed[2])
    parts: list[Gradients] = []
    if grad_y is not None:
        parts.append(backend.epilogue_backward(grad_y, saved, argmax, stages, *rest, bias))
    if grad_r is not None and ctx.saved_name == "input":
        parts.append((grad_r, None))
    elif grad_r is not None:
        before = Stages(stages.relu, None, stages.pool if stages.pool_first else None)
        parts.append(reference.epilogue_backward(grad_r, saved, argmax, before, *rest))
    grad_a, grad_bias = (_total(grads) for grads in zip(*parts, strict=True)) if parts else (None, None)
    if weight is None:
        return grad_a, None, grad_bias
    return *convolution_gradients(backend, grad_a, x, weight, conv, needed), grad_bias


def _total(grads: Sequence[Tensor | None]) -> Tensor | None:
    there = [g for g in grads if g is not None]
    return sum(there[1:], there[0]) if there else None


def _backend(name: str, *tensors: Tensor | None) -> ModuleType | _Dispatched:
    """Returns where backward runs; with create_graph it is what torch can differentiate again."""
    if torch.is_grad_enabled():
        return reference
    return backends.module(name) if name != "auto" and can_bypass(*tensors) else _Dispatched(name)


class _Dispatched(NamedTuple):
    """A backend's backward by way of the ops, for whoever listens to PyTorch's dispatcher."""

    backend: str

    def epilogue_backward(
        self,
        grad_y: Tensor,
        r: Tensor | None,
        argmax: Tensor | None,
        stages: Stages,
        size: Sequence[int],
        format: torch.memory_format,
        need_bias: bool,
        bias: Tensor | None,
    ) -> Gradients:
        rest = (size, format == torch.channels_last, need_bias, bias)
        with backends.use_backend(self.backend):
            grad_x, grad_bias = _fastcnn.epilogue_backward(grad_y, r, argmax, *stages.flat(), *rest)
        return grad_x, grad_bias if need_bias else None

    @staticmethod
    def convolution_backward(
        grad: Tensor, x: Tensor, weight: Tensor, conv: Conv, needed: Sequence[bool]
    ) -> Gradients:
        if not x.is_cuda:  # there is one way
            return convolution_backward(grad, x, weight, conv, needed)
        grad_x, grad_weight = _fastcnn.convolution_backward(grad, x, weight, *conv, needed)
        return none_for_empty(grad_x), none_for_empty(grad_weight)
