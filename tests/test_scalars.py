"""Numbers and dtypes as torch takes them, NumPy's, tensors, integers and complex, and what it refuses."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as plain

import fastcnn
from fastcnn import LRN, MaxPool
from fastcnn import functional as F
from fastcnn.stages import lrn_alone, pool_alone
from fastcnn.testing import assert_close


def outcome(call):
    """Returns what a call returns, or the class of what it raises."""
    try:
        return call()
    except Exception as error:
        return type(error)


def assert_same(ours, torchs):
    ours, torchs = outcome(ours), outcome(torchs)
    if isinstance(ours, type) or isinstance(torchs, type):
        assert ours is torchs
    else:
        assert_close(ours, torchs)


NORMS = [
    (np.int64(5),), (np.uint8(3), np.float32(1e-4), np.float64(0.75), np.float16(2)), (torch.tensor(3),),
    (3, torch.tensor(0.1)), (3, 0.1, torch.tensor(0.5), torch.tensor(2.0)), (np.array(3),),
    (torch.tensor([3]),), (3, np.int64(1), 1, np.int64(2)), (3, 0.1, True), (3, float("nan")), (100,),
    (3, 0.1, 0.75, float("inf")), (True,), (3.0,), (np.float64(3),), ("3",), (None,), ([3],), ((3,),), (0,),
    (torch.tensor(2.5),), (-1,), (3, "a"), (3, "0.1"), (3, None), (3, 0.1, [1]),
]  # fmt: skip


@pytest.mark.parametrize("numbers", NORMS, ids=repr)
def test_norms(numbers):
    torch.default_generator.manual_seed(0)
    x = torch.randn(2, 8, 9, 9)
    assert_same(lambda: F.local_response_norm(x, *numbers), lambda: plain.local_response_norm(x, *numbers))
    for _ in range(2):  # the second a prepared call
        assert_same(
            lambda: fastcnn.nn.LocalResponseNorm(*numbers).eval()(x),
            lambda: nn.LocalResponseNorm(*numbers)(x),
        )


@pytest.mark.parametrize("name", ["alpha", "beta", "k"])
def test_a_norms_tensors_get_gradients(name):
    x, number = torch.randn(2, 4, 5, 5), torch.tensor(0.1, requires_grad=True)
    grads = [
        torch.autograd.grad(norm(x, 3, **{name: number}).sum(), number)[0]
        for norm in (F.local_response_norm, plain.local_response_norm)
    ]
    assert_close(*grads)


def test_tensors_are_read_at_each_call():
    x, size = torch.randn(2, 4, 5, 5), torch.tensor(2)
    for _ in range(2):
        assert_close(F.local_response_norm(x, size), plain.local_response_norm(x, size))
        assert_close(F.max_pool2d(x, (size, size)), plain.max_pool2d(x, int(size)))
        assert lrn_alone(size, 1e-4, 0.75, 1.0).lrn.size == int(size)
        assert pool_alone((size, size), None, 0, 1, False).pool.kernel_size == (int(size),) * 2
        size += 1


INTS = [
    np.int64(2), np.int32(1), torch.tensor(2), (np.int64(1), 2), [2, np.uint8(2)],
    (torch.tensor(1), torch.tensor(2)), torch.Size([2, 1]), [2], (2,), [], (), (2, 2, 2), 0, -1, True,
    range(1, 3), np.array([2, 1]), torch.tensor([2, 1]), 2.0, np.float64(2), torch.tensor(2.0), (2.5, 2), "a",
    None, (None, 1), {1, 2}, {1: 2},
]  # fmt: skip
FLAGS = [True, "a", None, 1, 0, [], torch.tensor(True), np.bool_(True), 2.0]
shapes = pytest.mark.parametrize("shape", [(2, 3, 9, 9), (4, 64, 30, 30)], ids=["small", "large"])


@shapes
@pytest.mark.parametrize("name", ["kernel_size", "stride", "padding", "dilation"])
@pytest.mark.parametrize("value", INTS, ids=repr)
def test_poolings(name, value, shape):
    torch.default_generator.manual_seed(0)
    x, given = torch.randn(shape), {"kernel_size": 4, name: value}
    assert_same(lambda: F.max_pool2d(x, **given), lambda: plain.max_pool2d(x, **given))
    assert_same(
        lambda: F.max_pool2d(x, **given, return_indices=True)[0],
        lambda: plain.max_pool2d(x, **given, return_indices=True)[0],
    )
    assert_same(lambda: fastcnn.nn.MaxPool2d(**given).eval()(x), lambda: nn.MaxPool2d(**given)(x))


@shapes
@pytest.mark.parametrize("value", FLAGS, ids=repr)
def test_ceil_mode(value, shape):
    x = torch.randn(shape)
    assert_same(
        lambda: F.max_pool2d(x, 2, ceil_mode=value),
        lambda: plain.max_pool2d(x, 2, ceil_mode=value),
    )
    assert_same(
        lambda: fastcnn.nn.MaxPool2d(2, ceil_mode=value).eval()(x),
        lambda: nn.MaxPool2d(2, ceil_mode=value)(x),
    )


@pytest.mark.parametrize("name", ["stride", "padding", "dilation", "groups"])
@pytest.mark.parametrize("value", [*INTS, "same", "valid"], ids=repr)
def test_convolutions(name, value):
    torch.default_generator.manual_seed(0)
    x, weight = torch.randn(2, 4, 9, 9), torch.randn(4, 2 if name == "groups" else 4, 3, 3)
    given = {name: value}
    assert_same(
        lambda: F.conv2d_block(x, weight, **given, lrn=LRN(3)),
        lambda: plain.local_response_norm(plain.conv2d(x, weight, **given).relu(), 3),
    )

    def layer(cls):
        torch.default_generator.manual_seed(0)
        m = cls(4, 4, 3, **given).eval()
        with torch.no_grad():
            return m(x).relu()

    assert_same(lambda: layer(fastcnn.nn.ConvBlock2d), lambda: layer(nn.Conv2d))


@pytest.mark.parametrize("size", [np.int64(3), np.int32(3), (np.int64(3), 2)], ids=repr)
def test_sizes_of_a_block(size):
    torch.default_generator.manual_seed(0)
    conv = nn.Conv2d(np.int64(4), np.int32(8), size)
    block = fastcnn.nn.ConvBlock2d(np.int64(4), np.int32(8), size)
    block.load_state_dict(conv.state_dict())
    x = torch.randn(2, 4, 9, 9)
    assert_close(block(x), conv(x).relu())


def test_specs_hold_pythons_own_numbers():
    norm = LRN(np.int64(5), np.float32(0.5), torch.tensor(0.75), np.int64(2), np.uint8(2))
    assert norm == LRN(5, 0.5, 0.75, 2.0, 2)
    assert [type(n) for n in vars(norm).values()] == [int, float, float, float, int]
    pool = MaxPool(np.int64(3), [np.int32(2), torch.tensor(1)], np.uint8(1))
    assert pool == MaxPool(3, (2, 1), 1)
    assert all(type(n) is int for n in pool.flat())
    assert repr(LRN(5, 1)) == "LRN(size=5, alpha=1, beta=0.75, k=1.0, groups=1)"


# Dtypes that no kernel takes: what torch's functions make of them, to the bit.

DTYPES = [torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128]


def lrn(x, size=3):
    return plain.local_response_norm(x, size)


CALLS = {
    "relu": (lambda x, w, b: F.epilogue(x), lambda x, w, b: plain.relu(x)),
    "bias": (lambda x, w, b: F.epilogue(x, b, relu=False), lambda x, w, b: x + b.view(-1, 1, 1)),
    "nothing": (lambda x, w, b: F.epilogue(x, relu=False), lambda x, w, b: x),
    "pool": (
        lambda x, w, b: F.epilogue(x, relu=False, pool=MaxPool(2)),
        lambda x, w, b: plain.max_pool2d(x, 2),
    ),
    "max_pool2d": (lambda x, w, b: F.max_pool2d(x, 2), lambda x, w, b: plain.max_pool2d(x, 2)),
    "MaxPool2d": (lambda x, w, b: fastcnn.nn.MaxPool2d(2).eval()(x), lambda x, w, b: plain.max_pool2d(x, 2)),
    "lrn": (lambda x, w, b: F.epilogue(x, relu=False, lrn=LRN(3)), lambda x, w, b: lrn(x)),
    "lrn 2": (lambda x, w, b: F.epilogue(x, relu=False, lrn=LRN(2)), lambda x, w, b: lrn(x, 2)),
    "local_response_norm": (lambda x, w, b: F.local_response_norm(x, 3), lambda x, w, b: lrn(x)),
    "LocalResponseNorm": (
        lambda x, w, b: fastcnn.nn.LocalResponseNorm(3).eval()(x),
        lambda x, w, b: lrn(x),
    ),
    "block": (F.conv2d_block, lambda x, w, b: plain.conv2d(x, w, b).relu()),
    "convolution": (lambda x, w, b: F.conv2d_block(x, w, b, relu=False), plain.conv2d),
    "block with an LRN": (
        lambda x, w, b: F.conv2d_block(x, w, b, relu=False, lrn=LRN(3)),
        lambda x, w, b: lrn(plain.conv2d(x, w, b)),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_other_dtypes_have_torchs_results_and_errors(name, dtype):
    torch.default_generator.manual_seed(0)
    drawn = torch.complex64 if dtype.is_complex else torch.float32
    x, weight, bias = ((10 * torch.randn(s, dtype=drawn)).to(dtype) for s in ((2, 4, 9, 9), (4, 4, 3, 3), 4))
    if dtype == torch.int64:
        x[0, 0, 0, 0] = 2**53 + 1
    ours, torchs = (outcome(lambda call=call: call(x, weight, bias)) for call in CALLS[name])
    if isinstance(torchs, type):
        assert ours is torchs
    else:
        assert ours.dtype == torchs.dtype
        torch.testing.assert_close(ours, torchs, rtol=0, atol=0, equal_nan=True)
