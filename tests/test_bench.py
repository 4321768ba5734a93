"""``python -m fastcnn bench``: its cases, who is left out and why, what counts as noise, how it ends."""

import importlib.util
import json

import pytest
import torch
from torch import nn

from fastcnn import LRN, _factory, bench, cli
from fastcnn.bench import cases, contenders, machine, race, rates
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


# The command.


@pytest.fixture
def stub(monkeypatch):
    """Two small cases, of which one has a contender that is wrong; short races; no work for the rates."""
    pytest.importorskip("rich")

    def two(quick, kind):
        yield cases.Case("first", builders(fastcnn=torch.ones(1), eager=torch.ones(1)), 100, 10)
        yield cases.Case(
            "second",
            builders(
                **{"fastcnn": torch.ones(1), "eager": torch.ones(1), "torch.compile": torch.ones(1) + 1}
            ),
        )

    monkeypatch.setattr(cases, "cases", two)
    monkeypatch.setattr(race, "QUICK", ONCE)
    monkeypatch.setattr(rates, "rates", lambda dtypes, device: {"copy": 1e9, "float32": 1e9})
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (3.25, 0, 0))


def test_the_command_prints_a_table_and_saves_json(stub, capsys, tmp_path):
    path = tmp_path / "out.json"
    assert cli.main(["bench", "--quick", "--save", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert printed.count("ms: median") == 1
    assert "first" in printed
    assert "load 3.2 on" in printed
    assert "second: torch.compile is left out: its values are off by 1" in printed
    assert max(map(len, printed.splitlines())) <= 100
    saved = json.loads(path.read_text())
    assert saved["machine_info"]["device"] == "cpu"
    assert saved["machine_info"]["versions"]["torch"] == torch.__version__
    first, second = saved["cases"]
    assert [first["name"], first["moved"], first["flops"], first["floor"]] == [
        "first",
        100,
        10,
        100 / 1e9 + 10 / 1e9,
    ]
    assert first["seconds"].keys() == first["times_faster"].keys() == {"eager", "fastcnn", AGAIN}
    assert first["seconds"]["eager"].keys() == {"median", "low", "high"}
    assert list(second["failed"]) == ["torch.compile"]
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize("width", ["80", "100"])
def test_the_table_fits_a_terminal(width, monkeypatch, capsys):
    pytest.importorskip("rich")
    from rich.console import Console

    from fastcnn.bench.table import Sheet, remarks

    peers = ["eager", "torch.compile", "ONNX Runtime", "OpenVINO", "JAX"]
    taken = {name: [0.1234, 0.1345, 0.1456] for name in ("fastcnn", AGAIN, *peers[:4])} | {
        "eager": [9.0, 8.0, 7.0]
    }
    case = cases.Case("ReLU, LRN, pool, channels_last", {}, 10**9, 10**9)
    r = Result(case, taken, {"JAX": "no"})
    sheet = Sheet(peers, "float32", {"copy": 1e10, "float32": 1e11})
    console = Console(width=int(width))
    console.print(sheet.table([r], console.width))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= int(width)
    assert "…" not in printed
    assert "134 ±" in printed
    assert "59.5" in printed
    assert "failed" in printed
    assert "too noisy" in printed
    assert next(remarks([r])).endswith("JAX is left out: no")


def test_what_cannot_be_saved_is_known_before_measuring(stub, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "_measure", lambda *args: pytest.fail("measured"))
    for path, words in (
        (tmp_path / "no" / "out.json", "No such file or directory"),
        (tmp_path, "is a folder"),
    ):
        assert cli.main(["bench", "--save", str(path)]) == 1
        printed = capsys.readouterr().err
        assert printed.startswith("bench: ")
        assert words in printed
        assert printed.count("\n") == 1


def test_without_rich_it_says_how_to_install_it(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "rich" else real(name, *a)
    )
    assert cli.main(["bench"]) == 1
    assert "pip install rich" in capsys.readouterr().err


def test_without_a_gpu(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "--device", "cuda"]) == 1
    assert capsys.readouterr().err == "bench: --device cuda: torch sees no GPU\n"


def test_ctrl_c_saves_what_there_was(stub, monkeypatch, capsys, tmp_path):
    first = next(cases.cases(True, Kind()))

    def interrupted(quick, kind):
        yield first
        raise KeyboardInterrupt

    monkeypatch.setattr(cases, "cases", interrupted)
    assert cli.main(["bench", "--quick", "--save", str(tmp_path / "out.json")]) == 130
    printed = capsys.readouterr()
    assert "first" in printed.out
    assert printed.err.startswith("bench: interrupted; what the table has is complete")
    assert [case["name"] for case in json.loads((tmp_path / "out.json").read_text())["cases"]] == ["first"]
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]


# A model of the user's.


def make():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(4 * 4 * 4, 5),
    )


@pytest.fixture
def own(stub, monkeypatch, tmp_path):
    monkeypatch.setattr(_factory, "load", lambda name: make())
    monkeypatch.setattr(contenders, "compiled", lambda module: module)
    return ["bench", "package.module:make", "--quick", "--save", str(tmp_path / "own.json")]


def test_a_model_of_ones_own_is_timed_with_its_memory(own, capsys, tmp_path):
    assert cli.main([*own, "--shape", "2,3,8,8"]) == 0
    printed = capsys.readouterr().out
    assert "package.module:make on [2, 3, 8, 8]" in printed
    inference, step = json.loads((tmp_path / "own.json").read_text())["cases"]
    names = ["eager", "fastcnn", "torch.compile", AGAIN]
    for case in (inference, step):
        assert sorted(case["seconds"]) == sorted(names)
        assert case["failed"] == {}
    assert inference["flops"] == 2 * 2 * (8 * 8 * 4 * 27 + 64 * 5)
    memory = step["memory"]
    assert 0 < memory["fastcnn"]["kept"] < memory["eager"]["kept"]
    assert f"eager keeps {memory['eager']['kept'] / 1e6:.1f} MB for backward" in printed


def test_a_model_that_is_not_there_is_said_before_anything_is_timed(stub, capsys):
    assert cli.main(["bench", "fastcnn.nn:Nothing", "--shape", "2,3,8,8"]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error == "bench: fastcnn.nn:Nothing: module 'fastcnn.nn' has no attribute 'Nothing'\n"


def test_the_fused_model_is_a_copy_and_a_wrong_one_is_listed(own, monkeypatch, capsys, tmp_path):
    from fastcnn.bench import own as of_own

    monkeypatch.setattr(of_own, "fuse", lambda model: nn.Sequential(model, nn.Hardtanh(0, 1e-3)))
    assert cli.main([*own, "--shape", "2,3,8,8"]) == 0
    assert "inference: fastcnn is left out: its values are off by" in " ".join(
        capsys.readouterr().out.split()
    )
    cases = json.loads((tmp_path / "own.json").read_text())["cases"]
    assert [list(case["failed"]) for case in cases] == [["fastcnn"], ["fastcnn"]]


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["no_such_package:make", "--shape", "1,3,8,8"], 1, "No module named 'no_such_package'"),
        (["no_such_package:make"], 2, "a model and --shape go together"),
        (["--shape", "1,3,8,8"], 2, "a model and --shape go together"),
        (["torch.nn:ReLU6", "--shape", "1,0"], 2, "must be sizes like 32,3,224,224, but got '1,0'"),
    ],
)
def test_a_model_that_cannot_be_timed_ends_with_one_line(options, status, words, stub, capsys):
    try:
        ended = cli.main(["bench", *options])
    except SystemExit as stop:
        ended = stop.code
    assert ended == status
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_the_machine_names_its_processor_exactly(monkeypatch, tmp_path):
    x86 = (
        "vendor_id: V\ncpu family: 25\nmodel: 17\nmodel name: AMD EPYC\nstepping: 1\nflags: sse avx2 amx_tile"
    )
    arm = (
        "CPU implementer: 0x41\nCPU architecture: 8\nCPU part: 0xd40\nCPU revision: 1\nFeatures: fp sve asimd"
    )
    for text, expected in (
        (x86, ("V", "25", "17", "1", "amx_tile avx2")),
        (arm, ("0x41", "8", "0xd40", "1", "asimd sve")),
    ):
        (tmp_path / "cpuinfo").write_text(f"{text}\n\nmodel: 9, of another one\n")
        monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
        assert tuple(machine.facts("cpu")["cpu"].values()) == expected
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "none")
    assert machine.facts("cpu")["cpu"] == {"cpu flags": ""}
