"""Every layer and model on the CPU against its peers; `make bench-cpu` runs it."""

from __future__ import annotations

import math
from itertools import product

import contenders
import pytest
import torch
from conftest import DTYPES
from torch import nn

from fastcnn import LRN, MaxPool, functional
from fastcnn.bench.cases import Epilogue, plain_epilogue
from fastcnn.bench.cases import pair as networks
from fastcnn.measure import bytes_kept
from fastcnn.models import alexnet, lenet5

SHAPES = {"epilogue 1": (32, 96, 55, 55), "epilogue 2": (32, 256, 27, 27)}
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


STAGES = {
    "relu, lrn, pool": {"relu": True, "lrn": LRN(5, k=2), "pool": MaxPool(3, 2)},
    "lrn": {"relu": False, "lrn": LRN(5, k=2), "pool": None},
    "pool": {"relu": False, "lrn": None, "pool": MaxPool(3, 2)},
}


def in_its_own_format(cases):
    """Without those who would convert the tensor first."""
    return {name: fn for name, fn in cases.items() if "channels_last" not in name}


def operations(x, y, relu, lrn, pool):
    """That the formulas ask for: an LRN for a square, the window's sum, two for d, a power and a product."""
    return (
        x.numel() * relu
        + x.numel() * (lrn.size + 4 if lrn else 0)
        + y.numel() * (math.prod(pool.kernel_size) - 1 if pool else 0)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("shape", "stages"), [*product(["epilogue 1"], STAGES), ("epilogue 2", "relu, lrn, pool")]
)
def test_epilogue(race, shape, stages, format, dtype):
    x = torch.randn(SHAPES[shape]).to(DTYPES[dtype]).contiguous(memory_format=FORMATS[format])
    spec = STAGES[stages]
    cases = in_its_own_format(contenders.inference(plain_epilogue(**spec), Epilogue(**spec), x))
    y = functional.epilogue(x, **spec)
    race(cases, 9, x.nbytes + y.nbytes, dtype=dtype, operations=operations(x, y, **spec))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", FORMATS)
def test_epilogue_with_backward(race, format, dtype):
    x = torch.randn(SHAPES["epilogue 1"]).to(DTYPES[dtype]).contiguous(memory_format=FORMATS[format])
    spec = STAGES["relu, lrn, pool"]
    theirs, ours = plain_epilogue(**spec), Epilogue(**spec)
    cases = contenders.backward(theirs, ours, x)
    y = functional.epilogue(x.detach(), **spec)
    moved = 4 * x.nbytes + 2 * y.nbytes + 2 * y.numel()  # r written and read, offsets of one byte
    kept = {"fastcnn": bytes_kept(lambda: ours(x)), "eager": bytes_kept(lambda: theirs(x))}
    race(cases, 9, moved, dtype=dtype, check=False, bytes_kept=kept)


def products(module, x):
    """A plain model's convolutions and dense layers, each with the input it gets."""
    calls = []
    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [
        layer.register_forward_hook(lambda layer, inputs, _: calls.append((layer, inputs[0])))
        for layer in layers
    ]
    with torch.no_grad():
        module.eval()(x)
    for handle in handles:
        handle.remove()
    return calls


def flops(module, x):
    """Of the convolutions and dense layers, a multiplication and an addition being two."""
    total = 0
    for layer, input in products(module, x):
        with torch.no_grad():
            pixels = layer(input)[0, 0].numel()  # 1 for a dense layer
        total += 2 * len(x) * pixels * layer.weight.numel()
    return total


def products_alone(module, x):
    """The convolutions and dense layers of a plain model by themselves."""
    calls = products(module, x)

    def run():
        with torch.no_grad():
            return [layer(input) for layer, input in calls][-1]

    return run


MODELS = {"AlexNet": (alexnet, (3, 224, 224)), "LeNet-5": (lenet5, (1, 28, 28))}


def pair(name, batch, dtype):
    make, size = MODELS[name]
    theirs, ours = networks(make, DTYPES[dtype])
    return theirs, ours, torch.randn(batch, *size).to(DTYPES[dtype])


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("block", [1, 2])
def test_block(race, block, batch):
    theirs, ours, x = pair("AlexNet", batch, "float32")
    theirs, ours = theirs.eval(), ours.eval()
    size = 4  # convolution, ReLU, LRN, pooling
    with torch.no_grad():
        for i in range(block - 1):
            x = ours.features[i](x)
    first = theirs.features[(block - 1) * size : block * size]
    fused = ours.features[block - 1]
    with torch.no_grad():
        moved = x.nbytes + fused(x).nbytes + sum(p.nbytes for p in fused.parameters())
    cases = contenders.inference(first, fused, x)
    race(cases, 9 if batch > 1 else 25, moved, flops(first, x))


@pytest.mark.parametrize(
    ("batch", "dtype", "model"),
    [*product([1, 8, 32, 128], ["float32"], MODELS), *product([1, 32], ["bfloat16"], ["AlexNet"])],
)
def test_inference(race, model, batch, dtype):
    theirs, ours, x = pair(model, batch, dtype)
    work = flops(theirs, x)
    cases = contenders.inference(theirs, ours, x)
    if dtype == "float32":
        cases["convolutions and dense layers alone"] = products_alone(theirs, x)
    heavy = model == "AlexNet" and batch * (4 if dtype == "bfloat16" else 1) >= 128
    rounds = 5 if heavy else 11 if batch > 8 else 31
    moved = x.nbytes + sum(p.nbytes for p in ours.parameters())
    race(cases, rounds, moved, work, dtype, check=dtype == "float32")


@pytest.mark.parametrize(("model", "batch"), [("AlexNet", 32), ("LeNet-5", 128)])
def test_training_step(race, model, batch):
    theirs, ours, x = pair(model, batch, "float32")
    kept = {
        name: bytes_kept(lambda m=m: m.train()(x), m.parameters())
        for name, m in (("fastcnn", ours), ("eager", theirs))
    }
    work = 3 * flops(theirs, x)
    cases = contenders.training(theirs, ours, x)
    race(cases, 7 if model == "AlexNet" else 31, flops=work, check=False, bytes_kept=kept)
