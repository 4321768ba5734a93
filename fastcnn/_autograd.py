"""What backward does for an epilogue and a block, once for the ops and for calls that bypass the dispatcher.

:class:`Epilogue` and :class:`Block` run a backend by itself where only gradients are recorded. The ops
register the same functions (:mod:`._ops`). A second derivative goes through :mod:`.backends.reference`, which
torch can differentiate again, and comes back through r, which is therefore an output as well.
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
from .backends._block import block_backward, convolution_gradients
from .backends._convolution import Conv, Gradients, conv_output_size, convolution_backward
from .stages import Stages, memory_format, saved_tensor

_fastcnn = torch.ops.fastcnn


def none_for_empty(t: Tensor | None) -> Tensor | None:
    """Returns None for an empty tensor, which stands for it among an op's results."""
    return t if t is not None and t.dim() > 1 else None


class _Dispatched(NamedTuple):
    """A backend's backward by way of the ops, for whoever listens to PyTorch's dispatcher."""

    backend: str

    def epilogue_backward(
        self,
        grad_y: Tensor,
        r: Tensor | None,
        offsets: Tensor | None,
        stages: Stages,
        size: Sequence[int],
        format: torch.memory_format,
        need_bias: bool,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        last = format == torch.channels_last
        with backends.use_backend(self.backend):
            grad_x, grad_bias = _fastcnn.epilogue_backward(
                grad_y, r, offsets, *stages.flat(), size, last, need_bias, bias
            )
        return grad_x, grad_bias if need_bias else None

    @staticmethod
    def convolution_backward(
        grad: Tensor, x: Tensor, weight: Tensor, conv: Conv, needed: Sequence[bool]
    ) -> Gradients:
        if not x.is_cuda:  # there is one way
            return convolution_backward(grad, x, weight, conv, needed)
        grad_x, grad_weight = _fastcnn.convolution_backward(grad, x, weight, *conv, needed)
        return none_for_empty(grad_x), none_for_empty(grad_weight)


def _backend(ctx: Any, *tensors: Tensor | None) -> ModuleType | _Dispatched:
    """Returns where backward runs; with create_graph it is what torch can differentiate again."""
    if torch.is_grad_enabled():
        return reference
    if ctx.backend != "auto" and can_bypass(*tensors):
        return backends.module(ctx.backend)
    return _Dispatched(ctx.backend)


def _through_r(
    ctx: Any, grad_r: Tensor, r: Tensor | None, offsets: Tensor | None, size: Sequence[int], need_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns what a second derivative that comes back through r adds to the gradients."""
    stages: Stages = ctx.stages
    if ctx.residual == "input":
        return grad_r, None
    before = Stages(stages.relu, None, stages.pool if stages.pool_first else None)
    return reference.epilogue_backward(grad_r, r, offsets, before, size, ctx.format, need_bias)


def _total(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b


def _stages_gradients(
    ctx: Any,
    backend: Any,
    grad_y: Tensor | None,
    grad_r: Tensor | None,
    saved: Tensor | None,
    offsets: Tensor | None,
    size: Sequence[int],
    need_bias: bool,
    bias: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of the stages' input and bias; bias: where the input is what was saved."""
    grads: tuple[Tensor | None, Tensor | None] = (None, None)
    if grad_y is not None:
        grads = backend.epilogue_backward(
            grad_y, saved, offsets, ctx.stages, size, ctx.format, need_bias, bias
        )
    if grad_r is None:
        return grads
    more = _through_r(ctx, grad_r, saved, offsets, size, need_bias)
    return _total(grads[0], more[0]), _total(grads[1], more[1])


def _for_all(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Returns these, and None for each argument that is no tensor."""
    return (*grads, *(None for _ in ctx.needs_input_grad[len(grads) :]))


def save_epilogue(
    ctx: Any, x: Tensor, has_bias: bool, stages: Stages, results: Sequence[Tensor | None], backend: str
) -> None:
    """Saves for :func:`epilogue_gradients`; results: y, r and offsets."""
    *results, offsets = results
    ctx.stages, ctx.residual, ctx.backend = stages, stages.residual(has_bias), backend
    ctx.size, ctx.format = x.shape, memory_format(x)
    ctx.save_for_backward(saved_tensor(ctx.residual, x, *results), offsets)
    ctx.set_materialize_grads(False)


def epilogue_gradients(
    ctx: Any, grad_y: Tensor | None, grad_r: Tensor | None = None, _: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of :func:`save_epilogue`'s x and bias, and None for the other arguments."""
    saved, offsets = ctx.saved_tensors
    grad_r = none_for_empty(grad_r)
    backend, need_bias = _backend(ctx, grad_y, saved, offsets), ctx.needs_input_grad[1]
    grads = _stages_gradients(ctx, backend, grad_y, grad_r, saved, offsets, ctx.size, need_bias)
    return _for_all(ctx, *grads)


def save_block(
    ctx: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: Conv,
    stages: Stages,
    recompute: bool,
    results: Sequence[Tensor | None],
    backend: str,
) -> None:
    """Saves for :func:`block_gradients`; nothing of the results (y, r, offsets) that it is to recompute."""
    y, r, offsets = results
    assert y is not None
    ctx.conv, ctx.stages, ctx.recompute, ctx.backend = conv, stages, recompute, backend
    ctx.residual, ctx.format = stages.block_residual(x.device.type), memory_format(y)
    saved = (None, None) if recompute else (_saved_of_block(ctx.residual, y, r), offsets)
    ctx.save_for_backward(x, weight, *saved, bias if recompute or ctx.residual == "input" else None)
    ctx.set_materialize_grads(False)


def _saved_of_block(residual: str | None, y: Tensor | None, r: Tensor | None) -> Tensor | None:
    """The convolution's output, the stages' input, lives inside the block alone: there it is r."""
    return saved_tensor(residual, r, y, r)


def block_gradients(
    ctx: Any, grad_y: Tensor | None, grad_r: Tensor | None = None, _: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of :func:`save_block`'s x, weight and bias, and None for the other arguments."""
    x, weight, saved, offsets, bias = ctx.saved_tensors
    stages, grad_r = ctx.stages, none_for_empty(grad_r)
    if ctx.recompute:
        with backends.use_backend(ctx.backend):
            y, r, offsets = _fastcnn.conv2d_block_forward(
                x, weight, bias, *ctx.conv, *stages.flat(), True, False
            )
        saved, offsets = none_for_empty(_saved_of_block(ctx.residual, y, r)), none_for_empty(offsets)
        grad_r = None
    bias = bias if ctx.residual == "input" else None
    backend, needed = _backend(ctx, grad_y, x, weight, saved, offsets), ctx.needs_input_grad[:3]
    if grad_y is not None and grad_r is None:
        grads = block_backward(
            backend, grad_y, x, weight, saved, offsets, bias, ctx.conv, stages, ctx.format, needed
        )
        return _for_all(ctx, *grads)
    size = (x.shape[0], weight.shape[0], *conv_output_size(x, weight, ctx.conv))
    grad_a, grad_bias = _stages_gradients(ctx, backend, grad_y, grad_r, saved, offsets, size, needed[2], bias)
    return _for_all(ctx, *convolution_gradients(backend, grad_a, x, weight, ctx.conv, needed), grad_bias)


class Epilogue(torch.autograd.Function):
    """A backend's epilogue where nothing but gradients is recorded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, stages: Stages, backend: ModuleType) -> Any:
        results = backend.epilogue_forward(x, bias, stages, save=True)
        save_epilogue(ctx, x, bias is not None, stages, results, backends.name(backend))
        return results[:2] if results[1] is not None else results[0]

    backward = staticmethod(epilogue_gradients)


class Block(torch.autograd.Function):
    """A backend's block where nothing but gradients is recorded."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        conv: Conv,
        stages: Stages,
        recompute: bool,
        backend: ModuleType,
    ) -> Any:
        # To recompute is to compute the same again: with what backward needs, which is then dropped.
        results = backend.conv_block_forward(x, weight, bias, conv, stages, save=True)
        save_block(ctx, x, weight, bias, conv, stages, recompute, results, backends.name(backend))
        return results[:2] if results[1] is not None and not recompute else results[0]

    backward = staticmethod(block_gradients)


def first(result: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Returns y of what :class:`Epilogue` or :class:`Block` returned."""
    return result if isinstance(result, Tensor) else result[0]
