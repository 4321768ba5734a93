"""The block that Triton makes in one kernel, against plain torch in float64."""

from itertools import product

import pytest
import torch
from torch.nn import functional as TF

from fastcnn import LRN, MaxPool
from fastcnn.backends import reference, triton
from fastcnn.backends.triton import conv as conv_kernels
from fastcnn.stages import Stages
from fastcnn.testing import assert_within_twice, devices, plain_epilogue

pytestmark = pytest.mark.skipif(
    triton.missing_reason() is not None, reason=f"no Triton: {triton.missing_reason()}"
)

DEVICE = devices()[-1]
CONVOLUTIONS = {  # image, kernel, stride, padding, dilation, groups
    "3x3": ((13, 12), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "strided": ((23, 19), (5, 3), (2, 1), (0, 2), (1, 1), 1),
    "dilated, grouped": ((14, 15), (3, 3), (1, 1), (2, 1), (2, 2), 2),
    "1x1": ((9, 10), (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "few channels": ((27, 27), (11, 11), (4, 4), (0, 0), (1, 1), 1),
}
NORM = LRN(5, 0.1, groups=2)
STAGES = {
    "relu": Stages(),
    "lrn": Stages(lrn=NORM),
    "lrn of 4, beta 0.6": Stages(lrn=LRN(4, 0.1, 0.6, 2.0, 2)),
    "pool 2/2": Stages(pool=MaxPool(2)),
    "pool 3/2": Stages(pool=MaxPool(3, 2, 1, ceil_mode=True)),
    "lrn, pool": Stages(lrn=NORM, pool=MaxPool(3, 2)),
    "pool, lrn": Stages(lrn=NORM, pool=MaxPool(3, 2), order="pool_lrn"),
}


def case(name, dtype, format):
    size, kernel, *conv = CONVOLUTIONS[name]
    groups, generator = conv[-1], torch.Generator().manual_seed(0)
    channels = 3 if name == "few channels" else 4 * groups
    shapes = (2, channels, *size), (12, channels // groups, *kernel), (12,)
    x, weight, bias = (torch.randn(s, generator=generator).to(DEVICE, dtype) for s in shapes)
    return x.contiguous(memory_format=format), weight, bias, conv


LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
CASES = [  # every convolution with every stage; the other format and dtypes, which are the same code, once
    *product(CONVOLUTIONS, STAGES, [torch.float32], [LAST]),
    *product(["3x3"], STAGES, [torch.bfloat16], [LAST]),
    *product(
        ["3x3", "few channels"], ["lrn, pool", "pool, lrn"], [torch.float32, torch.float16], [CONTIGUOUS]
    ),
]


@pytest.mark.parametrize(("name", "stages", "dtype", "format"), CASES)
def test_the_block_follows_plain_torch(name, stages, dtype, format):
    stages = STAGES[stages]
    x, weight, bias, conv = case(name, dtype, format)
    y, r, offsets = triton.conv_block_forward(x, weight, bias, conv, stages, save=True)
    plain = plain_epilogue(TF.conv2d(x, weight, bias, *conv), None, stages)
    a = TF.conv2d(x.double(), weight.double(), bias.double(), *conv)
    assert_within_twice(y, plain, plain_epilogue(a, None, stages))
    assert y.is_contiguous(memory_format=format)
    alone, *nothing = triton.conv_block_forward(x, weight, bias, conv, stages, save=False)
    assert torch.equal(alone, y)
    assert nothing == [None, None]
    if r is not None:
        before = Stages(stages.relu, None, stages.pool if stages.pool_first else None)
        reached = r != 0  # a row or column that no window reaches stays 0
        exact = plain_epilogue(a, None, before)
        plain = plain_epilogue(TF.conv2d(x, weight, bias, *conv), None, before)
        assert_within_twice(r[reached], plain[reached], exact[reached])
    if offsets is not None:
        grad = torch.ones_like(y)
        rest = (stages, a.shape, format, True)
        kept = y if stages.residual(True) == "output" else r
        found, _ = triton.epilogue_backward(grad, kept, offsets, *rest)
        exact = a.clone().requires_grad_()
        plain_epilogue(exact, None, stages).sum().backward()
        expected = exact.grad
        if dtype != torch.float32:  # rounding makes ties: the offsets choose among them
            wide = grad.double(), kept.double(), offsets
            expected, _ = reference.epilogue_backward(*wide, *rest)
        torch.testing.assert_close(found.double(), expected, rtol=0.1, atol=0.1)


def test_the_tile_makes_no_difference(monkeypatch):
    x, weight, bias, conv = case("3x3", torch.float32, LAST)
    rest = (x, weight, bias, conv, STAGES["lrn, pool"], True)
    y, _, offsets = conv_kernels.block_forward(*rest)
    monkeypatch.setattr(conv_kernels, "MOST_VALUES", 512)
    others = conv_kernels.block_forward(*rest)
    assert torch.equal(others[0], y)
    assert torch.equal(others[2], offsets)


@pytest.mark.parametrize("taken", range(2))
def test_whichever_way_was_fastest_the_result_is_the_same(taken, monkeypatch):
    x, weight, bias, conv = case("few channels", torch.float32, LAST)
    stages = STAGES["pool, lrn"]
    expected = triton.conv_block_forward(x, weight, bias, conv, stages, save=False)[0]
    monkeypatch.setattr(triton, "fastest", lambda key, x, ways: taken)
    found = triton.conv_block_forward(x, weight, bias, conv, stages, save=False)[0]
    torch.testing.assert_close(found, expected)
