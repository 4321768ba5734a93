"""Tensors of any strides give what contiguous ones give; values round as torch rounds them."""

import pytest
import torch
from torch.nn import functional as TF

from fastcnn import LRN, MaxPool, use_backend
from fastcnn import functional as F
from fastcnn.testing import DTYPES, assert_close, backends, devices

RUNS = [(device, backend) for device in devices() for backend in ["auto", "plain", *backends(device)]]
RUNS = [*dict.fromkeys(RUNS)]
HALVES = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # half of what 1 and its neighbour differ by


@pytest.fixture(params=RUNS, ids=lambda run: "-".join(run))
def device(request):
    device, backend = request.param
    with use_backend(backend):
        yield device


LAYOUTS = {
    "rows and channels exchanged": lambda x: x.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1),
    "images and channels exchanged": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "rows and columns exchanged": lambda x: x.mT.contiguous().mT,
    "every other channel": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "a part of larger rows": lambda x: TF.pad(x, (3, 2))[..., 3:-2],
}
OPS = {
    "conv2d_block": lambda x, weight, bias: F.conv2d_block(
        x, weight, bias, padding=1, lrn=LRN(3, 0.1), pool=MaxPool(3, 2)
    ),
    "epilogue": lambda x, weight, bias: F.epilogue(x, bias, lrn=LRN(3, 0.1), pool=MaxPool(2)),
    "pooling first": lambda x, weight, bias: F.epilogue(
        x, bias, lrn=LRN(3, 0.1), pool=MaxPool(2), order="pool_lrn"
    ),
    "local_response_norm": lambda x, weight, bias: F.local_response_norm(x, 5, 0.1),
    "max_pool2d": lambda x, weight, bias: F.max_pool2d(x, 3, 2, 1),
}
BIASES = {
    "every other value": lambda b: b.repeat_interleave(2)[::2],
    "a column": lambda b: b[:, None].repeat(1, 3)[:, 0],
}


def tensors(device, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = (2, 4, 7, 9), (4, 4, 3, 3), (4,)
    return [torch.randn(shape).to(device, dtype) for shape in shapes]


def outcome(op, *given):
    """The output and the gradients of what the op reads."""
    leaves = [t.detach().requires_grad_() for t in given]
    assert [t.stride() for t in leaves] == [t.stride() for t in given]
    y = op(*leaves)
    grads = torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)
    return [y, *(g for g in grads if g is not None)]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_input_of_other_strides(device, layout, op):
    x, weight, bias = tensors(device)
    other = LAYOUTS[layout](x)
    assert torch.equal(other, x) and other.stride() != x.stride()
    with torch.no_grad():
        assert_close(OPS[op](other, weight, bias), OPS[op](x, weight, bias))
    for ours, expected in zip(
        outcome(OPS[op], other, weight, bias), outcome(OPS[op], x, weight, bias), strict=True
    ):
        assert_close(ours, expected)


@pytest.mark.parametrize("op", ["conv2d_block", "epilogue", "pooling first"])
@pytest.mark.parametrize("kind", BIASES)
def test_a_bias_of_other_strides(device, kind, op):
    x, weight, bias = tensors(device)
    other = BIASES[kind](bias)
    assert torch.equal(other, bias) and other.stride() != bias.stride()
    for ours, expected in zip(
        outcome(OPS[op], x, weight, other), outcome(OPS[op], x, weight, bias), strict=True
    ):
        assert_close(ours, expected)


def test_a_weight_of_other_strides(device):
    x, weight, bias = tensors(device)
    other = weight.mT.contiguous().mT
    with torch.no_grad():
        assert_close(F.conv2d_block(x, other, bias), F.conv2d_block(x, weight, bias))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_halves_round_to_even(device, format, dtype):
    values = torch.arange(1, 2, 2 * HALVES[dtype]).to(dtype)[:128]
    x = torch.stack([values, -values, values.flip(0)]).view(1, 3, 8, 16)
    for columns in (16, 15, 3):  # whole vectors, and what is left over
        part = x[..., :columns].to(device).contiguous(memory_format=format)
        bias = torch.full((3,), HALVES[dtype], dtype=dtype, device=device)
        y = F.epilogue(part, bias, relu=False)
        assert torch.equal(y, part + bias.view(3, 1, 1))  # which torch rounds once, to even
        assert (y != part).any() and (y[:, 0] == part[:, 0]).any()


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.itemsize == 2])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_each_nan_stays_one(device, format, dtype):
    exponent = int(torch.tensor(float("inf"), dtype=dtype).view(torch.int16))
    bits = torch.arange(exponent + 1, 0x8000, dtype=torch.int16)
    bits = torch.cat([bits, bits - 0x8000])
    nans = (
        bits[: len(bits) // 6 * 6].view(dtype).view(1, 3, 2, -1).to(device).contiguous(memory_format=format)
    )
    assert nans.isnan().all()
    bias = torch.zeros(3, dtype=dtype, device=device).requires_grad_()
    x = torch.ones_like(nans).requires_grad_()
    for stages in ({}, {"relu": False}, {"lrn": LRN(3)}, {"pool": MaxPool((1, 2))}):
        assert F.epilogue(nans, bias, **stages).isnan().all()
        y = F.epilogue(x, bias, **stages)
        grads = torch.autograd.grad(y, (x, bias), nans[..., : y.shape[3]])
        assert grads[1].isnan().all() and grads[0].isnan().any()
