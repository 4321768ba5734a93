"""What a fused forward calls: chains as one call, which gives what the original calls would have given."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _calls, small
from .._dispatch import can_bypass, needs_grad
from ..backends import plain
from ..stages import DTYPES, LRN, Stages


class Chain:
    """The calls of a chain as one call.

    Attributes:
        times: in seconds, of the chain and of what it replaces, where fuse has compared them.
    """

    __module__ = __name__

    def __init__(self, stages: Stages, per_image: bool) -> None:
        self.stages, self.per_image = stages, per_image
        self.__name__ = type(self).__name__.lower()  # for the graph's code

    def is_torchs(self, x: Tensor) -> bool:
        """Returns whether torch's functions see something else than a block: LRN in (C, H, W) goes over H.

        And for types that a block has no kernels for.
        """
        return (x.dim() != 4 and self.stages.lrn is not None and not self.per_image) or x.dtype not in DTYPES

    def apart(self, x: Tensor) -> Tensor:
        """Returns the stages by torch's functions, each as the original calls it."""

        def normalise(x: Tensor, lrn: LRN) -> Tensor:
            return F.local_response_norm(x, lrn.size, lrn.alpha, lrn.beta, lrn.k)

        return plain.after_bias(x, self.stages, normalise=normalise)


class Epilogue(Chain):
    """Stages without a convolution."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.apart(x) if self.is_torchs(x) else _calls.epilogue(x, None, self.stages)


class FunctionBlock(Chain):
    """A convolution by torch's function, and its stages."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        conv = stride, padding, dilation, groups
        if self.is_torchs(x):
            return self.apart(F.conv2d(x, weight, bias, *conv))
        return _calls.block(x, weight, bias, *conv, self.stages)


class LayerBlock(FunctionBlock):
    """A convolution layer, in evaluation a batch norm folded into it, and stages."""

    folded: Folded | None = None

    def __call__(self, x: Tensor, conv: nn.Conv2d, norm: Any = None) -> Tensor:  # type: ignore[override]
        if norm is not None:
            folded = self._folded(x, conv, norm)
            if folded is None:
                return self.apart(_normalised(conv(x), norm))
            conv = folded
        y = small.run(conv, x, self._prepare, holder=self)
        if y is not None:
            return y
        numbers = conv.stride, conv.padding, conv.dilation, conv.groups
        return super().__call__(x, conv.weight, conv.bias, *numbers)

    def _prepare(self, conv: nn.Conv2d, x: Tensor) -> Any:
        return small.convolution(conv, x, lambda making: self.stages)

    def _folded(self, x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d | None:
        """Returns the convolution with the norm in its weights; None where that is no gain, or not the same.

        Autograd, torch.func and torch.compile see both layers, as they are written.
        """
        folded = self.folded
        if torch.compiler.is_compiling():
            return None
        if torch.is_grad_enabled() and needs_grad(*_tensors(conv, norm)):
            return None
        if folded is None or not folded.holds(conv, norm):
            if x.dim() != 4 or not can_bypass(x, *_tensors(conv, norm)):
                return None
            folded = self.folded = Folded(conv, norm)
        return folded.conv


def _normalised(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


def _tensors(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> list[Tensor | None]:
    p, q, b = conv._parameters, norm._parameters, norm._buffers
    counter = b["num_batches_tracked"]  # torch changes running statistics without counting versions
    return [
        p["weight"], p["bias"], q["weight"], q["bias"], b["running_mean"], b["running_var"], counter
    ]


class Folded:
    """A convolution with a batch norm's running statistics worked into its weights.

    y = (conv(x) - mean) s + beta with s = gamma / sqrt(var + eps) (Ioffe & Szegedy 2015, §3.1): each
    filter times its s.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        self.tensors = _tensors(conv, norm)
        self.state = _state(self.tensors)
        weight, bias, gamma, beta, mean, var, _ = self.tensors
        assert weight is not None and mean is not None and var is not None  # or it would be no chain
        with torch.no_grad():
            scale = torch.rsqrt((var if var.dtype == torch.float64 else var.float()) + norm.eps)
            scale = scale if gamma is None else scale * gamma
            shift = (-mean if bias is None else bias - mean) * scale
            shift = shift if beta is None else shift + beta
            weight = (weight * scale.view(-1, 1, 1, 1)).to(weight.dtype)
        self.conv: nn.Conv2d = copy.copy(conv)
        vars(self.conv)["_parameters"] = {"weight": weight, "bias": shift.to(weight.dtype)}

    def holds(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
        now = _tensors(conv, norm)
        return all(map(operator.is_, now, self.tensors)) and _state(now) == self.state


def _state(tensors: list[Tensor | None]) -> list[tuple[int, int]]:
    return [(t._version, t.data_ptr()) for t in tensors if t is not None]
