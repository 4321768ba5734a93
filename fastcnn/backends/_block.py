"""A block made of a convolution and a backend's epilogue, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..stages import Conv, Stages, check, memory_format
from ._convolution import Gradients, conv_output_size, convolution_backward, convolve
from ._launch import Results, allocate

BlockGradients: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None]  # of x, weight and bias


def convolve_then(
    epilogue_forward: Callable[..., Results],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: Conv,
    stages: Stages,
    save: bool,
    convolve: Callable[..., Tensor] = convolve,
) -> Results:
    """Returns a backend's epilogue on the convolution of x, which is r where backward can do with that."""
    a = convolve(x, weight, conv)
    check(a, bias, stages)
    keep_r = stages.saved_name_in_block(a.device.type) == "r"
    y, r, argmax = epilogue_forward(a, bias, stages, save, keep_r)
    return y, a if save and stages.makes_r() and r is None else r, argmax


def in_chunks(
    empty: Callable[..., Tensor],
    run: Callable[..., None],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: Conv,
    stages: Stages,
    save: bool,
    images: int,
    convolve: Callable[..., Tensor] = convolve,
) -> Results:
    """Returns the same, of so many images at a time, convolved in weight's dtype.

    empty: as allocate has it; run: fills y, r and argmax, given the convolution's part and its format.
    """
    outputs: Results | None = None
    for start in range(0, x.shape[0], images):
        part = slice(start, start + images)
        a = convolve(x[part].to(weight.dtype), weight, conv).to(x.dtype)
        if outputs is None:
            check(a, bias, stages)
            format, shape = memory_format(a), (x.shape[0], *a.shape[1:])
            outputs = allocate(empty, shape, a.dtype, format, stages, save, stages.makes_r())
        y, r, argmax = (None if t is None else t[part] for t in outputs)
        assert y is not None
        if r is not None and stages.saved_name_in_block(x.device.type) == "input":
            r.copy_(a)
            r = None
        run(a, bias, stages, format, y, r, argmax)
    assert outputs is not None  # an empty batch is not in chunks
    return outputs


def block_backward(
    backend: Any,
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    argmax: Tensor | None,
    bias: Tensor | None,
    conv: Conv,
    stages: Stages,
    format: torch.memory_format,
    needed: Sequence[bool],
) -> BlockGradients:
    """Returns the gradients of x, weight and bias, None for what is not needed.

    At once where the backend has ``conv_block_backward`` and that takes the case; else the epilogue's, then
    the convolution's.

    Args:
        saved: what :meth:`Stages.saved_name_in_block` names; bias: where that is the stages' input.
        format: y's memory format.
    """
    at_once = getattr(backend, "conv_block_backward", None)
    if at_once is not None and stages.lrn is None:
        given = {"y": saved, "argmax": argmax, "conv": conv, "stages": stages, "needed": needed}
        grads: BlockGradients | None = at_once(grad_y, x, weight, **given)
        if grads is not None:
            return grads
    size = (x.shape[0], weight.shape[0], *conv_output_size(x, weight, conv))
    grad_a, grad_bias = backend.epilogue_backward(
        grad_y, saved, argmax, stages, size, format, needed[2], bias
    )
    return *convolution_gradients(backend, grad_a, x, weight, conv, needed), grad_bias


def convolution_gradients(
    backend: Any, grad: Tensor | None, x: Tensor, weight: Tensor, conv: Conv, needed: Sequence[bool]
) -> Gradients:
    """Returns the gradients of x and weight, by aten's function unless the backend has its own."""
    if grad is None or not any(needed[:2]):
        return None, None
    backward: Callable[..., Gradients] = getattr(backend, "convolution_backward", convolution_backward)
    return backward(grad, x, weight, conv, needed[:2])
