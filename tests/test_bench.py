"""The cases of ``python -m fastcnn bench``, who is left out and why, what counts as noise."""

import importlib.util

import pytest
import torch

from fastcnn import LRN
from fastcnn.bench import cases, contenders, race, rates
from fastcnn.bench.cases import Kind
from fastcnn.bench.race import AGAIN, Result
from fastcnn.measure import Budget, Timing, seconds

ONCE = Budget(3, 0, 0)


def tell(state):
    pass


# Cases.


def small_cases(dtype=torch.float32):
    x = (cases.LARGE * torch.randn(2, 8, 9, 11)).to(dtype)
    plain, fused = Kind(dtype=dtype).pair(cases.lenet5)
    images = torch.randn(4, 1, 28, 28).to(dtype)
    yield cases.epilogue("epilogue", x)
    yield cases.epilogue("channels_last", x.contiguous(memory_format=torch.channels_last))
    yield cases.epilogue("LRN", x, relu=False, pool=None)
    yield cases.epilogue("pool", x, relu=False, lrn=None)
    yield cases.epilogue_backward("backward", x)
    yield cases.inference("block", plain.features[:3], fused.features[0], images)
    yield cases.inference("network", plain, fused, images)
    yield cases.training("training", plain, fused, images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fastcnn_gives_eager_values_in_every_case(dtype):
    for case in small_cases(dtype):
        builders = {name: case.builders[name] for name in ("eager", "fastcnn")}
        runs, failed = race.check(builders, race.TOLERANCES[dtype])
        assert failed == {}, case.name
        assert list(runs) == ["eager", "fastcnn"]


@pytest.mark.parametrize("name", contenders.NEEDS)
def test_exporters_give_eager_values(name):
    if name not in contenders.peers("cpu", torch.float32):
        pytest.skip(f"not installed: {', '.join(contenders.NEEDS[name])}")
    torch.manual_seed(0)
    found = {case.name: case.builders for case in small_cases()}
    assert name not in found["channels_last"]
    assert name not in found["training"]
    for case in ("epilogue", "LRN", "pool", *["network"] * (name != "JAX")):
        builders = {who: found[case][who] for who in ("eager", name)}
        assert race.check(builders, 1e-4)[1] == {}, case


def test_bytes_and_operations_counted_by_hand():
    work = {case.name: case[2:5] for case in small_cases()}
    x, y = 2 * 8 * 9 * 11, 2 * 8 * 4 * 5
    assert work["epilogue"] == (4 * (x + y), 0, x + 9 * x + 8 * y)
    assert work["LRN"] == (4 * (x + x), 0, 9 * x)
    assert work["pool"] == (4 * (x + y), 0, 8 * y)
    assert work["backward"] == (4 * (4 * x + 2 * y) + 2 * y, 0, 0)
    products = 24 * 24 * 6 * 25  # multiply-adds of LeNet-5's first convolution
    assert work["block"][1:] == (2 * 4 * products,) * 2
    assert work["block"][0] == 4 * (4 * 28 * 28 + 4 * 6 * 12 * 12 + 6 * 25 + 6)
    first = 28 * 28 * 6 * 25  # in the network, of a padded image
    whole, parameters = 416_520, 61_706
    assert work["network"] == (4 * (4 * 28 * 28 + 4 * 10 + parameters), *(2 * 4 * whole,) * 2)
    backward = 2 * whole - first  # nobody needs the images' gradient
    assert work["training"] == (4 * (4 * 28 * 28 + 6 * parameters), *(2 * 4 * (whole + backward),) * 2)


def test_the_check_sees_the_sum_of_squares_in_an_lrn():
    x = cases.SMALL * torch.randn(8, 96, 13, 13)
    case = cases.epilogue("", x, pool=None)
    flat = cases.plain_epilogue(True, LRN(5, alpha=0, k=2), None)
    builders = {"eager": case.builders["eager"], "without": lambda: contenders.inferring(flat, x)}
    assert list(race.check(builders, race.TOLERANCES[torch.float32])[1]) == ["without"]
    x *= cases.LARGE / cases.SMALL
    assert list(race.check(builders, race.TOLERANCES[torch.bfloat16])[1]) == ["without"]


def test_the_quick_cases_are_some_of_all(monkeypatch):
    def make(name, kind):
        return cases.Case(name, {"torch.compile": None})

    monkeypatch.setattr(cases, "CASES", dict.fromkeys(cases.CASES, make))
    quick, thorough = (list(cases.cases(q, Kind())) for q in (True, False))
    assert [case.name for case in quick] == list(cases.QUICK)
    assert [case.name for case in thorough] == list(cases.CASES)
    assert [case.name for case in quick if not case.builders] == ["AlexNet, training step, batch 32"]


@pytest.mark.parametrize("name", [*cases.QUICK[:2], "AlexNet's block 2, batch 1", "LeNet-5, batch 8"])
def test_formats_compute_the_same(name, monkeypatch):
    monkeypatch.setattr(cases, "MAPS", {"map 1": (2, 8, 9, 9)})
    nchw, last = (
        cases.CASES[name](name, Kind(format=f)) for f in (torch.contiguous_format, torch.channels_last)
    )
    builders = {"eager": nchw.builders["eager"], "fastcnn": last.builders["fastcnn"]}
    assert race.check(builders, 1e-4)[1] == {}
    assert nchw[2:5] == last[2:5]


def test_convolutions_and_dense_layers_alone_give_the_output():
    case = cases.CASES["LeNet-5, batch 8"]("", Kind())
    builders = {name: case.builders[name] for name in ("eager", contenders.ALONE)}
    assert race.check(builders, 1e-4)[1] == {}


def test_half_precision_has_no_onnx_runtime_and_a_gpu_only_torch(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert contenders.peers("cpu", torch.float32)[2:] == ["ONNX Runtime", "OpenVINO", "JAX"]
    assert contenders.peers("cpu", torch.bfloat16)[2:] == ["OpenVINO", "JAX"]
    assert contenders.peers("cuda", torch.float32) == ["eager", "torch.compile"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert contenders.peers("cpu", torch.float32)[2:] == ["OpenVINO", "JAX"]
    assert contenders.not_installed() == ["onnxscript"]


# The race.


def builders(**outputs):
    """Contenders that give these tensors, or raise these errors when they are built."""

    def build(output):
        if isinstance(output, Exception):
            raise output
        return lambda: output

    return {name: lambda o=output: build(o) for name, output in outputs.items()}


def test_whoever_is_wrong_or_fails_is_left_out_and_the_rest_runs():
    right = torch.tensor([3.0, -4.0])
    case = cases.Case(
        "case",
        builders(
            fastcnn=right + 1e-6,
            eager=right,
            wrong=right + 1,
            nan=right / 0 * 0,
            shape=right[:1, None, None].expand(2, 2, 2),
            broken=RuntimeError("first line\n  second line"),
        ),
    )
    result = race.race(case, ONCE, torch.float32, seconds, tell)
    assert list(result.seconds) == ["eager", "fastcnn", AGAIN]
    assert {len(taken) for taken in result.seconds.values()} == {3}
    assert result.failed["broken"] == "RuntimeError: first line second line"
    assert result.failed["wrong"] == "its values are off by 0.28"
    assert result.failed["nan"] == "its values are off by nan"
    assert "shape" in result.failed


def test_without_eager_or_without_fastcnn_nothing_is_claimed():
    for name in ("eager", "fastcnn"):
        outputs = {"fastcnn": torch.ones(1), "eager": torch.ones(1), name: RuntimeError("no")}
        case = cases.Case("case", builders(**outputs))
        result = race.race(case, ONCE, torch.float32, seconds, tell)
        assert result.failed == {name: "RuntimeError: no"}
        assert result.times_faster() == {}
        assert result.too_close() == []


def test_gradients_are_granted_more():
    def off(by, make):
        case = builders(eager=make(torch.ones(4)), other=make(torch.ones(4) + by))
        return list(race.check(case, 0.01)[1])

    assert off(0.05, lambda t: t) == ["other"]
    assert off(0.05, lambda t: [t]) == []
    assert off(0.2, lambda t: [t]) == ["other"]


def test_a_gradient_of_nothing_but_rounding_is_measured_by_the_rest():
    right = [torch.ones(4), torch.full((4,), 1e-9)]
    assert race.difference([right[0], -right[1]], right) < 1e-5
    assert race.difference([right[0], right[1] + 0.1], right) > 1


def test_a_rate_is_the_best_of_its_rounds():
    times = iter([3.0, 1.0, 2.0])
    assert rates.best_of(lambda: None, 3, lambda fn: next(times)) == 1


# Ratios and noise.


def result(**seconds):
    taken = {AGAIN if name == "again" else name: taken for name, taken in seconds.items()}
    return Result(cases.Case("case", {}), taken, {})


def test_ratios_are_taken_round_by_round():
    r = result(fastcnn=[1, 2, 4], again=[1, 2, 4], eager=[2, 6, 4])
    assert r.times_faster()["eager"] == Timing(2, 1.5, 2.5)
    assert r.times_faster()["fastcnn"] == Timing(1, 1, 1)
    assert r.too_close() == []


@pytest.mark.parametrize(
    ("again", "eager", "noisy"),
    [
        ([1.0, 1.0, 1.0], [1.1, 1.1, 1.1], False),
        ([1.2, 1.2, 1.2], [1.1, 1.1, 1.1], True),  # it differs from itself by more
        ([0.8, 0.8, 0.8], [1.1, 1.1, 1.1], True),
        ([1.2, 1.2, 1.2], [0.9, 0.9, 0.9], True),  # the same for who is faster than fastcnn
        ([1.2, 1.2, 1.2], [0.5, 0.5, 0.5], False),
        ([1.0, 1.0, 1.0], [0.8, 1.1, 1.3], True),  # quartiles on both sides of 1
        ([1.0, 1.0, 1.0], [1.05, 1.1, 9.0], False),
        ([2.0, 2.0, 2.0], [60.0, 60.0, 60.0], False),
        ([0.8, 1.0, 1.2], [1.05, 1.05, 1.05], True),  # on the median the same, but not in each round
    ],
)
def test_what_is_too_noisy(again, eager, noisy):
    r = result(fastcnn=[1.0, 1.0, 1.0], again=again, eager=eager)
    assert r.too_close() == (["eager"] if noisy else [])
    record = r.record("float32", {"copy": 1, "float32": 1})
    assert record["too_noisy"] is noisy


def test_without_a_second_timing_everything_is_noise():
    assert result(fastcnn=[1.0, 1.0, 1.0], eager=[9.0, 9.0, 9.0]).too_close() == ["eager"]
