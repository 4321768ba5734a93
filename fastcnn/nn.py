"""Layers: torch.nn's own with fused forwards, and the whole block as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.jit import is_scripting  # type: ignore[attr-defined]

from . import functional as F
from . import small
from ._calls import block
from .backends.plain import scripted
from .stages import LRN, MaxPool, Pair, Stages

__all__ = ["ConvBlock2d", "LocalResponseNorm", "MaxPool2d"]


class LocalResponseNorm(torch.nn.LocalResponseNorm):
    """Drop-in for :class:`torch.nn.LocalResponseNorm`: same arguments, same results, one pass.

    Shape: (N, C, *) to (N, C, *). See :func:`fastcnn.functional.local_response_norm`.
    """

    def forward(self, input: Tensor) -> Tensor:
        if is_scripting():  # TorchScript compiles this branch alone
            return torch.nn.functional.local_response_norm(input, self.size, self.alpha, self.beta, self.k)
        else:
            y = small.run(self, input, small.local_response_norm)
            if y is not None:
                return y
            return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)


class MaxPool2d(torch.nn.MaxPool2d):
    """Drop-in for :class:`torch.nn.MaxPool2d`: same arguments, same results.

    Shape: (N, C, H, W) or (C, H, W) to the pooled size. See :func:`fastcnn.functional.max_pool2d`.
    """

    def forward(self, input: Tensor):  # type: ignore[no-untyped-def]
        if is_scripting():
            return torch.nn.functional.max_pool2d(  # type: ignore[call-overload]
                input,
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                self.ceil_mode,
                self.return_indices,
            )
        else:
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


class ConvBlock2d(torch.nn.Module):
    """Convolution, bias, ReLU, LRN and max pooling as one layer.

    It has :class:`torch.nn.Conv2d`'s attributes, parameters and initial weights, but is none: a tool that
    changes convolutions (adapters, folded batch norms) would take its output for the convolution's.

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
        super().__init__()
        conv = torch.nn.Conv2d(
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
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.padding, self.dilation, self.padding_mode = conv.padding, conv.dilation, conv.padding_mode
        self.transposed, self.output_padding = conv.transposed, conv.output_padding
        self.weight = conv.weight
        self.bias: Tensor | None  # declared here: TorchScript would read it in the class
        self.register_parameter("bias", conv.bias)  # type: ignore[arg-type]
        self.stages, self.recompute = Stages(relu, lrn, pool, order), recompute

    def reset_parameters(self) -> None:
        """Draws weight and bias anew, as :class:`torch.nn.Conv2d` does."""
        torch.nn.Conv2d.reset_parameters(self)  # type: ignore[arg-type]

    def forward(self, input: Tensor, margins: list[int] = ()) -> Tensor:  # type: ignore[assignment]
        """Runs the block; margins: zeros besides padding, at the top, left, bottom, right."""
        if is_scripting():
            if len(margins) == 4:
                top, left, bottom, right = margins
                input = torch.nn.functional.pad(input, (left, right, top, bottom))
            conv = (self.stride, self.padding, self.dilation, self.groups)
            a = torch.nn.functional.conv2d(input, self.weight, self.bias, *conv)  # type: ignore[arg-type]
            return scripted(a, *self._flat)
        else:
            if type(input) is Tensor and not margins:
                y = small.run(self, input, small.block)
                if y is not None:
                    return y
            return self._run(input, margins)

    def _run(self, input: Tensor, margins: Sequence[int]) -> Tensor:
        conv = self.stride, self.padding, self.dilation, self.groups
        if not isinstance(input, Tensor):  # torch.fx's Proxy; it traces a root with a Proxy for margins, too
            return F.conv2d_block(
                input, self.weight, self.bias, *conv, **vars(self.stages), recompute=self.recompute
            )
        return block(input, self.weight, self.bias, *conv, self.stages, self.recompute, margins)

    def __prepare_scriptable__(self) -> ConvBlock2d:
        """Writes the stages as numbers and lists, which TorchScript can read; it asks for this."""
        relu, lrn, pool, order = self.stages.flat()
        self._flat = relu, lrn or [0.0], pool or [0], order  # no list is empty: its type would be unknown
        return self

    def extra_repr(self) -> str:
        stages = self.stages
        conv = torch.nn.Conv2d.extra_repr(self)  # type: ignore[arg-type]
        parts = [conv, f"relu={stages.relu}"]
        parts += [f"{name}={s}" for name, s in (("lrn", stages.lrn), ("pool", stages.pool)) if s]
        if stages.lrn and stages.pool:
            parts.append(f"order={stages.order}")
        if self.recompute:
            parts.append("recompute=True")
        return ", ".join(parts)


small.know(ConvBlock2d, MaxPool2d)
