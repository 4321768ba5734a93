"""The CUDA kernels without a GPU: compiled for the host, where sanitizers watch them (`make sanitize`)."""

import inspect
import os
import subprocess
from pathlib import Path

import pytest
import test_epilogue
import torch
from cuda_kernels import (
    BEST,
    EACH_STAGES,
    GENERAL,
    SPECIAL,
    Kernels,
    follows_the_reference,
    run_each_kernel,
    special_cases,
)
from hypothesis import given, settings
from test_properties import PHASES, cases

from fastcnn import LRN, MaxPool, _native, use_backend
from fastcnn.backends import cuda
from fastcnn.stages import ORDERS, Stages

HERE = Path(__file__).parent / "cuda_on_host"
# test_epilogue.py once more, with this file's device.
globals().update({
    name: test
    for name, test in vars(test_epilogue).items()
    if name.startswith("test_") and "device" in inspect.signature(test).parameters
})  # fmt: skip

THREAD_ORDERS = ("forward", "backward", "shuffled")
HEADERS = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
has_headers = pytest.mark.skipif(
    not (HEADERS / "cuda_fp16.h").exists(), reason=f"no CUDA headers in {HEADERS}"
)
on_host = pytest.mark.skipif(
    "host" not in _native.load().build_info()["cuda"], reason="the extension's kernels are not on the host"
)


@pytest.fixture(autouse=True, scope="module")
def host_for_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_where", lambda x: (0, 0))
        yield


@pytest.fixture(params=[GENERAL, BEST], ids=["general", "best"])
def device(request, monkeypatch):
    if "host" not in _native.load().build_info()["cuda"]:
        pytest.skip("the extension's kernels are not on the host")
    monkeypatch.setattr(cuda, "unsupported_reason", lambda x, stages: None)
    with Kernels(request.param).chosen(), use_backend("cuda"):
        yield "cpu"


@on_host
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stages", EACH_STAGES.values(), ids=EACH_STAGES)
@pytest.mark.parametrize("variant", [GENERAL, SPECIAL])
def test_each_kernel(variant, stages, dtype, format):
    run_each_kernel(variant, stages, dtype, format, "cpu")


@on_host
@settings(max_examples=300, deadline=None, phases=PHASES)
@given(cases())
def test_general_kernels_follow_the_reference(case):
    follows_the_reference(case, GENERAL, "cpu")


@on_host
@settings(max_examples=300, deadline=None, phases=PHASES)
@given(special_cases())
def test_special_kernels_follow_the_reference(case):
    follows_the_reference(case, SPECIAL, "cpu")


@on_host
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", [GENERAL, SPECIAL])
def test_the_same_bits_in_any_order_of_threads(monkeypatch, variant, order, format):
    x = torch.randn(3, 16, 33, 21).contiguous(memory_format=format)
    stages = Stages(True, LRN(5, 0.1), MaxPool(3, 2), order)
    kernels = Kernels(variant)

    def run(threads):
        monkeypatch.setenv("FASTCNN_THREAD_ORDER", threads)
        y, r, offsets = kernels.epilogue_forward(x, x[0, :, 0, 0], stages, save=True)
        return y, r, offsets, *kernels.epilogue_backward(y, r, offsets, stages, x.shape, format, True)

    first, *others = map(run, THREAD_ORDERS)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@on_host
@pytest.mark.parametrize("order", ORDERS)
def test_a_block_in_chunks_gives_the_same_bits(monkeypatch, order):
    x, weight = torch.randn(5, 3, 33, 31), torch.randn(16, 3, 5, 5)
    args = (
        x,
        weight,
        torch.randn(16),
        ((2, 2), (0, 0), (1, 1), 1),
        Stages(True, LRN(), MaxPool(3, 2), order),
    )
    whole = cuda.conv_block_forward(*args, save=True)
    for images in (1, 2, 3):
        monkeypatch.setattr(cuda, "_chunk_bytes", lambda _, images=images: images * 4 * 16 * 15 * 14)
        parts = cuda.conv_block_forward(*args, save=True)
        assert all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True)), images


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
    assert [float(planted(0, order).stdout) for order in THREAD_ORDERS] == [expected] * 3


@has_headers
def test_a_halo_one_short_gives_another_sum(planted):
    assert planted(1).stdout != planted(0).stdout


@has_headers
def test_a_missing_barrier_gives_other_bits_in_another_order(planted):
    assert len({planted(2, order).stdout for order in THREAD_ORDERS}) > 1


@has_headers
@pytest.mark.parametrize("bug", [3, 4])
def test_an_access_past_the_end_is_an_error(planted, bug):
    result = planted(bug)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
