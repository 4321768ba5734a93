"""The choice of ``auto`` where kernels must earn trust first, on a device double: the CPU and its backend."""

import os
import stat
import subprocess
import sys
import threading
import warnings

import pytest
import torch

import fastcnn
from fastcnn import LRN, MaxPool, _native, backends, cli
from fastcnn import functional as F
from fastcnn.backends import cpu, cuda, plain, triton, trust
from fastcnn.backends._space_to_depth import by_torch, space_to_depth
from fastcnn.stages import Stages, memory_format

STAGES = Stages(lrn=LRN(5, 0.1, k=2.0), pool=MaxPool(3, 2))
X = torch.randn(2, 16, 9, 9)


def needs_trust(x, stages, weight):
    """cuda's rule, but for what only its own kernels know."""
    channels = x.shape[1] if weight is None else weight.shape[0]
    return trust.epilogue_reason("cpu", x.device, stages, x.dtype, memory_format(x), channels)


@pytest.fixture(autouse=True)
def double(kernels_of_ours, monkeypatch, tmp_path):
    """A device whose kernels nobody knows yet, with a cache of its own."""
    monkeypatch.setattr(cpu, "declined_reason", needs_trust)
    monkeypatch.setattr(cpu, "sources", lambda: "abc", raising=False)
    monkeypatch.setattr(trust, "_verdicts", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastcnn"


@pytest.fixture
def checks(monkeypatch):
    """How often kernels were checked."""
    made, failure = [], trust._failure
    monkeypatch.setattr(trust, "_failure", lambda check: made.append(check) or failure(check))
    return made


@pytest.fixture
def wrong(monkeypatch):
    """A kernel with one channel's bias gradient a tenth too large."""
    backward = cpu.epilogue_backward

    def planted(*args):
        grad_x, grad_bias = backward(*args)
        if grad_bias is not None:
            grad_bias[3] *= 1.1
        return grad_x, grad_bias

    monkeypatch.setattr(cpu, "epilogue_backward", planted)


def forget():
    trust._verdicts.clear()


def run(x=X):
    return F.epilogue(x, lrn=STAGES.lrn, pool=STAGES.pool)


def test_right_kernels_are_checked_once_and_taken(checks):
    assert backends.choose(X, STAGES) is cpu
    run()
    assert backends.choose(X.double().float(), STAGES) is cpu
    assert len(checks) == 1
    assert list(trust.verdicts().values()) == [None]


def test_each_family_dtype_and_layout_is_checked(checks):
    for x in (X, X.bfloat16(), X.contiguous(memory_format=torch.channels_last)):
        assert backends.choose(x, STAGES) is cpu
        assert backends.choose(x, Stages()) is cpu
    assert len(checks) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_wrong_kernels_are_left_with_one_warning_and_the_reason(wrong, checks, dtype):
    x = X.to(dtype).requires_grad_()
    bias = torch.zeros(16, dtype=dtype, requires_grad=True)
    with pytest.warns(RuntimeWarning, match="bias gradient is off"):
        assert backends.choose(x, STAGES) is plain
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = F.epilogue(x, bias, lrn=STAGES.lrn, pool=STAGES.pool)
    expected = plain.epilogue(x, bias, STAGES)
    assert torch.equal(y, expected)
    for a, b in zip(*(torch.autograd.grad(t.float().sum(), (x, bias)) for t in (y, expected)), strict=True):
        assert torch.equal(a, b)
    assert len(checks) == 1
    assert "bias gradient" in next(iter(trust.verdicts().values()))


def test_kernels_that_raise_are_left(monkeypatch, double):
    def broken(*args, **kwargs):
        raise RuntimeError("cudaErrorIllegalInstruction")

    monkeypatch.setattr(cpu, "epilogue_forward", broken)
    with pytest.warns(RuntimeWarning, match="cudaErrorIllegalInstruction"):
        assert torch.equal(run(), plain.epilogue(X, None, STAGES))
    assert not double.exists()


def test_by_name_they_run_all_the_same(wrong):
    with fastcnn.use_backend("cpu"):
        assert backends.choose(X, STAGES) is cpu
    assert trust.verdicts() == {}


def test_info_says_what_is_wrong(wrong, capsys):
    with pytest.warns(RuntimeWarning):
        assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out
    assert "auto on cpu: plain\n" in lines
    assert (
        "relu, lrn, pool 3/2, bfloat16, channels_last: AssertionError: the bias gradient is off by" in lines
    )


def test_a_success_is_kept_on_disk(checks, double):
    run()
    assert len(list(double.iterdir())) == 1
    forget()
    run()
    assert len(checks) == 1


def test_a_failure_is_not(wrong, checks):
    for _ in range(2):
        with pytest.warns(RuntimeWarning):
            run()
        forget()
    assert len(checks) == 2


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"cpu on another device", None])
def test_a_damaged_file_costs_a_check(checks, double, content):
    run()
    (path,) = double.iterdir()
    path.unlink() if content is None else path.write_bytes(content)
    if content is None:
        path.mkdir()
    forget()
    run()
    assert len(checks) == 2
    assert backends.choose(X, STAGES) is cpu


@pytest.mark.parametrize("home", ["a file", "read-only"])
def test_without_a_folder_to_write_to_it_is_checked_each_time(monkeypatch, checks, tmp_path, home):
    folder = tmp_path / "home"
    folder.write_text("") if home == "a file" else folder.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    for count in (1, 2):
        assert backends.choose(X, STAGES) is cpu
        forget()
        if home == "a file" or os.geteuid():  # root may write anywhere
            assert len(checks) == count


def test_no_check_while_a_graph_is_captured(monkeypatch, checks):
    monkeypatch.setattr(trust, "_capturing", lambda device: True)
    assert backends.choose(X, STAGES) is plain
    assert "captured" in backends.automatic(X, STAGES)[1]["cpu"]
    monkeypatch.setattr(trust, "_capturing", lambda device: False)
    assert backends.choose(X, STAGES) is cpu
    monkeypatch.setattr(trust, "_capturing", lambda device: True)
    assert backends.choose(X, STAGES) is cpu
    assert len(checks) == 1


def test_threads_that_ask_at_once_check_once(checks):
    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(checks) == 1


PROCESS = """
import sys
sys.path.insert(0, {tests!r})
import torch
from test_trust import X, needs_trust, STAGES
from fastcnn.backends import choose, cpu
cpu.declined_reason, cpu.sources = needs_trust, lambda: "abc"
assert choose(X, STAGES) is cpu
"""


def test_two_processes_at_once(checks, double):
    code = PROCESS.format(tests=os.path.dirname(__file__))
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    run()
    assert checks == []


def test_compiling_checks_real_tensors(checks):
    torch.compiler.reset()
    x = X.clone().requires_grad_()
    y = torch.compile(run, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(y, run())
    assert len(checks) == 1
    assert list(trust.verdicts().values()) == [None]


def test_the_caller_is_left_as_it_was(checks):
    state = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        run()
        assert torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert list(trust.verdicts().values()) == [None]


def test_results_of_a_device_stand_for_its_like(monkeypatch, checks, tmp_path):
    results = tmp_path / "trusted.json"
    results.write_text('[{"compute capability": "9.0", "sources": "abc"}]')
    monkeypatch.setattr(trust, "_RESULTS", results)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu = torch.device("cuda", 0)
    for sources, vouched in (("abc", True), ("changed since", False)):
        trust.vouched_for.cache_clear()
        assert trust.vouched_for(gpu, sources) is vouched
    trust.vouched_for.cache_clear()


has_cuda = pytest.mark.skipif(
    not hasattr(_native.load(), "cuda_is_special"), reason="the extension was built without CUDA"
)
LAST = torch.channels_last


@has_cuda
@pytest.mark.parametrize(("x", "stages", "weight", "special"), [
    (torch.empty(2, 16, 9, 9), STAGES, None, True),
    (torch.empty(2, 15, 9, 9), STAGES, None, True),
    (torch.empty(2, 16, 9, 9).to(memory_format=LAST), STAGES, None, True),
    (torch.empty(2, 15, 9, 9).to(memory_format=LAST), STAGES, None, False),
    (torch.empty(2, 24, 9, 9).to(memory_format=LAST)[:, 8:], STAGES, None, True),
    (torch.empty(2, 18, 9, 9).to(memory_format=LAST)[:, 2:], STAGES, None, False),
    (torch.empty(2, 16, 9, 9, dtype=torch.float64), STAGES, None, False),
    (torch.empty(2, 16, 9, 9), Stages(lrn=LRN(3)), None, False),
    (torch.empty(2, 16, 9, 9), Stages(pool=MaxPool(3, 1)), None, False),
    (torch.empty(2, 16, 9, 9), Stages(lrn=LRN(5, groups=3)), None, False),
    (torch.empty(2, 3, 9, 9), STAGES, torch.empty(15, 3, 3, 3), True),
    (torch.empty(2, 3, 9, 9).to(memory_format=LAST), STAGES, torch.empty(15, 3, 3, 3), False),
    (torch.empty(2, 3, 9, 9).to(memory_format=LAST), STAGES, torch.empty(16, 3, 3, 3), True),
])  # fmt: skip
def test_general_cuda_kernels_run_by_name_alone(monkeypatch, x, stages, weight, special):
    asked = []
    monkeypatch.setattr(trust, "epilogue_reason", lambda *kernels: asked.append(kernels))
    reason = cuda.declined_reason(x, stages, weight)
    assert (reason is None) == special == bool(asked)
    if special:
        assert asked[0][4] == (LAST if x.stride(1) == 1 else torch.contiguous_format)


@pytest.mark.parametrize(("x", "stages", "weight", "fast"), [
    (torch.empty(2, 16, 9, 9).to(memory_format=LAST), STAGES, None, True),
    (torch.empty(2, 15, 9, 9).to(memory_format=LAST), STAGES, None, True),
    (torch.empty(2, 24, 9, 9).to(memory_format=LAST)[:, 8:], STAGES, None, True),
    (torch.empty(2, 16, 1, 1).expand(2, 16, 9, 9), STAGES, None, True),  # a gradient
    (torch.empty(2, 16, 9, 9, dtype=torch.float64), STAGES, None, False),
    (torch.empty(2, 16, 9, 9).to(memory_format=LAST), Stages(lrn=LRN(7)), None, False),
    (torch.empty(2, 16, 9, 9).to(memory_format=LAST), Stages(lrn=LRN(5, groups=3)), None, False),
    (torch.empty(2, 16, 9, 9).to(memory_format=LAST), Stages(pool=MaxPool(3, 2)), None, False),
    (torch.empty(2, 3, 9, 9), STAGES, torch.empty(16, 3, 3, 3).to(memory_format=LAST), True),
])  # fmt: skip
def test_auto_takes_tritons_fast_kernels_where_plain_torch_has_an_lrn(monkeypatch, x, stages, weight, fast):
    pytest.importorskip("triton")
    asked = []
    monkeypatch.setattr(trust, "epilogue_reason", lambda *kernels: asked.append(kernels))
    reason = triton.declined_reason(x, stages, weight)
    assert (reason is None) == fast == bool(asked)


def test_triton_is_not_compiled_while_a_graph_is_captured(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(trust, "epilogue_reason", lambda *kernels: None)
    monkeypatch.setattr(triton, "_capturing", lambda x: True)
    monkeypatch.setattr(triton, "_launched", set())
    assert "run it once before" in triton.declined_reason(X, STAGES, None)
    triton._launched.add((X.device, STAGES, X.dtype, X.shape[1]))
    assert triton.declined_reason(X, STAGES, None) is None


def test_a_wrong_copy_kernel_is_left_to_torch(monkeypatch):
    calls = []

    def planted(x, side, padding):
        calls.append(1)
        return by_torch(x, side, padding) + 1

    monkeypatch.setattr(cuda, "unsupported_reason", lambda x, stages: None)
    monkeypatch.setattr(cuda, "space_to_depth", planted)
    with pytest.warns(RuntimeWarning, match="space to depth, 4 x 4 of 4 bytes"):
        y = space_to_depth(X[..., :8, :8], 4)
    assert torch.equal(y, by_torch(X[..., :8, :8], 4, (0, 0, 0, 0)))
    assert calls == [1]
    monkeypatch.setattr(cuda, "space_to_depth", by_torch)
    assert not cuda.copies(X, 4)  # its verdict stands
    assert cuda.copies(X, 2)


@pytest.mark.parametrize(("shape", "stages", "capturing", "ours"), [
    ((128, 6, 28, 28), Stages(pool=MaxPool(3, 2)), False, False),  # LeNet-5's first block, of 128 images
    ((128, 6, 28, 28), Stages(pool=MaxPool(3, 2)), True, True),  # a graph's replay needs no Python
    ((1, 96, 55, 55), Stages(lrn=LRN(5), pool=MaxPool(3, 2)), False, True),
    ((256, 256, 13, 13), Stages(pool=MaxPool(3, 2)), False, True),  # AlexNet-2012's last, of 256
])  # fmt: skip
def test_little_without_an_lrn_is_left_to_torch(monkeypatch, shape, stages, capturing, ours):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    x = torch.empty(shape, device="meta")
    assert (cuda.slower_reason(x, stages, None) is None) is ours
    images, weight = torch.empty(shape[0], 3, *shape[2:], device="meta"), torch.empty(shape[1], 3, 3, 3)
    conv = (1, 1), (1, 1), (1, 1), 1
    assert (cuda.slower_reason(images, stages, weight, conv) is None) is ours
