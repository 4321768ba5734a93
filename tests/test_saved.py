"""The tensor a block saves for backward: r on the CPU; on a GPU the convolution's output, to recompute r."""

import pytest
import torch

from fastcnn import LRN, MaxPool, _native, use_backend
from fastcnn import functional as F
from fastcnn.backends import cuda
from fastcnn.stages import ORDERS, Stages

NORM, POOL = LRN(5, 0.1, groups=2), MaxPool(3, 2)
ON_HOST = "host" in _native.load().build_info()["cuda"]
BACKENDS = ["reference", *(["cuda"] if ON_HOST else [])]


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """CPU tensors are kept as a GPU's are."""
    rule = Stages.saved_name_in_block
    return lambda: monkeypatch.setattr(Stages, "saved_name_in_block", lambda stages, _: rule(stages, "cuda"))


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    monkeypatch.setattr(cuda, "unsupported_reason", lambda x, stages: None)
    monkeypatch.setattr(cuda, "_where", lambda x: (0, 0))
    with use_backend(request.param):
        yield request.param


@pytest.mark.parametrize(("stages", "cpu", "gpu"), [
    (Stages(), "output", "output"),
    (Stages(True, None, POOL), None, None),
    (Stages(False, None, POOL), None, None),
    (Stages(True, NORM, POOL), "r", "input"),
    (Stages(False, NORM), "r", "input"),
    (Stages(True, NORM, POOL, "pool_lrn"), "r", "r"),
])  # fmt: skip
def test_the_rule(stages, cpu, gpu):
    assert (stages.saved_name_in_block("cpu"), stages.saved_name_in_block("cuda")) == (cpu, gpu)


def leaves(dtype=torch.float32, bias=True):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 9, 8), (16, 3, 3, 3), (16,)
    x, weight, b = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    x = x.contiguous(memory_format=torch.channels_last)
    return [t.requires_grad_() for t in ((x, weight, b) if bias else (x, weight))]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_has_the_same_gradients(as_on_a_gpu, backend, dtype, order, bias, recompute):
    given = leaves(dtype, bias)

    def gradients():
        y = F.conv2d_block(*given, lrn=NORM, pool=POOL, order=order, recompute=recompute)
        return torch.autograd.grad((y * torch.arange(y.numel()).view(y.shape)).sum(), given)

    expected = gradients()
    as_on_a_gpu()
    for found, wanted in zip(gradients(), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("bias", [False, True])
def test_the_same_bytes_and_r_is_not_written(as_on_a_gpu, backend, bias):
    given = leaves(bias=bias)

    def kept():
        y = F.conv2d_block(*given, lrn=NORM, pool=POOL)
        return [t for t in y.grad_fn.saved_tensors if t is not None and t.shape[1:2] == (16,)]

    (r, argmax), convolved = kept(), torch.nn.functional.conv2d(given[0], given[1])
    as_on_a_gpu()
    a, again = kept()
    assert torch.equal(a, convolved)
    assert (a.shape, a.dtype, a.stride()) == (r.shape, r.dtype, r.stride())
    assert torch.equal(argmax, again)


def test_an_epilogue_leaves_its_input_alone(as_on_a_gpu, backend):
    as_on_a_gpu()
    x = torch.randn(2, 16, 9, 8, requires_grad=True)
    a = x * 1
    y = F.epilogue(a, lrn=NORM, pool=POOL)
    a.zero_()  # as it may be after torch's own ReLU
    y.sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_second_derivatives(as_on_a_gpu, order, bias):
    as_on_a_gpu()
    shapes = (1, 2, 5, 6), (4, 2, 3, 3), (4,)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    given = given[: 2 + bias]

    def block(*tensors):
        return F.conv2d_block(*tensors, lrn=NORM, pool=POOL, order=order)

    with use_backend("reference"):
        assert torch.autograd.gradcheck(block, given)
        assert torch.autograd.gradgradcheck(block, given)
