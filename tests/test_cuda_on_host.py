"""The CUDA kernels without a GPU: compiled for the host, where sanitizers watch them (`make sanitize`)."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from test_properties import PHASES, cases, check_backward, check_forward, check_offsets

from fastcnn import LRN, MaxPool, _native
from fastcnn.backends import cuda
from fastcnn.stages import Stages

HERE = Path(__file__).parent / "cuda_on_host"
ORDERS = ("forward", "backward", "shuffled")
HEADERS = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
has_headers = pytest.mark.skipif(
    not (HEADERS / "cuda_fp16.h").exists(), reason=f"no CUDA headers in {HEADERS}"
)
on_host = pytest.mark.skipif(
    "host" not in _native.load().build_info()["cuda"], reason="the extension's kernels are not on the host"
)


@pytest.fixture(autouse=True)
def host_for_device(monkeypatch):
    monkeypatch.setattr(cuda, "_where", lambda x: (0, 0))


@on_host
def test_kernels_follow_the_reference():
    @settings(max_examples=300, deadline=None, phases=PHASES)
    @given(cases())
    def check(case):
        (x, bias), stages = case.tensors(), case.stages
        saved = check_forward(cuda, x, bias, stages)
        check_backward(cuda, x, bias, stages, saved, case.generator)
        if stages.pool:
            check_offsets(x, bias, stages, saved[2])

    check()


@on_host
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("order", ["lrn_pool", "pool_lrn"])
def test_the_same_bits_in_any_order_of_threads(monkeypatch, order, format):
    x = torch.randn(3, 16, 33, 21).contiguous(memory_format=format)
    stages = Stages(True, LRN(5, 0.1), MaxPool(3, 2), order)

    def run(threads):
        monkeypatch.setenv("FASTCNN_THREAD_ORDER", threads)
        y, r, offsets = cuda.epilogue_forward(x, x[0, :, 0, 0], stages, save=True)
        return y, r, offsets, *cuda.epilogue_backward(y, r, offsets, stages, x.shape, format, True)

    first, *others = map(run, ORDERS)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Runs the kernel with this bug in it, its threads in this order."""
    program = tmp_path_factory.mktemp("planted") / "planted"
    flags = ["-std=c++17", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    includes = [f"-I{HERE}", "-isystem", HEADERS]
    subprocess.run(["g++", *flags, *includes, HERE / "planted.cpp", "-o", program], check=True)

    def run(bug, order="forward"):
        env = {"FASTCNN_THREAD_ORDER": order, "ASAN_OPTIONS": "detect_leaks=0"}
        return subprocess.run([program, str(bug)], env=env, capture_output=True, text=True)

    return run


@has_headers
def test_without_a_bug_every_order_gives_the_sum(planted):
    values = [i % 17 for i in range(1000)]
    sums = [sum(values[max(0, i - 1) : i + 2]) for i in range(1000)]
    expected = float(sum(s * (i + 1) for i, s in enumerate(sums)))
    assert [float(planted(0, order).stdout) for order in ORDERS] == [expected] * 3


@has_headers
def test_a_halo_one_short_gives_another_sum(planted):
    assert planted(1).stdout != planted(0).stdout


@has_headers
def test_a_missing_barrier_gives_other_bits_in_another_order(planted):
    assert len({planted(2, order).stdout for order in ORDERS}) > 1


@has_headers
@pytest.mark.parametrize("bug", [3, 4])
def test_an_access_past_the_end_is_an_error(planted, bug):
    result = planted(bug)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
