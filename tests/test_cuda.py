"""The CUDA backend on a GPU: kernels against the reference, streams, graphs, devices and errors."""

import pytest
import torch
from cuda_kernels import (
    BEST,
    EACH_STAGES,
    GENERAL,
    MISALIGNED,
    SPECIAL,
    Kernels,
    run_each_kernel,
    special_cases,
)
from hypothesis import given, settings
from test_properties import PHASES, cases, follows_the_reference

from fastcnn import LRN, MaxPool, use_backend
from fastcnn import functional as F
from fastcnn.backends import cuda
from fastcnn.stages import Stages
from fastcnn.testing import assert_close

pytestmark = pytest.mark.skipif(
    cuda.missing_reason() is not None, reason=f"no CUDA backend here: {cuda.missing_reason()}"
)

STAGES = Stages(True, LRN(5, 0.1, k=2.0), MaxPool(3, 2))


@pytest.fixture(autouse=True)
def by_cuda():
    with use_backend("cuda"):
        yield


def block(x, bias=None, stages=STAGES):
    return F.epilogue(x, bias, relu=stages.relu, lrn=stages.lrn, pool=stages.pool, order=stages.order)


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stages", EACH_STAGES.values(), ids=EACH_STAGES)
@pytest.mark.parametrize("kernel_set", [GENERAL, SPECIAL])
def test_each_kernel(kernel_set, stages, dtype, format):
    run_each_kernel(kernel_set, stages, dtype, format, "cuda")


@settings(max_examples=200, deadline=None, phases=PHASES)
@given(cases())
def test_general_kernels_follow_the_reference(case):
    follows_the_reference(Kernels(GENERAL), case, "cuda")


@settings(max_examples=300, deadline=None, phases=PHASES)
@given(special_cases())
def test_special_kernels_follow_the_reference(case):
    follows_the_reference(Kernels(SPECIAL), case, "cuda")


@settings(max_examples=50, deadline=None, phases=PHASES)
@given(special_cases(MISALIGNED))
def test_misaligned_channels_are_not_read_as_vectors(case):
    follows_the_reference(Kernels(BEST), case, "cuda")


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_bits_every_run(dtype, format):
    x = torch.randn(8, 96, 55, 55, device="cuda", dtype=dtype).contiguous(memory_format=format)
    leaves = (x.requires_grad_(), torch.randn(96, device="cuda", dtype=dtype, requires_grad=True))
    grad = torch.randn(8, 96, 27, 27, device="cuda", dtype=dtype).contiguous(memory_format=format)

    def run():
        y = block(*leaves)
        return y, *torch.autograd.grad(y, leaves, grad)

    first = run()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


def test_a_graph_captures_forward_and_backward():
    x = torch.randn(4, 96, 27, 27, device="cuda", requires_grad=True)

    def run():
        y = block(x)
        return y, *torch.autograd.grad(y.sum(), x)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for a, b in zip(captured, run(), strict=True):
        assert torch.equal(a, b)


def test_work_goes_to_the_current_stream():
    x, side = torch.zeros(4, 96, 55, 55, device="cuda"), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        x.fill_(1)
        y = block(x)
    side.synchronize()
    assert_close(y, block(torch.ones_like(x)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_tensors_on_another_device_than_the_current_one():
    x = torch.randn(2, 16, 9, 9, device="cuda:1")
    y = block(x)
    assert y.device == x.device
    assert torch.cuda.current_device() == 0
    assert_close(y, block(x.to("cuda:0")).to(x.device))


def test_nothing_but_the_results_is_allocated():
    x = torch.randn(8, 96, 55, 55, device="cuda")
    y = block(x)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = block(x)
    assert torch.cuda.max_memory_allocated() - before <= y.nbytes + 512


@pytest.mark.parametrize("kernel_set", [GENERAL, SPECIAL])
def test_more_values_than_32_bits_count(kernel_set):
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("needs 20 GiB of the GPU's memory")
    x = torch.ones(1100, 64, 180, 180, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    y, *_ = Kernels(kernel_set).epilogue_forward(x, None, STAGES, save=False)
    few, *_ = Kernels(kernel_set).epilogue_forward(x[:1].clone(), None, STAGES, save=False)
    assert torch.equal(y[-1:], few)


def test_an_extension_without_code_for_the_gpu_says_so(monkeypatch):
    class Native:
        cuda_runs_on = staticmethod(lambda device: False)
        cuda_architectures = staticmethod(lambda: "sm_12")

    monkeypatch.setattr(cuda._native, "load", Native)
    reason = cuda._load(0)
    assert "sm_12" in reason
    assert "CUDAARCHS=" in reason
