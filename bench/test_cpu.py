"""Every layer and model on the CPU against its peers; `make bench-cpu` runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from contenders import freezing, in_both_formats, products_alone
from torch import Tensor

from fastcnn import LRN, MaxPool
from fastcnn.bench import DTYPES, cases
from fastcnn.bench.cases import LARGE, PIXELS, SMALL, Case
from fastcnn.models import alexnet, lenet5

MAPS = {"map 1": (32, 96, 55, 55), "map 2": (32, 256, 27, 27)}  # the outputs of AlexNet's convolutions
NORM, POOL = LRN(5, k=2), MaxPool(3, 2)
STAGES: dict[str, dict[str, Any]] = {
    "ReLU, LRN, pool": {"relu": True, "lrn": NORM, "pool": POOL},
    "LRN": {"relu": False, "lrn": NORM, "pool": None},
    "pool": {"relu": False, "lrn": None, "pool": POOL},
}
MODELS = {"AlexNet": (partial(alexnet, dropout=0), (3, 224, 224)), "LeNet-5": (lenet5, (1, 28, 28))}
BATCHES = (1, 8, 32, 128)


def random(dtype: str, deviation: float, *shape: int) -> Tensor:
    torch.manual_seed(0)
    return (deviation * torch.randn(shape)).to(DTYPES[dtype])


def layer(name: str, stages: str, map: str, deviation: float, dtype: str) -> Case:
    x, spec = random(dtype, deviation, *MAPS[map]), STAGES[stages]
    case = in_both_formats(lambda x: cases.epilogue(name, x, **spec), x)
    return case._replace(builders=case.builders | freezing(cases.plain_epilogue(**spec), x))


def layer_backward(name: str, dtype: str) -> Case:
    return in_both_formats(partial(cases.epilogue_backward, name), random(dtype, SMALL, *MAPS["map 1"]))


def block(name: str, number: int, batch: int) -> Case:
    """Of AlexNet, with the input that the blocks before it give."""
    plain, fused = cases.pair(MODELS["AlexNet"][0], torch.float32)
    x = random("float32", PIXELS, batch, 3, 227, 227)
    with torch.no_grad():
        x = fused.eval().features[: number - 1](x)
    layers = 4  # convolution, ReLU, LRN, pooling
    plain, fused = plain.features[(number - 1) * layers : number * layers], fused.features[number - 1]
    case = in_both_formats(partial(cases.inference, name), plain, fused, x)
    return case._replace(builders=case.builders | freezing(plain, x))


def model(name: str, which: str, batch: int, dtype: str) -> Case:
    make, size = MODELS[which]
    plain, fused = cases.pair(make, DTYPES[dtype])
    x = random(dtype, PIXELS, batch, *size)
    case = in_both_formats(partial(cases.inference, name), plain, fused, x)
    return case._replace(builders=case.builders | freezing(plain, x) | products_alone(plain, x))


def training(name: str, which: str, batch: int) -> Case:
    make, size = MODELS[which]
    x = random("float32", PIXELS, batch, *size)
    return in_both_formats(partial(cases.training, name), *cases.pair(make, torch.float32), x)


def all_cases() -> Iterator[tuple[str, Callable[[str], Case]]]:
    """By name: what makes the case of that name."""
    for dtype in ("float32", "bfloat16"):
        for stages in STAGES:
            yield (
                f"{stages} of map 1, {dtype}",
                partial(layer, stages=stages, map="map 1", deviation=SMALL, dtype=dtype),
            )
        whole = partial(layer, stages="ReLU, LRN, pool", dtype=dtype)
        yield f"ReLU, LRN, pool of map 1, large values, {dtype}", partial(whole, map="map 1", deviation=LARGE)
        yield f"ReLU, LRN, pool of map 2, {dtype}", partial(whole, map="map 2", deviation=SMALL)
        yield f"ReLU, LRN, pool of map 1 with backward, {dtype}", partial(layer_backward, dtype=dtype)
    for number, batch in product((1, 2), (1, 32)):
        yield f"AlexNet's block {number}, batch {batch}", partial(block, number=number, batch=batch)
    for which, batch in product(MODELS, BATCHES):
        yield f"{which}, batch {batch}, float32", partial(model, which=which, batch=batch, dtype="float32")
    for batch in (1, 32):
        yield (
            f"AlexNet, batch {batch}, bfloat16",
            partial(model, which="AlexNet", batch=batch, dtype="bfloat16"),
        )
    yield "AlexNet, training step, batch 32", partial(training, which="AlexNet", batch=32)
    yield "LeNet-5, training step, batch 64", partial(training, which="LeNet-5", batch=64)


CASES = dict(all_cases())


@pytest.mark.parametrize("name", CASES)
def test_cpu(race, name):
    race(CASES[name](name), "bfloat16" if name.endswith("bfloat16") else "float32")
