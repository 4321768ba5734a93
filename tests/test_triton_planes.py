"""Triton's kernels for NCHW tensors, against plain torch and the reference in float64."""

import pytest
import torch

from fastcnn import LRN, MaxPool
from fastcnn.backends import reference, triton
from fastcnn.stages import NO_PLACE, Stages, saved_tensor
from fastcnn.testing import assert_within_twice, devices, plain_epilogue

if triton.missing_reason() is not None:
    pytest.skip(f"no Triton: {triton.missing_reason()}", allow_module_level=True)

from fastcnn.backends.triton import planes

DEVICE = devices()[-1]
FORMAT = torch.contiguous_format
ALEXNET, GROUPED = MaxPool(3, 2), LRN(5, 0.5, groups=2)
NAN, INF = float("nan"), float("inf")
CASES = {  # stages, shape
    "relu": (Stages(), (3, 5, 5, 3)),
    "relu of one pixel": (Stages(), (5, 13, 1, 1)),
    "relu in vectors": (Stages(), (6, 8, 3, 5)),
    "bias alone": (Stages(False), (2, 3, 4, 4)),
    "lrn": (Stages(lrn=LRN(5, 0.5, k=2.0)), (2, 13, 3, 5)),
    "lrn, more lanes than a block": (Stages(lrn=LRN(3, 0.5)), (2, 3, 9, 13)),
    "lrn 1": (Stages(lrn=LRN(1, 0.5, 0.5)), (1, 3, 4, 4)),
    "lrn 2": (Stages(lrn=LRN(2, 0.5, 1.0)), (1, 5, 4, 4)),
    "lrn, beta 0.6": (Stages(lrn=LRN(5, 0.5, 0.6)), (1, 6, 4, 4)),
    "lrn 4, groups": (Stages(False, LRN(4, 0.5, groups=2)), (2, 10, 2, 8)),
    "lrn, one channel": (Stages(lrn=LRN(5, 0.5)), (2, 1, 3, 3)),
    "pool 3/2": (Stages(pool=ALEXNET), (2, 5, 9, 7)),
    "pool 3/2, padded": (Stages(pool=MaxPool(3, 2, 1)), (2, 3, 8, 9)),
    "pool 3/2, ceil": (Stages(False, pool=MaxPool(3, 2, ceil_mode=True)), (2, 3, 8, 6)),
    "pool 2/2": (Stages(pool=MaxPool(2)), (2, 3, 5, 6)),
    "pool 3/1, dilated": (Stages(pool=MaxPool(3, 1, 0, 2)), (1, 3, 7, 8)),
    "pool 2/3, dilated, ceil": (Stages(pool=MaxPool(2, 3, 0, 3, True)), (1, 2, 9, 8)),
    "pool 2/3": (Stages(pool=MaxPool(2, 3)), (1, 2, 9, 8)),
    "pool 5/2, padded": (Stages(pool=MaxPool(5, 2, 2)), (1, 2, 4, 5)),
    "pool (2, 3)/(3, 1)": (Stages(pool=MaxPool((2, 3), (3, 1), (1, 0))), (1, 3, 8, 7)),
    "lrn, pool 3/2": (Stages(lrn=LRN(5, 0.5, k=2.0), pool=ALEXNET), (1, 13, 7, 9)),
    "lrn, pool 3/2, groups, even": (Stages(lrn=GROUPED, pool=ALEXNET), (2, 10, 8, 6)),
    "lrn, pool 3/2, strips": (Stages(lrn=LRN(2, 0.5), pool=ALEXNET), (2, 3, 11, 11)),
    "lrn, pool 3/2, one window": (Stages(False, lrn=LRN(3, 0.5), pool=ALEXNET), (2, 5, 3, 4)),
    "lrn, pool 3/2, padded": (Stages(lrn=LRN(4, 0.5), pool=MaxPool(3, 2, 1)), (1, 5, 6, 7)),
    "lrn, pool 3/3": (Stages(lrn=LRN(3, 0.5), pool=MaxPool(3)), (1, 5, 7, 6)),
    "pool 3/2, lrn": (Stages(lrn=GROUPED, pool=MaxPool(3, 2, 1), order="pool_lrn"), (2, 10, 7, 6)),
    "pool 2/2, lrn": (Stages(False, LRN(4, 0.5), MaxPool(2), "pool_lrn"), (1, 5, 6, 6)),
}
HALF = [
    "relu",
    "lrn",
    "lrn, beta 0.6",
    "pool 3/2",
    "pool 3/2, padded",
    "lrn, pool 3/2, strips",
    "pool 2/2, lrn",
]
PARAMETERS = [(name, torch.float32) for name in CASES if name != "lrn, beta 0.6"]
PARAMETERS += [(name, dtype) for name in HALF for dtype in (torch.float16, torch.bfloat16)]


@pytest.fixture(autouse=True)
def several_programs(monkeypatch):
    """As on a GPU, for tensors as small as these."""
    monkeypatch.setattr(planes, "INTERPRETED_LANES", 32)
    monkeypatch.setattr(planes, "INTERPRETED_PROGRAMS", planes.PROGRAMS)
    monkeypatch.setattr(planes, "LEAST_CHUNK", 5)


def tensors(stages, shape, dtype):
    generator = torch.Generator().manual_seed(0)
    x, bias = (2 * torch.randn(s, generator=generator).to(dtype) for s in (shape, shape[1]))
    return x.to(DEVICE), bias.to(DEVICE)


def run(x, bias, stages, save):
    """y, r and argmax, each where the reference has it."""
    results = [
        None if t is None else torch.full_like(t, 77)
        for t in reference.epilogue_forward(x, bias, stages, save)
    ]
    assert planes.takes(x, stages)
    planes.forward(x, bias, stages, *results)
    return results


def run_backward(grad, r, bias, argmax, stages, shape):
    grad_x = torch.full(shape, 77, dtype=grad.dtype, device=DEVICE)
    return grad_x, planes.backward(grad, r, bias, argmax, stages, grad_x, True)


@pytest.mark.parametrize(("name", "dtype"), PARAMETERS)
def test_forward_follows_plain_torch(name, dtype):
    stages, shape = CASES[name]
    x, bias = tensors(stages, shape, dtype)
    y, r, argmax = run(x, bias, stages, True)
    exact = plain_epilogue(x.double(), bias.double(), stages)
    assert_within_twice(y, plain_epilogue(x, bias, stages), exact)
    if stages.pool:
        torch.testing.assert_close(run(x, bias, stages, False)[0], y, rtol=0, atol=0)
    _, exact_r, exact_argmax = reference.epilogue_forward(x.double(), bias.double(), stages, True)
    if r is not None:
        assert torch.equal(r, exact_r.to(dtype))
    if argmax is not None and dtype == torch.float32:  # rounding makes ties
        assert torch.equal(argmax, exact_argmax)


@pytest.mark.parametrize(("name", "dtype"), PARAMETERS)
def test_backward_follows_the_reference(name, dtype):
    stages, shape = CASES[name]
    x, bias = tensors(stages, shape, dtype)
    y, r, argmax = reference.epilogue_forward(x, bias, stages, True)
    saved = saved_tensor(stages.saved_name(True), x, y, r)
    wide = None if saved is None else saved.double()
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    rest = stages, list(shape), FORMAT, True
    plain, plain_bias = reference.epilogue_backward(grad, saved, argmax, *rest)
    exact, exact_bias = reference.epilogue_backward(grad.double(), wide, argmax, *rest)
    found, found_bias = run_backward(grad, saved, None, argmax, stages, shape)
    assert_within_twice(found, plain, exact)
    assert found_bias.dtype == torch.float32
    assert_within_twice(found_bias.to(dtype), plain_bias, exact_bias)
    if stages.lrn_first:  # from the stages' input
        again, again_bias = run_backward(grad, x, bias, argmax, stages, shape)
        assert_within_twice(again, plain, exact)
        assert_within_twice(again_bias.to(dtype), plain_bias, exact_bias)


@pytest.mark.parametrize("name", ["relu", "lrn 4, groups", "pool 3/2", "lrn, pool 3/2, one window"])
def test_no_bias_is_a_bias_of_zero(name):
    stages, shape = CASES[name]
    x, bias = tensors(stages, shape, torch.float32)
    for found, expected in zip(
        run(x, None, stages, True), run(x, torch.zeros_like(bias), stages, True), strict=False
    ):
        assert found is None or torch.equal(found, expected)


@pytest.mark.parametrize("name", ["relu", "lrn", "pool 3/2, padded", "lrn, pool 3/2, one window"])
def test_nan_and_infinity_are_torchs(name):
    stages, shape = CASES[name]
    x, _ = tensors(stages, shape, torch.float32)
    x[0, 0, :2, :2] = torch.tensor([[NAN, 1.0], [INF, -INF]])
    y, _, argmax = run(x, None, stages, True)
    expected, _, places = reference.epilogue_forward(x, None, stages, True)
    torch.testing.assert_close(y, expected, equal_nan=True)
    torch.testing.assert_close(run(x, None, stages, False)[0], expected, equal_nan=True)
    assert argmax is None or torch.equal(argmax, places)


@pytest.mark.parametrize("name", ["pool 3/2", "lrn, pool 3/2, one window", "pool 2/2"])
@pytest.mark.parametrize("value", [1.0, -1.0])
def test_the_first_of_equals_wins(name, value):
    stages, shape = CASES[name]
    _, _, argmax = run(torch.full(shape, value, device=DEVICE), None, stages, True)
    cut = stages.relu and stages.pool_first and value < 0
    assert (argmax == (NO_PLACE if cut else 0)).all()


def test_what_has_another_layout_or_option_is_left():
    x = torch.empty(2, 4, 8, 8, device=DEVICE)
    lrn_pool = Stages(lrn=LRN(5), pool=ALEXNET)
    assert planes.takes(x, lrn_pool)
    assert not planes.takes(x.contiguous(memory_format=torch.channels_last), lrn_pool)
    assert not planes.takes(x[..., ::2], lrn_pool)
    assert not planes.takes(x.double(), lrn_pool)
    others = (Stages(lrn=lrn) for lrn in (LRN(7), LRN(5, beta=0.6), LRN(5, k=0.0), LRN(5, alpha=-1.0)))
    assert not any(planes.takes(x, stages) for stages in others)
    assert not any(planes.takes(x, Stages(pool=MaxPool(*p))) for p in ((7, 2), (4, 4), (3, 1, 1, 2)))
