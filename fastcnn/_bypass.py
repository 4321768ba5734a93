"""A call that bypasses PyTorch's dispatcher: one call of a backend, which autograd may record."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import backends
from ._autograd import How, gradients, save
from ._dispatch import needs_grad
from .backends import plain
from .stages import Conv, Stages


class Call(torch.autograd.Function):
    """A backend's epilogue, or block, that returns (y, r), or y where backward needs no r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, how: How) -> Any:
        stages, conv, recompute, name = how
        backend = backends.module(name)
        if weight is None:
            results = backend.epilogue_forward(x, bias, stages, save=True)
        else:
            # To recompute is to compute the same again: with what backward needs, which is then dropped.
            results = backend.conv_block_forward(x, weight, bias, conv, stages, save=True)
        save(ctx, x, weight, bias, how, results)
        y, r, _ = results
        return y if r is None or recompute else (y, r)

    backward = staticmethod(gradients)


def run(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stages: Stages,
    conv: Conv = (),
    recompute: bool = False,
) -> Tensor:
    """Returns the stages on x, or on its convolution with weight, of tensors that :func:`can_bypass`."""
    backend = backends.choose(x, stages, weight, conv)
    if backend is plain:
        if weight is None:
            return plain.epilogue(x, bias, stages)
        return plain.conv2d_block(x, weight, bias, conv, stages, recompute)
    if needs_grad(x, weight, bias):
        result = Call.apply(x, weight, bias, How(stages, conv, recompute, backends.name(backend)))
        return result if isinstance(result, Tensor) else result[0]
    if weight is None:
        return backend.epilogue_forward(x, bias, stages, save=False)[0]
    return backend.conv_block_forward(x, weight, bias, conv, stages, save=False)[0]
