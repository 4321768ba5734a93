"""The block that Triton makes in one kernel, against plain torch in float64."""

from itertools import product

import pytest
import torch
from torch.nn import functional as TF

import fastcnn
from fastcnn import LRN, MaxPool
from fastcnn.backends import reference, triton
from fastcnn.stages import Stages
from fastcnn.testing import assert_within_twice, devices, plain_epilogue

if triton.missing_reason() is not None:
    pytest.skip(f"no Triton: {triton.missing_reason()}", allow_module_level=True)

from fastcnn.backends.triton import conv as conv_kernels

DEVICE = devices()[-1]
CONVOLUTIONS = {  # image, kernel, stride, padding, dilation, groups
    "3x3": ((13, 12), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "strided": ((23, 19), (5, 3), (2, 1), (0, 2), (1, 1), 1),
    "dilated, grouped": ((14, 15), (3, 3), (1, 1), (2, 1), (2, 2), 2),
    "1x1": ((9, 10), (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "few channels": ((27, 27), (11, 11), (4, 4), (0, 0), (1, 1), 1),
    "few channels, padded": ((31, 40), (5, 4), (3, 3), (2, 1), (1, 1), 1),
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
    channels = 3 if name.startswith("few channels") else 4 * groups
    shapes = (2, channels, *size), (12, channels // groups, *kernel), (12,)
    x, weight, bias = (torch.randn(s, generator=generator).to(DEVICE, dtype) for s in shapes)
    return x.contiguous(memory_format=format), weight, bias, conv


@pytest.fixture(autouse=True)
def in_one_kernel(monkeypatch):
    monkeypatch.setattr(triton, "fastest", lambda key, x, ways: "in one kernel")


LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
SOME = ["relu", "pool 3/2", "lrn, pool", "pool, lrn"]
CASES = [  # the other format and dtypes, which are the same code, once
    *product(["3x3"], STAGES, [torch.float32], [LAST]),
    *product([name for name in CONVOLUTIONS if name != "3x3"], SOME, [torch.float32], [LAST]),
    *product(["3x3"], SOME, [torch.bfloat16], [LAST]),
    *product(
        ["3x3", "few channels"], ["lrn, pool", "pool, lrn"], [torch.float32, torch.float16], [CONTIGUOUS]
    ),
]


@pytest.mark.parametrize(("name", "stages", "dtype", "format"), CASES)
def test_the_block_follows_plain_torch(name, stages, dtype, format):
    stages = STAGES[stages]
    x, weight, bias, conv = case(name, dtype, format)
    y, r, argmax = triton.conv_block_forward(x, weight, bias, conv, stages, save=True)
    plain = plain_epilogue(TF.conv2d(x, weight, bias, *conv), None, stages)
    a = TF.conv2d(x.double(), weight.double(), bias.double(), *conv)
    assert_within_twice(y, plain, plain_epilogue(a, None, stages))
    assert y.is_contiguous(memory_format=format)
    alone, *nothing = triton.conv_block_forward(x, weight, bias, conv, stages, save=False)
    if stages.lrn_first:  # for training in two kernels
        assert_within_twice(alone, plain, plain_epilogue(a, None, stages))
    else:
        assert torch.equal(alone, y)
    assert nothing == [None, None]
    if r is not None:
        before = Stages(stages.relu, None, stages.pool if stages.pool_first else None)
        exact = plain_epilogue(a, None, before)
        plain = plain_epilogue(TF.conv2d(x, weight, bias, *conv), None, before)
        assert_within_twice(r, plain, exact)
    if argmax is not None:
        grad = torch.ones_like(y)
        rest = (stages, a.shape, format, True)
        found, _ = triton.epilogue_backward(grad, r, argmax, *rest)
        exact = a.clone().requires_grad_()
        plain_epilogue(exact, None, stages).sum().backward()
        expected = exact.grad
        if dtype != torch.float32:  # rounding makes ties: the argmax choose among them
            wide = grad.double(), None if r is None else r.double(), argmax
            expected, _ = reference.epilogue_backward(*wide, *rest)
        torch.testing.assert_close(found.double(), expected, rtol=0.1, atol=0.1)


def test_the_tile_makes_no_difference(monkeypatch):
    x, weight, bias, conv = case("3x3", torch.float32, LAST)
    if DEVICE == "cpu":
        # The interpreter's product is numpy's, whose sums' order depends, on some processors, on the tile. Of
        # whole numbers they are exact in any order.
        x, weight = (8 * x).round(), (8 * weight).round()
    rest = (x, weight, bias, conv, STAGES["pool, lrn"], True, LAST)
    y, _, argmax = conv_kernels.block_forward(*rest)
    limits = conv_kernels.limits
    monkeypatch.setattr(conv_kernels, "limits", lambda *given: limits(*given)._replace(values=512))
    others = conv_kernels.block_forward(*rest)
    assert torch.equal(others[0], y)
    assert torch.equal(others[2], argmax)


# Maps, and the LRN: where its groups are whole vectors of 8 channels, or all, windows of five share sums.
VECTORS = [
    (24, LRN(5, 0.1)),
    (32, LRN(5, 0.1, 0.5, groups=2)),
    (12, LRN(5, 0.1, 1.0)),
    (20, LRN(5, 0.1, 0.6)),
    (8, LRN(5, 0.1, k=0.0)),
    (24, LRN(9, 0.1)),
]


@pytest.mark.parametrize(
    ("maps", "lrn", "order", "dtype"),
    [
        *((*v, "lrn_pool", torch.float32) for v in VECTORS),
        *((*v, "pool_lrn", torch.bfloat16) for v in VECTORS[:3]),
    ],
)
def test_lrn_by_vectors_follows_plain_torch(maps, lrn, order, dtype):
    shapes, generator = ((1, 4, 17, 14), (maps, 4, 3, 3), (maps,)), torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator).to(DEVICE, dtype) for s in shapes)
    stages, conv = Stages(lrn=lrn, pool=MaxPool(3, 2), order=order), ((1, 1), (1, 1), (1, 1), 1)
    found, *_ = triton.conv_block_forward(x, weight, bias, conv, stages, save=False)
    plain = plain_epilogue(TF.conv2d(x, weight, bias, *conv), None, stages)
    exact = TF.conv2d(x.double(), weight.double(), bias.double(), *conv)
    assert_within_twice(found, plain, plain_epilogue(exact, None, stages))


def test_an_infinity_reaches_no_further_than_its_window():
    x, weight = torch.randn(1, 4, 9, 9, device=DEVICE), torch.randn(12, 4, 3, 3, device=DEVICE)
    x[0, 0, 4, 4] = float("inf")
    conv, stages = ((1, 1), (0, 0), (1, 1), 1), Stages(lrn=LRN(5, 0.1))
    found, *_ = triton.conv_block_forward(x, weight, None, conv, stages, save=False)
    expected = plain_epilogue(TF.conv2d(x, weight, None, *conv), None, stages)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01, equal_nan=True)


@pytest.mark.parametrize("name", ["1x1", "few channels"])
def test_programs_use_their_scratch_again(name, monkeypatch):
    x, weight, bias, conv = case(name, torch.float32, LAST)
    x = x.repeat(2, 1, 1, 1)
    results = []
    for programs in (1000, 2):
        monkeypatch.setattr(conv_kernels, "_programs", lambda x, programs=programs: programs)
        results.append(triton.conv_block_forward(x, weight, bias, conv, STAGES["pool, lrn"], save=True))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_write_through_data_reaches_the_next_call():
    x, weight, bias, conv = case("few channels", torch.float32, LAST)
    rest = (conv, STAGES["relu"], False)
    triton.conv_block_forward(x, weight, bias, *rest)
    weight.data.mul_(2)
    found, expected = (triton.conv_block_forward(x, w, bias, *rest)[0] for w in (weight, weight.clone()))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("taken", ["in one kernel", "in two kernels"])
def test_whichever_way_was_fastest_the_result_is_the_same(taken, monkeypatch):
    x, weight, bias, conv = case("few channels", torch.float32, LAST)
    stages = STAGES["pool, lrn"]
    expected = triton.conv_block_forward(x, weight, bias, conv, stages, save=False)[0]
    monkeypatch.setattr(triton, "fastest", lambda key, x, ways: taken)
    found = triton.conv_block_forward(x, weight, bias, conv, stages, save=False)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["strided", "few channels"])
def test_four_paddings_are_zeros_around_the_input(name):
    x, weight, bias, (stride, _, *rest) = case(name, torch.float32, LAST)
    padding = (1, 0, 2, 3) if name == "strided" else (0, 0, 3, 0)  # the second as AlexNet's on other sizes
    stages = STAGES["lrn, pool"]
    found, *_ = triton.conv_block_forward(x, weight, bias, (stride, padding, *rest), stages, save=False)
    top, left, bottom, right = padding
    wide = TF.pad(x, (left, right, top, bottom))
    plain = plain_epilogue(TF.conv2d(wide, weight, bias, stride, 0, *rest), None, stages)
    exact = TF.conv2d(wide.double(), weight.double(), bias.double(), stride, 0, *rest)
    assert_within_twice(found, plain, plain_epilogue(exact, None, stages))


def test_a_patch_as_wide_as_the_stride_keeps_its_weights_format():
    x = torch.randn(2, 3, 16, 16, device=DEVICE)
    weight = torch.randn(16, 3, 4, 4, device=DEVICE).contiguous(memory_format=LAST)
    y, *_ = triton.conv_block_forward(x, weight, None, ((4, 4), (0, 0), (1, 1), 1), Stages(), save=False)
    assert y.stride() == TF.conv2d(x, weight, stride=4).stride()


def test_rows_that_no_window_reaches_give_no_nan():
    x, weight = torch.randn(1, 2, 12, 12, device=DEVICE), torch.randn(8, 2, 1, 1, device=DEVICE)
    leaves = [t.requires_grad_() for t in (x, weight)]
    with fastcnn.use_backend("triton"):
        y = fastcnn.functional.conv2d_block(*leaves, relu=False, lrn=LRN(5, 1.0, k=0.0), pool=MaxPool(3, 2))
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), leaves))


@pytest.mark.parametrize("conv", [
    ((1, 1), (0, 0), (0, 0), 1),
    ((1, 1), (-1, -1), (1, 1), 1),
    ((1, 1), (0, 0), (2, 1, 1), 1),
    ((2, 1, 1), (0, 0), (1, 1), 1),
])  # fmt: skip
def test_what_torch_refuses_is_refused(conv):
    x, weight = torch.randn(1, 2, 8, 8, device=DEVICE), torch.randn(4, 2, 3, 3, device=DEVICE)
    with pytest.raises(RuntimeError):
        triton.conv_block_forward(x, weight, None, conv, Stages(), save=False)


def test_torchs_newer_setting_of_precision_is_read():
    x, weight, bias, conv = case("3x3", torch.float32, LAST)
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        assert not conv_kernels._allows_tf32()
        triton.conv_block_forward(x, weight, bias, conv, Stages(), save=False)
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
