"""The stages in torch's own functions and through torch's autograd: what plain layers do.

They stand so in this file alone. ``auto`` takes it where no kernel of ours is there or trusted; ONNX export
and the models without fused blocks take it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils import checkpoint

from ..stages import LRN, Stages, check
from . import reference
from ._convolution import padded
from ._launch import Results
from .reference import conv_block_forward as _conv_block_forward
from .reference import epilogue_backward

__all__ = ["conv_block_forward", "epilogue_backward", "epilogue_forward"]


def missing_reason() -> str | None:
    return None


def unsupported_reason(x: Tensor, stages: Stages) -> str | None:
    return None


def epilogue(x: Tensor, bias: Tensor | None, stages: Stages) -> Tensor:
    """Applies the stages to x (N, C, H, W)."""
    if bias is None:
        return after_bias(x, stages)
    return after_bias(x + bias.view(-1, 1, 1), stages, overwrite=True)


def conv2d_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: Sequence[Any],
    stages: Stages,
    recompute: bool,
) -> Tensor:
    """Applies the stages to the convolution of x (N, C, H, W); conv: stride, padding, dilation, groups."""
    if recompute and torch.is_grad_enabled() and not torch.onnx.is_in_onnx_export():
        again = (x, weight, bias, conv, stages, False)
        return checkpoint.checkpoint(conv2d_block, *again, use_reentrant=False, preserve_rng_state=False)
    x, conv, _ = padded(x, weight, conv)
    a = F.conv2d(x, weight, bias, *conv)
    if stages.lrn:  # which alone has to fit the channels
        check(a, None, stages)
    return after_bias(a, stages, overwrite=True)


def after_bias(
    v: Tensor,
    stages: Stages,
    overwrite: bool = False,
    normalise: Callable[[Tensor, LRN], Tensor] | None = None,
) -> Tensor:
    """Returns the stages after the bias.

    overwrite: whether v may be, as by an ``inplace`` ReLU. normalise: instead of :func:`local_response_norm`.
    """
    normalise = normalise or local_response_norm
    if stages.relu:
        v = v.relu_() if overwrite else v.relu()
    if stages.pool and stages.pool_first:
        v = _max_pool(v, stages)
    if stages.lrn:
        v = normalise(v, stages.lrn)
    if stages.pool and not stages.pool_first:
        v = _max_pool(v, stages)
    return v


def _max_pool(v: Tensor, stages: Stages) -> Tensor:
    assert stages.pool is not None
    try:
        return torch.max_pool2d(v, *stages.pool.pairs, stages.pool.ceil_mode)  # type: ignore[call-arg, arg-type]
    except RuntimeError:
        stages.pool.output_size(*v.shape[-2:])  # refuses to pool to nothing, in our words
        raise


def scripted(v: Tensor, relu: bool, lrn: list[float], pool: list[int], order: str) -> Tensor:
    """Returns the same as :func:`after_bias` in what TorchScript can compile.

    lrn, pool: :meth:`Stages.flat`'s, or any other number of values for none.
    """
    if relu:
        v = v.relu()
    for stage in order.split("_"):
        if stage == "pool" and len(pool) == 9:
            v = F.max_pool2d(v, pool[0:2], pool[2:4], pool[4:6], pool[6:8], pool[8] == 1)
        if stage == "lrn" and len(lrn) == 5:
            wide = v.float() if v.dtype == torch.float16 or v.dtype == torch.bfloat16 else v
            towers = wide.unflatten(-3, [int(lrn[4]), -1]).flatten(0, -4)
            v = F.local_response_norm(towers, int(lrn[0]), lrn[1], lrn[2], lrn[3]).view_as(v).to(v.dtype)
    return v


def local_response_norm(x: Tensor, lrn: LRN) -> Tensor:
    """Computes o = x (k + alpha/size * sum of x^2 over the window)^-beta, for (N, C, H, W) or (C, H, W).

    :func:`torch.nn.functional.local_response_norm`, to the same bits; but float16 and bfloat16 are computed
    in float32, where squares don't overflow, and neither groups nor an odd window cost a copy.
    """
    if has_torch_function((x,)):
        return handle_torch_function(local_response_norm, (x,), x, lrn)
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if torch.onnx.is_in_onnx_export() and lrn.size % 2:  # an even window of ONNX's reaches further forward
        return _onnx_local_response_norm(wide, lrn).to(x.dtype)
    squares, margin = wide.mul(wide).unflatten(-3, (lrn.groups, -1)), lrn.size // 2
    if lrn.size % 2 == 0 or lrn.size > squares.shape[-3]:  # which avg_pool3d's own padding does not do
        squares, margin = F.pad(squares, (0, 0, 0, 0, lrn.before, lrn.after)), 0
    means = F.avg_pool3d(squares, (lrn.size, 1, 1), stride=1, padding=(margin, 0, 0)).flatten(-4, -3)
    y = wide / means.mul(lrn.alpha).add(lrn.k).pow(lrn.beta)
    return y if wide is x else y.to(x.dtype)  # of integers it is a float


def _onnx_local_response_norm(x: Tensor, lrn: LRN) -> Tensor:
    """Calls ONNX's LRN; a group of channels counts as an image of its own."""
    towers = x.unflatten(-3, (lrn.groups, -1)).flatten(end_dim=-4)
    attributes: dict[str, Any] = {
        "size": lrn.size,
        "alpha": float(lrn.alpha),
        "beta": float(lrn.beta),
        "bias": float(lrn.k),
    }
    y = torch.onnx.ops.symbolic(
        "LRN", (towers,), attributes, dtype=towers.dtype, shape=towers.shape, version=13
    )
    return y.view(x.shape)


# Inside an op autograd sees nothing, and backward is given r and argmax: there the reference takes over.


def epilogue_forward(
    x: Tensor, bias: Tensor | None, stages: Stages, save: bool, keep_r: bool = True
) -> Results:
    if save:
        return reference.epilogue_forward(x, bias, stages, save, keep_r)
    return epilogue(x, bias, stages), None, None


def conv_block_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: Sequence[Any], stages: Stages, save: bool
) -> Results:
    if save:
        return _conv_block_forward(x, weight, bias, conv, stages, save)
    return conv2d_block(x, weight, bias, conv, stages, recompute=False), None, None
