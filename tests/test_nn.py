"""The layers: torch.nn's arguments, repr and errors; and our own block's messages."""

import copy
import pickle

import pytest
import torch
from torch import nn

import fastcnn
from fastcnn import LRN, MaxPool
from fastcnn import functional as F
from fastcnn.testing import assert_close

DROP_INS = [
    ("LocalResponseNorm", (5,), {}),
    ("LocalResponseNorm", (4, 1e-3, 0.5, 2.0), {}),
    ("LocalResponseNorm", (), {"size": 3, "k": 2.0, "alpha": 0.1}),
    ("MaxPool2d", (3,), {}),
    ("MaxPool2d", (3, 2, 1), {"ceil_mode": True}),
    ("MaxPool2d", ((3, 2), (2, 1), (1, 0), (1, 2)), {}),
    ("MaxPool2d", (2,), {"return_indices": True}),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), DROP_INS)
def test_drop_ins(name, args, kwargs):
    ours = getattr(fastcnn.nn, name)(*args, **kwargs)
    theirs = getattr(nn, name)(*args, **kwargs)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, type(theirs))
    x = torch.randn(2, 8, 13, 14)
    a, b = ours(x), theirs(x)
    if kwargs.get("return_indices"):
        assert torch.equal(a[1], b[1])
        assert torch.equal(nn.MaxUnpool2d(2)(*a), nn.MaxUnpool2d(2)(*b))
        a, b = a[0], b[0]
    assert_close(a, b)


def test_local_response_norm_takes_any_dimensions():
    norm = nn.LocalResponseNorm(3, 0.5)
    for shape in [(2, 5, 7), (2, 5, 3, 4), (2, 5, 3, 4, 2), (2, 5, 1, 2, 3, 2)]:
        x = torch.randn(shape)
        assert_close(F.local_response_norm(x, 3, 0.5), norm(x))
    last = torch.randn(2, 5, 3, 4, 2).contiguous(memory_format=torch.channels_last_3d)
    assert_close(F.local_response_norm(last, 3, 0.5), norm(last))


def block():
    return fastcnn.nn.ConvBlock2d(3, 8, 3, 2, 1, lrn=LRN(groups=2), pool=MaxPool(3, 2))


def test_block_has_the_parameters_of_conv2d():
    assert {k: v.shape for k, v in block().state_dict().items()} == {
        k: v.shape for k, v in nn.Conv2d(3, 8, 3).state_dict().items()
    }
    assert fastcnn.nn.ConvBlock2d(3, 8, 3, bias=False).bias is None


def test_block_survives_copying_pickling_and_moving():
    layer, x = block(), torch.randn(2, 3, 17, 17)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        assert repr(other) == repr(layer)
    assert layer.double()(x.double()).dtype == torch.float64
    assert layer.to("meta")(x.double().to("meta")).shape == (2, 8, 4, 4)


BAD = [
    (lambda x: F.epilogue(x, torch.zeros(3)), RuntimeError, r"bias .*4 elements.*\[3\]"),
    (lambda x: F.epilogue(x, torch.zeros(4, dtype=torch.half)), RuntimeError, "bias .*float16"),
    (lambda x: F.epilogue(x, lrn=LRN(groups=3)), RuntimeError, "groups=3"),
    (lambda x: F.epilogue(x, lrn=5), TypeError, "lrn .*5"),
    (lambda x: F.epilogue(x.tolist()), TypeError, "input must be a Tensor, .* list and NoneType"),
    (lambda x: F.epilogue(x, [1.0]), TypeError, "bias one or None, but got Tensor and list"),
    (lambda x: F.max_pool2d(x.tolist(), 2), TypeError, "'input' .* must be Tensor, not list"),
    (lambda x: fastcnn.models.lenet5()(x.tolist()), TypeError, "lenet5.* must be a Tensor, but got list"),
    (lambda x: F.epilogue(x, pool=(3, 2)), TypeError, r"pool .*\(3, 2\)"),
    (lambda x: F.epilogue(x, order="sideways"), ValueError, "order .*'sideways'"),
    (lambda x: F.epilogue(x[None]), RuntimeError, r"\(1, 2, 4, 9, 9\)"),
    (lambda x: F.epilogue(x, pool=MaxPool(10)), RuntimeError, "9x9 .*too small"),
    (lambda x: F.local_response_norm(x, 0), RuntimeError, "size .*0"),
    (lambda x: F.local_response_norm(x, 2.5), TypeError, "size .*2.5"),
    (lambda x: F.local_response_norm(x[0, 0], 5), ValueError, "got 2 dimensions"),
    (lambda x: F.max_pool2d(x, 0), RuntimeError, r"kernel_size .*\(0, 0\)"),
    (lambda x: F.max_pool2d(x, 3, 0), RuntimeError, r"stride .*\(0, 0\)"),
    (lambda x: F.max_pool2d(x, 3, 1, 2), RuntimeError, r"padding=\(2, 2\)"),
    (lambda x: F.max_pool2d(x, 3, dilation=0), RuntimeError, r"dilation .*\(0, 0\)"),
    (lambda x: F.max_pool2d(x, 1.5), TypeError, "kernel_size .*1.5"),
    (lambda x: F.max_pool2d(x, (2, 2, 2)), RuntimeError, r"kernel_size .*\(2, 2, 2\)"),
    (lambda x: F.max_pool2d(x[0, 0], 2), RuntimeError, r"\(9, 9\)"),
    (lambda x: F.conv2d_block(x, torch.zeros(4, 3, 3, 3)), RuntimeError, "channels"),
    (lambda x: F.conv2d_block(x, torch.zeros(4, 4, 3, 3), torch.zeros(5)), RuntimeError, r"\[5\]"),
    (lambda x: F.conv2d_block(x, torch.zeros(4, 4, 3, 3), padding="some"), RuntimeError, "'some'"),
    (lambda x: F.conv2d_block(x, torch.zeros(4, 4, 3, 3).half()), RuntimeError, "type|dtype"),
    (lambda x: F.conv2d_block(x.half(), torch.zeros(4, 4, 3, 3)), RuntimeError, "type|dtype"),
    (
        lambda x: F.conv2d_block(x, torch.zeros(4, 4, 3, 3), stride=(1, 1, 1)),
        RuntimeError,
        "stride",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_errors_name_the_argument_and_its_value(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(2, 4, 9, 9))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_few_pooled_values_are_not_summed_in_half_precision(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 9).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, wide = F.max_pool2d(x, 3, 1), torch.nn.functional.max_pool2d(exact, 3, 1)
    grad = torch.randn(y.shape).to(dtype)
    (ours,), (wanted,) = torch.autograd.grad(y, x, grad), torch.autograd.grad(wide, exact, grad.double())
    assert torch.equal(ours, wanted.to(dtype))


def test_few_values_pooled_by_a_window_in_the_padding_alone_have_gradients_of_zero():
    x = torch.ones(1, 1, 1, 1, requires_grad=True)
    y = F.max_pool2d(x, 2, 1, 1, 2)  # its places are -1 and 1
    assert y.item() == float("-inf")
    assert torch.autograd.grad(y.sum(), x)[0].item() == 0
