"""The CUDA kernels without a GPU: compiled for the host, where sanitizers watch them (`make sanitize`)."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_epilogue
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

from fastcnn import LRN, MaxPool, _native, use_backend
from fastcnn.backends import cuda, reference
from fastcnn.stages import ORDERS, Stages

HERE = Path(__file__).parent / "cuda_on_host"
# test_epilogue.py once more, with this file's device.
globals().update({
    name: test
    for name, test in vars(test_epilogue).items()
    if name.startswith("test_") and "device" in inspect.signature(test).parameters
})  # fmt: skip

RUN_ORDERS = ("forward", "backward", "shuffled")
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
@pytest.mark.parametrize("kernel_set", [GENERAL, SPECIAL])
def test_each_kernel(kernel_set, stages, dtype, format):
    run_each_kernel(kernel_set, stages, dtype, format, "cpu")


@on_host
@settings(max_examples=120, deadline=None, phases=PHASES)
@given(cases())
def test_general_kernels_follow_the_reference(case):
    follows_the_reference(Kernels(GENERAL), case, "cpu")


@on_host
@settings(max_examples=300, deadline=None, phases=PHASES)
@given(special_cases())
def test_special_kernels_follow_the_reference(case):
    follows_the_reference(Kernels(SPECIAL), case, "cpu")


@on_host
@settings(max_examples=30, deadline=None, phases=PHASES)
@given(special_cases(MISALIGNED))
def test_misaligned_channels_are_not_read_as_vectors(case):
    follows_the_reference(Kernels(BEST), case, "cpu")


@on_host
def test_a_misaligned_bias_is_not_read_as_vectors():
    x, bias = torch.randn(2, 16, 5, 7).contiguous(memory_format=torch.channels_last), torch.randn(17)[1:]
    y, *_ = Kernels(BEST).epilogue_forward(x, bias, Stages(), save=False)
    expected, *_ = reference.epilogue_forward(x, bias, Stages(), save=False)
    assert torch.equal(y, expected)


@on_host
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel_set", [GENERAL, SPECIAL])
def test_the_same_bits_in_any_order_of_blocks_and_threads(monkeypatch, kernel_set, order, format):
    x = torch.randn(3, 16, 33, 21).contiguous(memory_format=format)
    stages = Stages(True, LRN(5, 0.1), MaxPool(3, 2), order)
    kernels = Kernels(kernel_set)

    def run(turns):
        monkeypatch.setenv("FASTCNN_HOST_ORDER", turns)
        y, r, argmax = kernels.epilogue_forward(x, x[0, :, 0, 0], stages, save=True)
        return y, r, argmax, *kernels.epilogue_backward(y, r, argmax, stages, x.shape, format, True)

    first, *others = map(run, RUN_ORDERS)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@on_host
def test_a_launch_goes_to_the_tensors_device_whichever_was_current():
    native = _native.load()
    x, bias = torch.randn(2, 16, 5, 7), torch.zeros(16)
    args = (x, torch.empty_like(x), None, None)
    forward = cuda.params(*args, None, Stages(), torch.contiguous_format)
    backward = cuda.params(*args, bias, Stages(relu=False), torch.contiguous_format)
    sums = torch.empty(16 * native.cuda_bias_parts(backward), dtype=torch.float64)

    def devices():
        return native.build_info()["cuda"].partition("; ")[2]

    for device in (0, 1):
        native.cuda_epilogue_forward(forward, device, 0)
        assert devices() == f"current device {device}, last launch on {device}"
        native.cuda_epilogue_backward(backward, 1 - device, 0, sums.data_ptr())
        assert devices() == f"current device {1 - device}, last launch on {1 - device}"

    forward.kernel_set = 2
    with pytest.raises(ValueError, match="kernel_set"):
        native.cuda_epilogue_forward(forward, 1, 0)
    with pytest.raises(RuntimeError, match="cudaErrorInvalidDevice"):
        native.cuda_epilogue_forward(forward, 2, 0)
    assert devices() == "current device 1, last launch on 0"
    forward.kernel_set = BEST
    native.cuda_epilogue_forward(forward, 0, 0)  # isn't blamed for what went wrong before


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Runs planted with these arguments, blocks and threads in this order."""
    program = tmp_path_factory.mktemp("planted") / "planted"
    flags = ["-std=c++17", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    includes = ["-DFASTCNN_CUDA_ON_HOST", f"-I{HERE}", "-isystem", HEADERS]
    sources = [HERE / "planted.cpp", HERE / "device.cpp"]
    subprocess.run(["g++", *flags, *includes, *sources, "-o", program], check=True)

    def run(*args, order="forward"):
        env = {"FASTCNN_HOST_ORDER": order, "ASAN_OPTIONS": "detect_leaks=0"}
        return subprocess.run([program, *map(str, args)], env=env, capture_output=True, text=True)

    return run


@has_headers
def test_without_a_bug_every_order_gives_the_sum(planted):
    values = [i % 17 for i in range(1000)]
    sums = [sum(values[max(0, i - 1) : i + 2]) for i in range(1000)]
    expected = sum(s * (i + 1) for i, s in enumerate(sums))
    assert [planted(0, order=order).stdout for order in RUN_ORDERS] == [f"{expected} cudaSuccess\n"] * 3


@has_headers
def test_a_halo_one_short_gives_another_sum(planted):
    assert planted(1).stdout != planted(0).stdout


@has_headers
@pytest.mark.parametrize(
    "bug", [2, 4, 8], ids=["another block's shared memory", "no barrier", "another block's result"]
)
def test_a_race_gives_other_bits_in_another_order(planted, bug):
    assert len({planted(bug, order=order).stdout for order in RUN_ORDERS}) > 1


@has_headers
def test_a_barrier_that_not_all_threads_come_to_is_an_error(planted):
    assert planted(3).stdout.endswith("cudaErrorLaunchTimeout\n")


@has_headers
def test_what_shared_memory_holds_before_a_store_is_no_number(planted):
    assert "nan" in planted(5).stdout


@has_headers
@pytest.mark.parametrize("bug", [6, 7])
def test_an_access_past_the_end_is_an_error(planted, bug):
    result = planted(bug)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr


@has_headers
def test_a_misaligned_vector_is_an_error(planted):
    result = planted(9)
    assert result.returncode != 0
    assert "misaligned address" in result.stderr


ONE = (1, 1, 1)


@has_headers
@pytest.mark.parametrize(
    "grid, block, shared, error",
    [
        ((1, 65535, 1), ONE, 0, "cudaSuccess"),
        ((1, 1, 65535), ONE, 0, "cudaSuccess"),
        ((2**31, 1, 1), ONE, 0, "cudaErrorInvalidConfiguration"),
        ((1, 65536, 1), ONE, 0, "cudaErrorInvalidConfiguration"),
        ((1, 1, 65536), ONE, 0, "cudaErrorInvalidConfiguration"),
        ((1, 0, 1), ONE, 0, "cudaErrorInvalidConfiguration"),
        (ONE, (1024, 1, 1), 48 << 10, "cudaSuccess"),
        (ONE, (1025, 1, 1), 0, "cudaErrorInvalidConfiguration"),
        (ONE, (32, 33, 1), 0, "cudaErrorInvalidConfiguration"),
        (ONE, (1, 1, 64), 0, "cudaSuccess"),
        (ONE, (1, 1, 65), 0, "cudaErrorInvalidConfiguration"),
        (ONE, (0, 1, 1), 0, "cudaErrorInvalidConfiguration"),
        (ONE, ONE, (48 << 10) + 1, "cudaErrorInvalidValue"),
    ],
)
def test_a_launch_that_no_gpu_takes_is_refused(planted, grid, block, shared, error):
    assert planted(*grid, *block, shared).stdout == f"{error}\n"


@on_host
def test_the_harness_of_a_gpu_finds_nothing_wrong():
    """Every seventh of the cases that `bench/gpu.py` tries on one."""
    sys.path.append(str(HERE.parents[1] / "bench"))
    import gpu_cases

    for case in gpu_cases.cuda_cases()[::7]:
        row = gpu_cases.check(cuda, case, "cpu", lambda: None)
        assert row["verdict"] in ("ok", "does not fit"), (case, row)
