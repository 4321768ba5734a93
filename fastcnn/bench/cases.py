"""The cases that are timed: from a layer up to a step of training AlexNet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple, TypeVar

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
from .contenders import ALONE, Builders, tensors

Net = TypeVar("Net", bound=nn.Module)
NORM, POOL = LRN(5, k=2), MaxPool(3, 2)

# Standard deviations. Of an image: pixels of 0 to 255 less their mean, as the paper's. Of an LRN's input: at
# 20 its sum of squares counts for 1 %, so that a wrong one is seen, and never passes the quarter of k up to
# which our CPU kernels use their fastest formula; at 200 it mostly does (docs/cpu.md).
PIXELS, SMALL, LARGE = 64, 20, 200
MAPS = {"map 1": (32, 96, 55, 55), "map 2": (32, 256, 27, 27)}  # the outputs of AlexNet's convolutions
MODELS: dict[str, tuple[Callable[..., nn.Module], tuple[int, int, int]]] = {
    "AlexNet": (partial(alexnet, dropout=0), (3, 224, 224)),
    "LeNet-5": (lenet5, (1, 28, 28)),
}


class Case(NamedTuple):
    """A computation: its contenders, and the work that it takes.

    moved: bytes that have to be read and written; flops: of convolutions and dense layers; operations: all
    that the formulas ask for, whoever computes it and however; memory: by contender, bytes of a kind.
    """

    name: str
    builders: Builders
    moved: int = 0
    flops: int = 0
    operations: int = 0
    memory: dict[str, dict[str, int]] | None = None


class Kind(NamedTuple):
    """Where and in which numbers a case is computed."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    format: torch.memory_format = torch.contiguous_format

    def random(self, deviation: float, *shape: int) -> Tensor:
        torch.manual_seed(0)
        x = (deviation * torch.randn(shape, device=self.device)).to(self.dtype)
        return x.contiguous(memory_format=self.format)

    def pair(self, make: Callable[..., Net]) -> tuple[Net, Net]:
        """Returns a network of torch's own layers and the same one fused, with torch's initial weights.

        With the paper's, values lie so close together that pooling decides by the rounding.
        """
        torch.manual_seed(0)
        fused, plain = make(), make(fused=False)
        for layer in fused.modules():
            if isinstance(layer, ConvBlock2d | nn.Conv2d | nn.Linear):
                layer.reset_parameters()
        plain.load_state_dict(fused.state_dict())
        for net in (plain, fused):
            net.to(self.device, self.dtype, memory_format=self.format)  # type: ignore[call-overload]
        return plain, fused


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
    name: str, x: Tensor, relu: bool = True, lrn: LRN | None = NORM, pool: MaxPool | None = POOL
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
    fused, plain = Epilogue(True, NORM, POOL), plain_epilogue(True, NORM, POOL)
    y = math.prod(Stages(pool=POOL).output_shape(x.shape))
    moved = 4 * x.nbytes + 2 * (x.itemsize + 1) * y  # r is written and read; an argmax takes a byte
    return Case(name, contenders.backward(plain, fused, x.detach().requires_grad_()), moved)


def inference(name: str, plain: nn.Module, fused: nn.Module, x: Tensor) -> Case:
    """Of a block or a network."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = plain.eval()(x)
    flops, moved = counter.get_total_flops(), x.nbytes + _bytes(tensors(output)) + _bytes(plain.parameters())
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
    moved = x.nbytes + 6 * _bytes(plain.parameters())
    return Case(name, contenders.training(plain, fused, x, labels), moved, flops, flops)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.nbytes for t in tensors)


def layer(name: str, kind: Kind, map: str = "map 1", deviation: float = SMALL, **stages: Any) -> Case:
    return epilogue(name, kind.random(deviation, *MAPS[map]), **stages)


def layer_backward(name: str, kind: Kind) -> Case:
    return epilogue_backward(name, kind.random(SMALL, *MAPS["map 1"]))


def block(name: str, kind: Kind, number: int, batch: int) -> Case:
    """One of AlexNet's first, on the input that the blocks before it give."""
    pair: tuple[Any, Any] = kind.pair(MODELS["AlexNet"][0])
    plain, fused = (net.eval().features for net in pair)
    x = kind.random(PIXELS, batch, 3, 227, 227)
    with torch.no_grad():
        x = fused[: number - 1](x)
    layers = 4  # convolution, ReLU, LRN, pooling
    return inference(name, plain[(number - 1) * layers : number * layers], fused[number - 1], x)


def model(name: str, kind: Kind, which: str, batch: int) -> Case:
    make, size = MODELS[which]
    (plain, fused), x = kind.pair(make), kind.random(PIXELS, batch, *size)
    case = inference(name, plain, fused, x)
    return case._replace(builders=case.builders | {ALONE: partial(contenders.products, plain, x)})


def step(name: str, kind: Kind, which: str, batch: int) -> Case:
    make, size = MODELS[which]
    return training(name, *kind.pair(make), kind.random(PIXELS, batch, *size))


def _all() -> Iterator[tuple[str, Callable[[str, Kind], Case]]]:
    yield "ReLU, LRN, pool of map 1", layer
    yield "LRN of map 1", partial(layer, relu=False, pool=None)
    yield "pool of map 1", partial(layer, relu=False, lrn=None)
    yield "ReLU, LRN, pool of map 1, large values", partial(layer, deviation=LARGE)
    yield "ReLU, LRN, pool of map 2", partial(layer, map="map 2")
    yield "ReLU, LRN, pool of map 1 with backward", layer_backward
    for number, batch in product((1, 2), (1, 32)):
        yield f"AlexNet's block {number}, batch {batch}", partial(block, number=number, batch=batch)
    for which, batch in product(MODELS, (1, 8, 32, 128)):
        yield f"{which}, batch {batch}", partial(model, which=which, batch=batch)
    for which, batch in (("AlexNet", 32), ("LeNet-5", 64)):
        yield f"{which}, training step, batch {batch}", partial(step, which=which, batch=batch)


CASES = dict(_all())
QUICK = (
    "ReLU, LRN, pool of map 1",
    "ReLU, LRN, pool of map 1 with backward",
    "AlexNet's block 1, batch 32",
    "AlexNet, batch 1",
    "AlexNet, batch 32",
    "AlexNet, training step, batch 32",
)


def cases(quick: bool, kind: Kind) -> Iterator[Case]:
    """Each is made when it is asked for."""
    for name in QUICK if quick else CASES:
        case = CASES[name](name, kind)
        if quick and "training" in name:
            del case.builders["torch.compile"]  # long to compile, and long to run
        yield case
