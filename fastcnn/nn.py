"""Layers: torch.nn's own with fused forwards, and the whole block as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import functional as F
from . import small
from ._calls import block
from .stages import LRN, MaxPool, Pair, Stages

__all__ = ["ConvBlock2d", "LocalResponseNorm", "MaxPool2d"]


class LocalResponseNorm(torch.nn.LocalResponseNorm):
    """Drop-in for :class:`torch.nn.LocalResponseNorm`: same arguments, same results, one pass.

    Shape: (N, C, *) to (N, C, *). See :func:`fastcnn.functional.local_response_norm`.
    """

    def forward(self, input: Tensor) -> Tensor:
        y = small.run(self, input, small.local_response_norm)
        if y is not None:
            return y
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)


class MaxPool2d(torch.nn.MaxPool2d):
    """Drop-in for :class:`torch.nn.MaxPool2d`: same arguments, same results.

    Shape: (N, C, H, W) or (C, H, W) to the pooled size. See :func:`fastcnn.functional.max_pool2d`.
    """

    def forward(self, input: Tensor) -> Any:
        y = small.run(self, input, small.max_pool2d)
        if y is not None:
            return y
        return F.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class ConvBlock2d(torch.nn.Conv2d):
    """Convolution, bias, ReLU, LRN and max pooling as one layer, with :class:`torch.nn.Conv2d`'s parameters.

    Shape: (N, in_channels, H, W) or (in_channels, H, W) to (N, out_channels, H', W') likewise.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: Conv2d's.
        relu, lrn, pool, order: :func:`fastcnn.functional.epilogue`'s.
        recompute: keep only the input for backward, at the price of a second forward.
        device, dtype: of the parameters.

    Raises:
        ValueError, TypeError: Conv2d's, and those of the specs.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        relu: bool = True,
        lrn: LRN | None = None,
        pool: MaxPool | None = None,
        order: str = "lrn_pool",
        recompute: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,  # type: ignore[arg-type]
            stride,  # type: ignore[arg-type]
            padding,  # type: ignore[arg-type]
            dilation,  # type: ignore[arg-type]
            groups,
            bias,
            device=device,
            dtype=dtype,
        )
        self.stages, self.recompute = Stages(relu, lrn, pool, order), recompute

    def forward(self, input: Tensor, margins: Sequence[int] = ()) -> Tensor:
        """margins: rows and columns of zeros, besides padding, at the top, left, bottom and right."""
        if not margins:
            y = small.run(self, input, small.block)
            if y is not None:
                return y
        conv = self.stride, self.padding, self.dilation, self.groups
        return block(input, self.weight, self.bias, *conv, self.stages, self.recompute, margins)

    def extra_repr(self) -> str:
        stages = self.stages
        parts = [super().extra_repr(), f"relu={stages.relu}"]
        parts += [f"{name}={s}" for name, s in (("lrn", stages.lrn), ("pool", stages.pool)) if s]
        if stages.lrn and stages.pool:
            parts.append(f"order={stages.order}")
        if self.recompute:
            parts.append("recompute=True")
        return ", ".join(parts)


small.know(ConvBlock2d, MaxPool2d)
