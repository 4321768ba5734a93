"""The CUDA kernels without a GPU: compiled for the host, where sanitizers watch them (`make sanitize`)."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
import test_epilogue
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_properties import PHASES, Case, cases, check_backward, check_forward, check_offsets

from fastcnn import LRN, MaxPool, _native, use_backend
from fastcnn.backends import cuda
from fastcnn.stages import ORDERS, Stages

HERE = Path(__file__).parent / "cuda_on_host"
# All of test_epilogue.py once more, by this file's device.
globals().update({name: test for name, test in vars(test_epilogue).items() if name.startswith("test_")})

THREAD_ORDERS = ("forward", "backward", "shuffled")
BEST, GENERAL, SPECIAL = -1, 0, 1
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


class Kernels:
    """The cuda backend with these kernels, or an error where they can't run."""

    def __init__(self, variant):
        self.variant = variant

    def epilogue_forward(self, *args, save):
        with self.chosen():
            return cuda.epilogue_forward(*args, save=save)

    def epilogue_backward(self, grad, kept, offsets, stages, size, format, need_bias):
        grad = grad.contiguous(memory_format=format)
        with self.chosen():
            return cuda.epilogue_backward(grad, kept, offsets, stages, size, format, need_bias)

    @contextlib.contextmanager
    def chosen(self):
        def params(*args, make=cuda.params):
            p = make(*args)
            p.variant = self.variant
            return p

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda, "params", params)
            yield


@st.composite
def special_cases(draw):
    """What the fast kernels take: shapes that end within and at their vectors and tiles."""
    layout = draw(st.sampled_from(["contiguous", "channels_last", "sliced"]))
    groups = draw(st.integers(1, 3))
    vectors = st.integers(1, 9).map(lambda n: 8 * n)
    channels = groups * draw(vectors if layout == "channels_last" else st.integers(1, 20))
    lrn = None
    if draw(st.booleans()):
        alpha = draw(st.sampled_from([1e-4, 5e-2, 5.0]))
        lrn = LRN(5, alpha, 0.75, draw(st.sampled_from([1.0, 2.0])), groups)
    pool = None
    if width := draw(st.sampled_from([0, 3] if lrn else [0, 2, 3])):
        pool = MaxPool(width, 2, draw(st.integers(0, 1)), 1, draw(st.booleans()))
    bias = draw(st.booleans())
    return Case(
        (draw(st.integers(1, 2)), channels, draw(st.integers(3, 40)), draw(st.integers(3, 72))),
        layout,
        draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
        bias,
        Stages(draw(st.booleans()) or not (lrn or pool or bias), lrn, pool, draw(st.sampled_from(ORDERS))),
        draw(st.sampled_from([1.0, 30.0, 1e-3])),
        draw(st.integers(0, 2**31)),
    )


def follows_the_reference(case, variant):
    (x, bias), stages = case.tensors(), case.stages
    saved = check_forward(Kernels(variant), x, bias, stages)
    check_backward(Kernels(variant), x, bias, stages, saved, case.generator)
    if stages.pool:
        check_offsets(x, bias, stages, saved[2])


@on_host
@settings(max_examples=300, deadline=None, phases=PHASES)
@given(cases())
def test_general_kernels_follow_the_reference(case):
    follows_the_reference(case, GENERAL)


@on_host
@settings(max_examples=300, deadline=None, phases=PHASES)
@given(special_cases())
def test_special_kernels_follow_the_reference(case):
    follows_the_reference(case, SPECIAL)


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
