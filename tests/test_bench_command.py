"""``python -m fastcnn bench``: what it prints, saves and says, and how it ends."""

import importlib.util
import json

import pytest
import torch
from torch import nn

from fastcnn import _factory, bench, cli
from fastcnn.bench import cases, contenders, machine, race, rates
from fastcnn.bench.cases import Kind
from fastcnn.bench.race import AGAIN, Result
from fastcnn.measure import Budget


def gives(value):
    """Builds a contender that gives this value."""
    return lambda: lambda: torch.full((1,), value)


@pytest.fixture
def stub(monkeypatch):
    """Two small cases, of which one has a contender that is wrong; short races; no work for the rates."""
    pytest.importorskip("rich")

    def two(quick, kind):
        alike = {"fastcnn": gives(1.0), "eager": gives(1.0)}
        yield cases.Case("first", alike, 100, 10)
        yield cases.Case("second", {**alike, "torch.compile": gives(2.0)})

    monkeypatch.setattr(cases, "cases", two)
    monkeypatch.setattr(race, "QUICK", Budget(3, 0, 0))
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
