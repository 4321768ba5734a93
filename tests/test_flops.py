"""FlopCounterMode counts for fastcnn what it counts for torch's own layers, forward and backward."""

import pytest
import torch
from torch import nn
from torch.nn import functional as plain
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import fastcnn
from fastcnn import LRN, MaxPool, models
from fastcnn import functional as F


def flops(call, *given, backward):
    with FlopCounterMode(display=False) as counter:
        y = call(*given)
        if backward:
            y.sum().backward()
    return counter.get_total_flops()


def inputs(*shapes):
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


CALLS = {  # ours and torch's, and the shape of the input
    "few values": (lambda x, w: F.conv2d_block(x, w), plain.conv2d, (1, 4, 9, 9)),
    "many": (lambda x, w: F.conv2d_block(x, w, pool=MaxPool(2)), plain.conv2d, (8, 4, 64, 64)),
    "lrn": (lambda x, w: F.conv2d_block(x, w, lrn=LRN()), plain.conv2d, (2, 4, 20, 20)),
    "one image": (lambda x, w: F.conv2d_block(x, w, lrn=LRN()), plain.conv2d, (4, 20, 20)),
    "stride": (
        lambda x, w: F.conv2d_block(x, w, None, 2, 1, 2, lrn=LRN()),
        lambda x, w: plain.conv2d(x, w, None, 2, 1, 2),
        (2, 4, 20, 20),
    ),
    "groups": (
        lambda x, w: F.conv2d_block(x, w[:, :2], groups=2, lrn=LRN()),
        lambda x, w: plain.conv2d(x, w[:, :2], groups=2),
        (2, 4, 20, 20),
    ),
    "same": (
        lambda x, w: F.conv2d_block(x, w, padding="same", lrn=LRN()),
        lambda x, w: plain.conv2d(x, w, padding="same"),
        (2, 4, 20, 20),
    ),
    "recompute": (
        lambda x, w: F.conv2d_block(x, w, lrn=LRN(), recompute=True),
        lambda x, w: checkpoint(lambda: plain.conv2d(x, w).relu(), use_reentrant=False),
        (2, 4, 20, 20),
    ),
    "epilogue": (lambda x, w: F.epilogue(x, lrn=LRN()), lambda x, w: x.relu(), (2, 4, 20, 20)),
}


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference", "plain"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_calls(name, backward, backend):
    ours, torchs, shape = CALLS[name]
    with fastcnn.use_backend(backend):
        counted = flops(ours, *inputs(shape, (8, 4, 3, 3)), backward=backward)
    assert counted == flops(torchs, *inputs(shape, (8, 4, 3, 3)), backward=backward)
    assert (counted > 0) == (name != "epilogue")


MODELS = {
    "alexnet": lambda fused: models.alexnet("2012", num_classes=10, fused=fused),
    "batch norm": lambda fused: models.alexnet("2014", num_classes=10, norm="batch", fused=fused),
    "lenet5": lambda fused: models.lenet5(in_channels=3, adaptive=True, fused=fused),
}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_networks(name, backward):
    x = torch.randn(1, 3, 224, 224)
    counted, expected = (flops(MODELS[name](fused).eval(), x, backward=backward) for fused in (True, False))
    assert counted == expected > 0


def test_a_fused_model_that_ran_before():
    m = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(2)).eval()
    x = torch.randn(2, 3, 30, 30)
    expected = flops(m, x, backward=True)
    fused = fastcnn.fuse(m)
    with torch.no_grad():
        for _ in range(3):
            fused(x)
    assert flops(fused, x, backward=True) == expected


def test_inference_mode():
    block, x = fastcnn.nn.ConvBlock2d(4, 8, 3, lrn=LRN()), torch.randn(2, 4, 20, 20)
    with torch.inference_mode():
        assert flops(block, x, backward=False) == flops(nn.Conv2d(4, 8, 3), x, backward=False)
