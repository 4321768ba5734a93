"""What is timed: from a layer up to a step of training AlexNet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from .. import functional
from .._plain import GroupedLRN
from ..models import alexnet, lenet5
from ..nn import ConvBlock2d
from ..stages import LRN, MaxPool, Stages
from . import contenders
from .contenders import Builders

Net = TypeVar("Net", bound=nn.Module)
_LRN, _POOL = LRN(5, k=2), MaxPool(3, 2)

# Standard deviations. Of an image: pixels of 0 to 255 less their mean, as the paper's. Of an LRN's input: at
# 20 its sum of squares counts for 1 %, so that a wrong one is seen, and never passes the quarter of k up to
# which our CPU kernels use their fastest formula; at 200 it mostly does (docs/cpu.md).
PIXELS, SMALL, LARGE = 64, 20, 200


class Case(NamedTuple):
    """A computation: its contenders, and the work that it takes.

    moved: bytes that have to be read and written; flops: of convolutions and dense layers; operations: all
    that the formulas ask for, whoever computes it and however.
    """

    name: str
    builders: Builders
    moved: int = 0
    flops: int = 0
    operations: int = 0


class Epilogue(nn.Module):
    """:func:`fastcnn.functional.epilogue` as a module."""

    def __init__(self, relu: bool, lrn: LRN | None, pool: MaxPool | None) -> None:
        super().__init__()
        self.relu, self.lrn, self.pool = relu, lrn, pool

    def forward(self, x: Tensor) -> Tensor:
        return functional.epilogue(x, relu=self.relu, lrn=self.lrn, pool=self.pool)


def plain_epilogue(relu: bool, lrn: LRN | None, pool: MaxPool | None) -> nn.Sequential:
    layers: list[nn.Module] = [nn.ReLU()] if relu else []
    layers += [GroupedLRN(lrn)] if lrn else []  # torch's function, upcast by hand in half precision
    layers += [nn.MaxPool2d(pool.kernel_size, pool.stride)] if pool else []  # type: ignore[arg-type]
    return nn.Sequential(*layers)


def epilogue(
    name: str, x: Tensor, relu: bool = True, lrn: LRN | None = _LRN, pool: MaxPool | None = _POOL
) -> Case:
    fused, plain = Epilogue(relu, lrn, pool), plain_epilogue(relu, lrn, pool)
    builders = contenders.inference(plain, fused, x)
    if x.is_contiguous():
        builders["JAX"] = partial(contenders.by_jax, x, relu, lrn, pool)
    y = math.prod(Stages(pool=pool).output_shape(x.shape))
    # A comparison; a square, a sum, two for d, a power and a product; a window's comparisons.
    window = math.prod(pool.kernel_size) - 1 if pool else 0  # type: ignore[arg-type]
    operations = x.numel() * (relu + (lrn.size + 4 if lrn else 0)) + y * window
    return Case(name, builders, x.nbytes + x.itemsize * y, operations=operations)


def epilogue_backward(name: str, x: Tensor) -> Case:
    """Forward, too."""
    fused, plain = Epilogue(True, _LRN, _POOL), plain_epilogue(True, _LRN, _POOL)
    y = math.prod(Stages(pool=_POOL).output_shape(x.shape))
    moved = 4 * x.nbytes + 2 * (x.itemsize + 1) * y  # r is written and read; offsets have a byte
    return Case(name, contenders.backward(plain, fused, x.detach().requires_grad_()), moved)


def pair(make: Callable[..., Net], dtype: torch.dtype, device: str = "cpu") -> tuple[Net, Net]:
    """A network of torch's own layers and the same one fused, with torch's usual initial weights.

    With the paper's, values lie so close together that pooling decides by the rounding.
    """
    torch.manual_seed(0)
    fused, plain = make(), make(fused=False)
    for layer in fused.modules():
        if isinstance(layer, ConvBlock2d | nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    plain.load_state_dict(fused.state_dict())
    return plain.to(device, dtype), fused.to(device, dtype)


def inference(name: str, plain: nn.Module, fused: nn.Module, x: Tensor) -> Case:
    """Of a block or a network."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        y = plain.eval()(x[:1])
    flops = len(x) * counter.get_total_flops()
    moved = x.nbytes + len(x) * y.nbytes + _bytes(plain)
    return Case(name, contenders.inference(plain, fused, x), moved, flops, flops)


def training(name: str, plain: nn.Module, fused: nn.Module, x: Tensor) -> Case:
    """A step of SGD, each image a class of its own as far as there are classes.

    Weights are read forward, backward and in the update, and written there; gradients are written and read.
    """
    with FlopCounterMode(display=False) as counter:
        y = plain.train()(x[:1])
        torch.autograd.grad(F.cross_entropy(y, y.argmax(1)), list(plain.parameters()))
    labels = torch.arange(len(x), device=x.device) % y.shape[1]
    flops = len(x) * counter.get_total_flops()
    moved = x.nbytes + 6 * _bytes(plain)
    return Case(name, contenders.training(plain, fused, x, labels), moved, flops, flops)


def _bytes(module: nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())


def cases(quick: bool, device: str, dtype: torch.dtype) -> Iterator[Case]:
    """Each is made when it is asked for."""

    def random(deviation: float, *shape: int) -> Tensor:
        return (deviation * torch.randn(shape, device=device)).to(dtype)

    first, second = random(SMALL, 32, 96, 55, 55), random(SMALL, 32, 256, 27, 27)  # the convolutions' outputs
    yield epilogue("ReLU, LRN, pool", first)
    yield epilogue_backward("ReLU, LRN, pool, backward", first)
    if not quick:
        yield epilogue("ReLU, LRN, pool, channels_last", first.contiguous(memory_format=torch.channels_last))
        yield epilogue("ReLU, LRN, pool, large values", first / SMALL * LARGE)
        yield epilogue("ReLU, LRN, pool, second layer", second)
        yield epilogue("LRN", first, relu=False, pool=None)
        yield epilogue("pool", first, relu=False, lrn=None)
    yield from _alexnet(quick, device, dtype)
    if not quick:
        plain, fused = pair(lenet5, dtype, device)
        yield inference("LeNet-5, batch 128", plain, fused, random(PIXELS, 128, 1, 28, 28))


def _alexnet(quick: bool, device: str, dtype: torch.dtype) -> Iterator[Case]:
    plain, fused = pair(partial(alexnet, dropout=0), dtype, device)
    images = (PIXELS * torch.randn(128, 3, 224, 224, device=device)).to(dtype)
    first, second = plain.features[:4], plain.features[4:8]  # convolution, ReLU, LRN, pooling
    x = (PIXELS * torch.randn(32, 3, 227, 227, device=device)).to(dtype)
    yield inference("AlexNet block 1, batch 32", first, fused.features[0], x)
    if not quick:
        with torch.no_grad():
            x = first(x)
        yield inference("AlexNet block 2, batch 32", second, fused.features[1], x)
    for batch in (1, 32) if quick else (1, 8, 32, 128):
        yield inference(f"AlexNet, batch {batch}", plain, fused, images[:batch])
    step = training("AlexNet training, batch 32", plain, fused, images[:32])
    if quick:
        del step.builders["torch.compile"]  # long to compile, and long to run
    yield step
