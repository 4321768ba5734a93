"""The backend ``plain``: torch's bits, with no operation more than plain layers; all that autograd can do."""

import functools

import counting
import pytest
import torch
from functorch.compile import make_boxed_compiler
from torch._dynamo.backends.common import aot_autograd

import fastcnn
from fastcnn import LRN, MaxPool
from fastcnn import functional as F
from fastcnn.backends import plain
from fastcnn.testing import assert_close

STAGES = list(counting.combinations())
names = pytest.mark.parametrize("stages", STAGES, ids=lambda stages: stages.name)


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_operation_and_no_byte_more_than_plain_layers(stages, dtype):
    ours, theirs = (counting.counts(run, stages, dtype) for run in (counting.by_plain, counting.by_layers))
    for (operations, moved), (most, most_moved) in zip(ours, theirs, strict=True):
        assert operations <= most
        assert moved <= most_moved


@names
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_bits_of_plain_layers(stages, dtype, format):
    x, weight, bias = counting.leaves(dtype)
    x = x.detach().contiguous(memory_format=format).requires_grad_()
    y, expected = (run(stages, x, weight, bias) for run in (counting.by_plain, counting.by_layers))
    assert torch.equal(y, expected)
    grads, expected = (
        torch.autograd.grad(t.float().square().sum(), (x, weight, bias)) for t in (y, expected)
    )
    for actual, wanted in zip(grads, expected, strict=True):
        assert_close(actual, wanted, factor=10)  # of sums in another order


@pytest.mark.parametrize("shape", [(2, 6, 5, 4), (6, 5, 4), (0, 6, 5, 4), (2, 6, 1, 1)])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 13])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_local_response_norm(shape, size, dtype):
    x = torch.randn(shape, dtype=dtype)
    batch = x if x.dim() == 4 else x[None]
    y = plain.local_response_norm(x, LRN(size, 0.1, 0.6, 2.0))
    expected = torch.nn.functional.local_response_norm(batch, size, 0.1, 0.6, 2.0)
    assert torch.equal(y, expected.view(shape))


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_groups_cost_no_copy_and_keep_the_format(format):
    x = torch.randn(2, 6, 5, 4).contiguous(memory_format=format)
    with counting.Count() as grouped:
        y = plain.local_response_norm(x, LRN(3, 0.1, groups=2))
    with counting.Count() as whole:
        plain.local_response_norm(x, LRN(3, 0.1))
    assert len(grouped.operations) == len(whole.operations)
    assert y.is_contiguous(memory_format=format)


def test_half_precision_does_not_overflow():
    x = torch.full((1, 8, 2, 2), 300.0, dtype=torch.float16)
    y = plain.local_response_norm(x, LRN())
    assert_close(y, plain.local_response_norm(x.double(), LRN()).half())
    assert (y > 0).all()


def block(*tensors, **options):
    with fastcnn.use_backend("plain"):
        return F.conv2d_block(*tensors, lrn=LRN(3, 0.1), pool=MaxPool(3, 2), **options)


def test_recompute_keeps_the_inputs_alone():
    tensors = counting.leaves(torch.float64)
    parameters = [t.untyped_storage().data_ptr() for t in tensors]
    kept = []

    def pack(t):
        kept.append(t.untyped_storage().data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = block(*tensors, recompute=True)
    assert set(kept) <= {*parameters, 0}  # 0: an empty tensor's, as torch 2.11 keeps
    plainly = block(*tensors)
    assert torch.equal(y, plainly)
    for a, b in zip(*(torch.autograd.grad(t.sum(), tensors) for t in (y, plainly)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_compiled_block_holds_torchs_own_operations(recompute):
    seen = []

    def look(module, inputs):
        seen.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return module

    tensors = counting.leaves(torch.float32)
    run = functools.partial(block, recompute=recompute)
    y = torch.compile(run, backend=aot_autograd(fw_compiler=make_boxed_compiler(look)))(*tensors)
    expected = block(*tensors)
    assert_close(y, expected)
    assert not [name for name in seen if name.startswith("fastcnn")]
    for a, b in zip(*(torch.autograd.grad(t.sum(), tensors) for t in (y, expected)), strict=True):
        assert_close(a, b, factor=10)


def test_autocast_takes_the_block_to_its_dtype_and_leaves_the_epilogues():
    x, weight, bias = counting.leaves(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x, weight, bias)
        with fastcnn.use_backend("plain"):
            after = F.epilogue(x, x[0, :, 0, 0])
    assert y.dtype == torch.bfloat16
    assert after.dtype == torch.float32
    y.float().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32


def test_what_plain_layers_refuse_is_refused():
    x, weight, bias = counting.leaves(torch.float32)
    with fastcnn.use_backend("plain"):
        with pytest.raises(RuntimeError, match="divisible by LRN groups=3"):
            F.conv2d_block(x, weight, bias, lrn=LRN(groups=3))
        with pytest.raises(RuntimeError, match="too small"):
            F.epilogue(x, pool=MaxPool(31))
        with pytest.raises(RuntimeError, match="bias"):
            F.epilogue(x, torch.ones(3))
