"""The ops as functions, with torch's signatures where torch has them.

Shapes: N images, C channels, H rows, W columns. Every function takes float32, float64, float16 and
bfloat16, in any strides; arithmetic is float32 (float64 for float64) and results have the input's
dtype and memory format. Other dtypes, where torch takes them, run torch's own functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from . import _calls
from .stages import DTYPES, LRN, MaxPool, Pair, lrn_alone, pool_alone, stages_of

__all__ = ["conv2d_block", "epilogue", "local_response_norm", "max_pool2d"]


def epilogue(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = True,
    lrn: LRN | None = None,
    pool: MaxPool | None = None,
    order: str = "lrn_pool",
) -> Tensor:
    """Applies bias, ReLU, LRN and max pooling to a convolution's output, in one pass.

    LRN is local response normalisation. Every stage is optional. Krizhevsky, Sutskever & Hinton 2012, §3.1,
    3.3, 3.4.

    Args:
        input: (N, C, H, W) or (C, H, W); a convolution's output without its bias.
        bias: (C,), added to each channel; of input's dtype.
        relu: whether negative values become 0.
        lrn: the normalisation's parameters, or None to leave it out.
        pool: the pooling's parameters, or None to leave it out.
        order: "lrn_pool" (AlexNet), or "pool_lrn" (CaffeNet, GoogLeNet).

    Returns:
        The pooled size, or the input's: (N, C, H', W'), or (C, H', W').

    Raises:
        RuntimeError: a shape, dtype or device that does not fit; the message names it.
        ValueError: an unknown order.
        TypeError: lrn or pool is not a spec.
    """
    if has_torch_function((input, bias)):
        stages: Any = {"relu": relu, "lrn": lrn, "pool": pool, "order": order}
        return handle_torch_function(epilogue, (input, bias), input, bias, **stages)
    if not (isinstance(input, Tensor) and (bias is None or isinstance(bias, Tensor))):
        kinds = f"{type(input).__name__} and {type(bias).__name__}"
        raise TypeError(f"epilogue: input must be a Tensor, bias one or None, but got {kinds}")
    return _calls.epilogue(input, bias, stages_of(relu, lrn, pool, order))


def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """Computes :func:`torch.nn.functional.local_response_norm` in one pass, in float32 inside.

    float16 and bfloat16 don't overflow at abs(x) >= 256, and backward is deterministic.

    Args:
        input: (N, C, *), at least 3 dimensions.
        size: channels in a window, at least 1.
        alpha, beta, k: ``y = x / (k + alpha/size * sum(x**2))**beta``.

    Returns:
        The input's shape.

    Raises:
        ValueError: input has fewer than 3 dimensions.
        RuntimeError: size is below 1.
    """
    if has_torch_function((input,)):
        return handle_torch_function(local_response_norm, (input,), input, size, alpha, beta, k)
    if input.dim() < 3:
        raise ValueError(f"Expected 3D or higher dimensionality input (got {input.dim()} dimensions)")
    if input.dtype not in DTYPES or any(isinstance(number, Tensor) for number in (alpha, beta, k)):
        return F.local_response_norm(input, size, alpha, beta, k)  # which gives numbers gradients, too
    stages = lrn_alone(size, alpha, beta, k)
    if input.dim() == 4:
        return _calls.epilogue(input, None, stages)
    # (N, C, *) as (N, C, ., 1): a view, unless the dimensions past C are strided apart.
    return _calls.epilogue(input.flatten(2).unsqueeze(-1), None, stages).view(input.shape)


def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Computes :func:`torch.nn.functional.max_pool2d`, keeping one byte per output for backward, not eight.

    Few values on the CPU are torch's own, if its gradients are right: it keeps eight bytes for each then.

    Args:
        input: (N, C, H, W) or (C, H, W).
        kernel_size, stride, padding, dilation: an int or a pair; stride defaults to kernel_size.
        ceil_mode: count a last window that reaches past the edge.
        return_indices: also give each maximum's flat int64 index; torch's own function does this.

    Returns:
        (N, C, H', W') or (C, H', W'), and the indices if asked for.

    Raises:
        RuntimeError, TypeError: as torch, naming the argument and its value.
    """
    spec: Any = kernel_size, stride, padding, dilation, ceil_mode
    if not return_indices and _calls.few_to_pool(input, dilation):
        try:  # which costs less than contextlib.suppress
            return torch.max_pool2d(input, *spec)
        except (RuntimeError, TypeError):
            pass  # said below in our words
    if has_torch_function((input,)):
        given: Any = *spec, return_indices
        return handle_torch_function(max_pool2d, (input,), input, *given)
    stages = pool_alone(*spec)
    is_tensor = isinstance(input, Tensor)
    if is_tensor and input.dim() not in (3, 4):
        raise RuntimeError(f"max_pool2d: expected a 3D or 4D input, but got shape {tuple(input.shape)}")
    if return_indices or not is_tensor:
        assert stages.pool
        return F.max_pool2d(input, *stages.pool.pairs, ceil_mode, return_indices=return_indices)  # type: ignore[call-overload]
    return _calls.epilogue(input, None, stages)


def conv2d_block(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    relu: bool = True,
    lrn: LRN | None = None,
    pool: MaxPool | None = None,
    order: str = "lrn_pool",
    recompute: bool = False,
) -> Tensor:
    """Computes a convolution and its epilogue: :func:`torch.nn.functional.conv2d`, then :func:`epilogue`.

    Args:
        input: (N, C, H, W) or (C, H, W).
        weight: (O, C // groups, kernel rows, kernel columns).
        bias: (O,).
        stride, padding, dilation, groups: torch's; padding may be "same" or "valid".
        relu, lrn, pool, order: the epilogue's.
        recompute: keep nothing but input, weight and bias for backward, which computes the rest once more.

    Returns:
        (N, O, H', W') or (O, H', W').

    Raises:
        RuntimeError, ValueError, TypeError: torch's for the convolution, epilogue's for the rest.
    """
    if has_torch_function((input, weight, bias)):
        conv = stride, padding, dilation, groups
        given: Any = {"relu": relu, "lrn": lrn, "pool": pool, "order": order, "recompute": recompute}
        return handle_torch_function(conv2d_block, (input, weight, bias), input, weight, bias, *conv, **given)
    stages = stages_of(relu, lrn, pool, order)
    return _calls.block(input, weight, bias, stride, padding, dilation, groups, stages, recompute)
