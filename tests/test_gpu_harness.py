"""``python bench/gpu.py`` without a GPU: planted errors, tools' outputs, and both commands rehearsed."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastcnn.backends import cpu

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"
if not BENCH.exists():
    pytest.skip("a copy of the package without its benchmarks", allow_module_level=True)
sys.path.append(str(BENCH))
import gpu  # noqa: E402
import gpu_cases  # noqa: E402
import gpu_here  # noqa: E402
import gpu_rows  # noqa: E402
import gpu_summary  # noqa: E402
import gpu_timing  # noqa: E402
import gpu_tools  # noqa: E402
import report_gpu  # noqa: E402

CASES = [case for case in gpu_cases.cuda_cases() if case.kind != "general" or case.dtype == "float64"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are tiny
    yield
    torch.set_num_threads(threads)


# Errors.


def planted(y=None, argmax=None, grad=None, bias=None):
    """The cpu backend with what a function makes of these results."""

    def put(function, value):
        return value if function is None or value is None else function(value)

    def forward(*args, save):
        results = cpu.epilogue_forward(*args, save)
        return put(y, results[0]), results[1], put(argmax, results[2])

    def backward(*args):
        results = cpu.epilogue_backward(*args)
        return put(grad, results[0]), put(bias, results[1])

    return SimpleNamespace(__name__="planted", epilogue_forward=forward, epilogue_backward=backward)


def at_one(change):
    """Changes the largest value alone, or of argmax the largest place, at the same place every time."""

    def put(t):
        t = t.clone()
        values = t.permute(0, 2, 3, 1) if t.dim() == 4 else t
        most = values[values < 255].max() if t.dtype == torch.uint8 else values.max()
        place = tuple(int(i[0]) for i in torch.where(values == most))
        values[place] = change(values[place])
        return t

    return put


def left_unwritten(t):
    fresh = torch.empty_like(t)
    fresh[:, 1:] = t[:, 1:]
    fresh[0, 0] = t[0, 0]
    return fresh


def verdict(module, case):
    return gpu_cases.check(module, case, "cpu", lambda: None)["verdict"]


def test_nothing_planted_is_right():
    assert {str(case): verdict(planted(), case) for case in CASES} == {str(case): "ok" for case in CASES}


@pytest.mark.parametrize("by", [0.9, 1.1])
def test_a_tenth_in_a_channels_bias_gradient_is_seen(by):
    for case in CASES:
        if gpu_cases.all_stages()[case.stages].relu:
            for channel in (0, 47):
                off = torch.ones(48, dtype=getattr(torch, case.dtype))
                off[channel] = by
                assert verdict(planted(bias=lambda t, off=off: t * off), case) == "wrong", (case, channel)


@pytest.mark.parametrize("what", ["y", "grad"])
def test_one_wrong_pixel_is_seen(what):
    for case in CASES:
        assert verdict(planted(**{what: at_one(lambda v: 0.9 * v)}), case) == "wrong", case


def test_one_wrong_argmax_is_seen():
    for case in CASES:
        if gpu_cases.all_stages()[case.stages].pool:
            assert verdict(planted(argmax=at_one(lambda v: v - 1)), case) == "wrong", case
            assert verdict(planted(argmax=at_one(lambda v: 255)), case) == "wrong", case


@pytest.mark.parametrize("what", ["y", "argmax", "grad"])
def test_what_is_left_unwritten_is_seen(what):
    for case in CASES[::5]:
        if what != "argmax" or gpu_cases.all_stages()[case.stages].pool:
            assert verdict(planted(**{what: left_unwritten}), case) == "wrong", case


def test_other_bits_in_a_second_run_and_errors_are_told():
    calls = iter(range(100))
    shaky = planted(grad=lambda t: t * (1 + next(calls) % 2 * 1e-6))
    assert (
        "a second backward has other bits" in gpu_cases.check(shaky, CASES[2], "cpu", lambda: None)["error"]
    )
    with pytest.raises(ZeroDivisionError):
        verdict(planted(y=lambda t: 1 / 0), CASES[0])


# Times.


@pytest.fixture
def clock():
    return gpu_timing.Clock(gpu_here.double(), "cpu", 1, 3, 1 << 12)


def test_launches_are_captured_once_and_replayed(clock):
    calls = []
    assert clock.time(lambda: calls.append(1)) == (1000, 1000, 1000, "graph")
    assert len(calls) == 2  # to warm up, and to be captured
    assert clock.cuda.CUDAGraph.return_value.replay.call_count >= 2 + 3  # to be measured, warmed up and timed


def test_what_cannot_be_captured_is_launched_behind_a_delay(clock):
    clock.cuda.CUDAGraph.return_value.capture_end.side_effect = RuntimeError("not permitted")
    assert clock.time(lambda: time.sleep(0.01)).how == "delay"
    assert all(call.args[0] >= 3 * 0.01 * gpu_timing.CYCLES for call in clock.cuda._sleep.call_args_list)
    assert clock.cuda._sleep.call_count == 3


def test_whoever_is_wrong_or_fails_is_not_timed(clock):
    ones = torch.ones(8)
    calls = {"first": lambda: ones, "near": lambda: ones * 1.01, "far": lambda: ones * 1.2}
    calls |= {"nan": lambda: ones * math.nan, "broken": lambda: 1 / 0}
    row = clock.race(calls, 0.03)
    assert list(row["us"]) == ["first", "near"]
    assert row["left out"].keys() == {"far", "nan", "broken"}
    assert row["seconds"].keys() == calls.keys()
    assert "left out" not in clock.race({"far": calls["far"]})


def test_who_broke_the_device_is_named(clock):
    clock.cuda.synchronize.side_effect = RuntimeError("an illegal memory access")
    with pytest.raises(RuntimeError, match="in other: an illegal memory access"):
        clock.race({"other": lambda: 1 / 0})


# Tools' outputs.

NCU = """"ID","Process ID","Kernel Name","gpu__time_duration.sum","launch__registers_per_thread"
"","","","ns","register/thread"
"0","71","void fastcnn::cuda::special::each_output<(int)3, float>(Params)","23,456","71"
"1","71","add_parts","1,024","16"
"""


def test_sanitizers_errors():
    assert gpu_tools.sanitizer_errors("========= ERROR SUMMARY: 3 errors\n") == 3
    race = "========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)"
    assert gpu_tools.sanitizer_errors(f"text\n{race}\n") == 1
    assert gpu_tools.sanitizer_errors("========= COMPUTE-SANITIZER\nrow") is None


def test_a_profilers_rows():
    first, second = gpu_tools.ncu_rows(["==PROF== Connected", "begins a row", *NCU.splitlines(), "the end"])
    assert first == (
        "0 void fastcnn::cuda::special::each_output<(int)3, float>(Params)",
        {"ns": 23456, "registers": 71},
    )
    assert second == ("1 add_parts", {"ns": 1024, "registers": 16})


def test_verdicts_as_they_come():
    tests = gpu_tools.Tests()
    lines = [
        "collected 6 items",
        "tests/test_cuda.py::test_each_kernel[0-lrn, pool-dtype0] PASSED    [ 16%]",
        "tests/test_cuda.py::test_devices SKIPPED (one GPU)                 [ 33%]",
        "[gw3] [ 50%] FAILED tests/test_ops.py::test_a[1 2] ",
        "tests/test_ops.py::test_b ERROR                                    [ 66%]",
        "tests/test_ops.py::test_in_progress ",
    ]
    assert [tests.read(line) for line in lines] == [None] * 3 + [
        "tests/test_ops.py::test_a[1 2]",
        "tests/test_ops.py::test_b",
        None,
    ]
    assert tests.counts() == {"passed": 1, "failed": 2, "skipped": 1, "unfinished": 2}


RIGHT = {
    "rehearsal": False,
    "tests": {"passed": 9, "failed": 0, "skipped": 2, "unfinished": 0},
    "memcheck": {"errors": 0, "ok": 12, "does not fit": 4, "wrong": 0},
    "kernels": {"ok": 200, "does not fit": 24, "wrong": 0},
}


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("tests", {"passed": 0}),
        ("tests", {"failed": 1}),
        ("tests", {"unfinished": 1}),
        ("memcheck", {"errors": None}),
        ("memcheck", {"errors": 1}),
        ("memcheck", {"ok": 0}),
        ("memcheck", {"wrong": 1}),
        ("kernels", {"wrong": 1}),
    ],
)
def test_who_is_trusted(part, other):
    assert gpu_summary.trusted(RIGHT)
    assert not gpu_summary.trusted(RIGHT | {part: RIGHT[part] | other})
    assert not gpu_summary.trusted(RIGHT | {"rehearsal": True})
    assert not gpu_summary.trusted({"rehearsal": False})


def test_the_allow_list_is_of_full_results_that_passed(tmp_path):
    assert report_gpu.allowed(tmp_path) == "[]\n"
    card = {"compute capability": "9.0", "extension": {"cuda sources": "abc"}}
    wrong = RIGHT | {"memcheck": RIGHT["memcheck"] | {"errors": 1}}
    for name, result in {"full": RIGHT, "first": RIGHT, "full_wrong": wrong}.items():
        written = result | card | {"command": name.removesuffix("_wrong")}
        (tmp_path / f"gpu_{name}.json").write_text(json.dumps(written))
    assert json.loads(report_gpu.allowed(tmp_path)) == [{"compute capability": "9.0", "sources": "abc"}]


def test_ranges():
    assert gpu_summary.limits("32–40") == (32, 40)
    assert gpu_summary.limits("0.70–0.78") == (0.7, 0.78)
    assert gpu_summary.limits("at least 442") == (442, math.inf)
    assert gpu_summary.limits("at most 0.4") == (-math.inf, 0.4)


# Both commands.

TOOLS = {
    "nvidia-smi": 'case "$1" in *=compute_cap) echo 9.0;; *) echo "NVIDIA H100, 580.65, 9.0, 1 MHz";; esac',
    "compute-sanitizer": """if [ "$1" = --help ]; then echo "  --kernel-name arg  which"; exit; fi
[ "$5" = --kernel-name ] || exit 7
tool=$2; while [ "${1#/}" = "$1" ]; do shift; done; "$@"; status=$?
[ $tool = racecheck ] && echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
[ $tool = racecheck ] || echo "========= ERROR SUMMARY: 0 errors"; exit $status""",
    "ncu": f"""while [ "${{1#/}}" = "$1" ]; do shift; done; "$@" || exit; cat <<'END'
{NCU}END""",
}


@pytest.fixture
def environment(tmp_path):
    for name, script in TOOLS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "OUT": str(tmp_path / "out"), "PATH": path, "OMP_NUM_THREADS": "1"}


def started(environment, *words):
    command = [sys.executable, str(BENCH / "gpu.py"), *words, "--rehearse"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def predicted(row):
    return {(name, quantity) for name, quantity, _ in gpu_summary.predictions() if name == row["name"]}


# Triton, which takes longest, in one dtype and layout. Of `full` what `first` doesn't have.
FIRST, FULL = ([p for g in gpu.PLANS[c] for p in g if p not in gpu.TRITON[1:]] for c in ("first", "full"))
PARTS = {"first": ["restarts", *FIRST], "full": ["machine", "build", *(p for p in FULL if p not in FIRST)]}


@pytest.mark.parametrize("command", PARTS)
def test_a_rehearsal_runs_every_part(command, environment):
    process = started(environment, command, "--only", *PARTS[command])
    printed, _ = process.communicate()
    assert process.returncode == 0
    out = Path(environment["OUT"])
    assert sorted(file.name for file in out.iterdir()) == [f"gpu_{command}.json", f"gpu_{command}.log"]
    result = json.loads((out / f"gpu_{command}.json").read_text())
    rows = {(row["part"], row["name"]): row for row in result["rows"]}
    if command == "first":
        died, broke = (
            rows.pop(("restarts", name)) for name in ("a row that dies", "a row that breaks the device")
        )
        assert (died["verdict"], died["error"]) == ("died", "exit status 11; see the log")
        assert "unspecified launch failure" in broke["nothing runs any more"]
        assert rows["restarts", "a row after those"]["verdict"] == "ok"
    assert [r for r in rows.values() if r.get("verdict", "ok") not in ("ok", "does not fit")] == []
    # Of interpreted blocks, triton 3.6 can't do any with numpy 2.4.
    assert [r for r in rows.values() if "error" in r or r.get("left out", {}).keys() - {"triton"}] == []
    assert {*PARTS[command]} <= {part for part, _ in rows}
    for row in rows.values():
        for _, quantity in predicted(row):
            left_out = quantity.removesuffix(" µs") in row.get("left out", {})
            assert left_out or gpu_summary.value(row, quantity) is not None, quantity
    assert (result["device"], result["compute capability"], result["driver"]) == (
        "NVIDIA H100",
        "9.0",
        "580.65",
    )
    assert result["versions"]["torch"] == torch.__version__
    assert not gpu_summary.trusted(result)
    if command == "first":
        assert "predicted 2800–3100" in printed
        assert result["memcheck"]["errors"] == 0
        assert result["memcheck"]["ok"] > 0
        assert result["racecheck"]["errors"] == 0
        assert result["tests"].keys() == {"passed", "failed", "skipped", "unfinished"}
        assert rows["ncu", "1 add_parts"]["registers"] == 16
        epilogues = {f"{c}, {p}" for c in gpu_rows.EPILOGUES for p in gpu_rows.PHASES}
        assert {name for name, *_ in gpu_summary.predictions()} <= epilogues | {name for _, name in rows}


def test_without_a_gpu_it_says_so(environment):
    (Path(environment["PATH"].split(os.pathsep)[0]) / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    result = subprocess.run([sys.executable, BENCH / "gpu.py", "first"], env=environment, capture_output=True)
    assert result.returncode == 2
    assert b"nvidia-smi names no GPU" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ended_early_it_keeps_its_rows(number, environment):
    process = started(environment, "first", "--only", "machine", "restarts")
    for line in process.stdout:
        if "a row that dies" in line:
            process.send_signal(number)
            break
    printed = process.communicate()[0]
    out = Path(environment["OUT"])
    logged = [json.loads(line) for line in (out / "gpu_first.log").read_text().splitlines() if line[0] == "{"]
    assert [row["name"] for row in logged[:3]] == ["nvidia-smi", "tools", "a row that dies"]
    if number == signal.SIGTERM:
        assert json.loads((out / "gpu_first.json").read_text())["rows"][:3] == logged[:3]
        assert "interrupted" in printed
