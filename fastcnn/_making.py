"""A prepared call in the making: layers are added, and what each of them depends on is watched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import _native
from ._calls import conv_numbers
from .backends import _direct
from .backends._convolution import output_format
from .backends._launch import params
from .stages import Stages


class Changing(Exception):
    """Raised if a call's dependencies can't be watched, or if there is no native call for it."""


def require(condition: Any) -> None:
    if not condition:
        raise Changing


_CONV_NAMES = ("stride", "padding", "dilation", "groups", "padding_mode")


class Making:
    """A prepared call in the making: C++'s, and the shape and dtype that the layers so far give."""

    def __init__(self, torchs: Any, input: Tensor) -> None:
        self.in_chain = False  # whose maps are NCHW inside, whatever torch's would be
        self.format = torch.contiguous_format  # of torch's map
        self.call = _native.load().Prepared(torchs, input)
        self.watch = self.call.watch
        self.x = input
        self.tensors = self.products = self.convolutions = 0

    def value(self, module: nn.Module, *names: str) -> list[Any]:
        """Returns attributes of a module, which must stay the same objects, and can't be changed in place."""
        values = []
        for name in names:
            value = module.__dict__.get(name)
            require(name in module.__dict__ and _is_frozen(value) and getattr(module, name) is value)
            self.watch.entry(module.__dict__, name, value)
            values.append(value)
        return values

    def tensor(self, module: nn.Module, name: str) -> tuple[Tensor | None, int]:
        """Returns a parameter and its number; it must stay the same object and be laid out as it is."""
        parameters = module._parameters
        require(name in parameters)
        t = parameters[name]
        if t is None:
            self.watch.entry(parameters, name, None)
            return None, -1
        require(type(t) in (Tensor, nn.Parameter) and t.dtype == self.x.dtype and not t.is_neg())
        require(t.dim() == 4 or t.is_contiguous())
        self.watch.tensor(parameters, name)
        self.tensors += 1
        return t, self.tensors - 1

    def convolution(self, module: nn.Module, stages: Stages, margins: Sequence[int] = ()) -> None:
        """Adds a convolution with bias, ReLU and pooling."""
        stride, padding, dilation, groups, mode = self.value(module, *_CONV_NAMES)
        self.parameters_of(module)
        (weight, at), (bias, bias_at) = (self.tensor(module, name) for name in ("weight", "bias"))
        require(weight is not None and weight.dim() == 4 and self.x.dim() == 4 and mode == "zeros")
        assert weight is not None
        numbers = conv_numbers(weight, stride, padding, dilation, groups, margins)
        sizes = _direct.geometry(self.x, weight, numbers, stages, prepared=True)
        require(sizes and _direct.fits_bias(bias, weight))
        assert sizes is not None
        self.format = output_format(self.x, weight)
        format = torch.contiguous_format if self.in_chain else self.format
        shape = stages.output_shape(sizes.shape)
        after = params(sizes.shape, self.map(shape, format), None, None, None, stages, format)
        self.call.convolution(_direct.convolution(self.x, weight, numbers, after), at, bias_at)
        self.x, self.products = self.map(shape, self.format), self.products + sizes.products
        self.convolutions += 1

    def map(self, shape: Sequence[int], format: torch.memory_format) -> Tensor:
        return torch.empty(shape, dtype=self.x.dtype, device="meta", memory_format=format)

    def parameters_of(self, module: nn.Module) -> None:
        self.watch.entry(module.__dict__, "_parameters", module._parameters)

    def dense(self, module: nn.Linear, relu: bool) -> None:
        self.parameters_of(module)
        (weight, at), (bias, bias_at) = (self.tensor(module, name) for name in ("weight", "bias"))
        require(weight is not None and self.x.dim() == 2 and weight.shape[1] == self.x.shape[1])
        assert weight is not None
        outputs, inputs = weight.shape
        require(_direct.fits_bias(bias, weight))  # torch would spread another
        few = len(self.x) <= min(_IMAGES, _IMAGES // 2 + inputs // 64)
        require(inputs * outputs <= _DENSE if self.convolutions else few)
        self.call.dense(inputs, outputs, relu, at, bias_at)
        self.x = self.x.new_empty(self.x.shape[0], outputs, device="meta")
        self.products += self.x.shape[0] * inputs * outputs

    def finished(self) -> Any:
        """Returns C++'s call."""
        is_map = self.x.dim() == 4
        require(not (self.in_chain and is_map) or self.format == torch.contiguous_format)
        rest = (self.x.dtype, self.format) if is_map else (self.x.dtype,)
        names = ("dtype", "memory_format")[: len(rest)]
        self.call.output((tuple(self.x.shape), *rest), names, _direct.most_threads(self.products))
        return self.call


_DENSE = 1 << 20  # weights of a dense layer behind convolutions, whose threads don't share them
_IMAGES = 32  # of dense layers alone: past these, and half of it for short sums, a library is as fast


def _is_frozen(value: Any) -> bool:
    """Returns whether nothing in a value can be changed in place."""
    if isinstance(value, tuple):
        return all(map(_is_frozen, value))
    return value is None or isinstance(value, (bool, int, float, str, Stages)) or callable(value)
