"""bench/compare.py, on files written by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "compare.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="a copy of the package without its benchmarks")


PROCESSOR = {"cpu family": "25", "cpu model": "17"}


def around(median, spread=0.02):
    return {"low": median * (1 - spread), "median": median, "high": median * (1 + spread)}


def benchmarks(**seconds):
    """name=(fastcnn's, eager's)"""
    return {
        "benchmarks": [
            {"extra_info": {"name": name, "seconds": {"fastcnn": around(ours), "eager": around(eager)}}}
            for name, (ours, eager) in seconds.items()
        ],
        "machine_info": {"cpu": PROCESSOR},
    }


@pytest.fixture
def compare(tmp_path):
    def run(*contents):
        paths = [tmp_path / name for name in ("old.json", "new.json")]
        for path, content in zip(paths, contents, strict=True):
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return subprocess.run([sys.executable, SCRIPT, *paths], capture_output=True, text=True)

    return run


OLD = benchmarks(a=(1, 10), b=(2, 10), c=(3, 10))


def slower(result):
    return [line.split()[-2] for line in result.stdout.splitlines() if "SLOWER" in line]


def lines(result, start):
    return [line for line in result.stdout.splitlines() if line.startswith(start)]


def seconds(file):
    """Of its first benchmark, by contender."""
    return file["benchmarks"][0]["extra_info"]["seconds"]


def test_the_same_times_are_not_slower(compare):
    result = compare(OLD, OLD)
    assert result.returncode == 0
    assert slower(result) == []
    assert result.stdout.startswith("eager torch takes 1.00 times as long")
    assert result.stdout.endswith("0 of 3 slower\n")


def test_one_that_became_slower_is_named(compare):
    result = compare(OLD, benchmarks(a=(1, 10), b=(2.2, 10), c=(3, 10)))
    assert result.returncode == 1
    assert slower(result) == ["b"]


def test_a_slower_machine_is_no_regression(compare):
    result = compare(OLD, benchmarks(a=(2, 20), b=(4, 20), c=(6, 20)))
    assert result.returncode == 0
    assert result.stdout.startswith("eager torch takes 2.00 times as long")


def test_a_faster_machine_hides_no_regression(compare):
    result = compare(OLD, benchmarks(a=(0.5, 5), b=(1, 5), c=(3, 5)))
    assert slower(result) == ["c"]


def test_one_eager_time_that_moved_does_not_move_the_others(compare):
    assert compare(OLD, benchmarks(a=(1, 10), b=(2, 10), c=(3, 90))).returncode == 0


@pytest.mark.parametrize(("new", "status"), [(1.045, 0), (1.055, 1)])
def test_slower_is_over_5_percent(compare, new, status):
    assert compare(OLD, benchmarks(a=(new, 10), b=(2, 10), c=(3, 10))).returncode == status


def test_within_the_quartiles_is_not_slower(compare):
    new = benchmarks(a=(1.2, 10), b=(2, 10), c=(3, 10))
    seconds(new)["fastcnn"]["low"] = 1.01  # below the old upper one, 1.02
    assert compare(OLD, new).returncode == 0


def test_every_way_of_ours_is_compared(compare):
    files = [benchmarks(a=(1, 10)), benchmarks(a=(1, 10))]
    for file, ours in zip(files, (1, 2), strict=True):
        seconds(file)["fastcnn channels_last"] = around(ours)
    result = compare(*files)
    assert "a fastcnn channels_last" in result.stdout
    assert result.returncode == 1


def test_what_only_one_file_has_is_named(compare):
    result = compare(OLD, benchmarks(a=(1, 10), d=(1, 10)))
    assert result.returncode == 0
    assert lines(result, "only") == [
        "only in the old file: b",
        "only in the old file: c",
        "only in the new file: d",
    ]


def test_ways_of_ours_that_only_one_file_has_are_named(compare):
    old, new = benchmarks(a=(1, 10)), benchmarks(a=(1, 10))
    seconds(old).update({"fastcnn channels_last": around(1), "OpenVINO": around(5)})
    seconds(new)["fastcnn folded"] = around(1)
    result = compare(old, new)
    assert result.returncode == 0
    assert lines(result, "only") == [
        "only in the old file: a fastcnn channels_last",
        "only in the new file: a fastcnn folded",
    ]


def test_the_second_timing_is_left_out(compare):
    old, new, without = (benchmarks(a=(1, 10)) for _ in range(3))
    for file, again in ((old, 1), (new, 2)):
        seconds(file)["fastcnn again"] = around(again)
    for result in (compare(old, new), compare(old, without), compare(without, new)):
        assert result.returncode == 0
        assert "fastcnn again" not in result.stdout


def test_what_differs_between_the_machines_is_named(compare):
    old = OLD | {
        "machine_info": {
            "processor": "A",
            "cpu": PROCESSOR,
            "threads": 2,
            "extension": {"compiler": "12.2.0", "openmp": "yes"},
            "versions": {"torch": "2.12.0", "onnxruntime": "1.32.0"},
        }
    }
    new = OLD | {
        "machine_info": {
            "processor": "A",
            "cpu": PROCESSOR | {"cpu model": "1"},
            "threads": 4,
            "extension": {"compiler": "13.1.0", "openmp": "yes"},
            "versions": {"torch": "2.13.0", "openvino": "2026.4.1"},
        }
    }
    result = compare(old, new)
    assert result.returncode == 0
    assert result.stdout.splitlines()[:7] == [
        "differs: cpu model 17, now 1",
        "differs: threads 2, now 4",
        "differs: compiler 12.2.0, now 13.1.0",
        "differs: torch 2.12.0, now 2.13.0",
        "differs: onnxruntime 1.32.0, now none",
        "differs: openvino none, now 2026.4.1",
        "eager torch takes 1.00 times as long as it did; fastcnn's times over that:",
    ]
    assert lines(compare(old, old), "differs") == []
    assert "differs: threads none, now 4" in lines(compare(OLD, new), "differs")


def test_files_that_do_not_name_the_processor_are_told_apart_from_those_that_do(compare):
    without = OLD | {"machine_info": {"processor": "AMD EPYC"}}
    assert lines(compare(OLD, OLD), "unknown") == []
    assert lines(compare(without, without), "unknown: whether the processors are the same")
    assert "differs: cpu model none, now 17" in lines(compare(without, OLD), "differs")


def test_files_of_the_bench_command_are_compared(compare):
    cases = [benchmark["extra_info"] for benchmark in OLD["benchmarks"]]
    saved = {"machine_info": OLD["machine_info"], "cases": cases}
    result = compare(saved, benchmarks(a=(2, 10), b=(2, 10), c=(3, 10)))
    assert result.returncode == 1
    assert slower(result) == ["a"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"benchmarks": 1}',
        '{"benchmarks": [{"extra_info": {"name": "a"}}]}',
        OLD | {"machine_info": []},
        OLD | {"machine_info": None},
    ],
)
def test_another_kind_of_file_is_refused(compare, content):
    result = compare(OLD, content)
    assert result.returncode == 2
    assert "new.json: not a file that make bench-cpu or fastcnn bench writes" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_without_quartiles_is_refused(compare):
    new = benchmarks(a=(1, 10))
    del seconds(new)["fastcnn"]["high"]
    assert "not a file that make bench-cpu or fastcnn bench writes" in compare(OLD, new).stderr


@pytest.mark.parametrize("median", [0, -1, float("nan"), float("inf"), "1", None])
@pytest.mark.parametrize("who", ["fastcnn", "eager"])
def test_a_median_that_is_no_time_is_refused(compare, who, median):
    old = benchmarks(a=(1, 10))
    seconds(old)[who]["median"] = median
    result = compare(old, OLD)
    assert result.returncode == 2
    assert "old.json: not a file that make bench-cpu or fastcnn bench writes" in result.stderr
    assert "Traceback" not in result.stderr


def test_files_with_nothing_in_common_are_refused(compare):
    result = compare(OLD, benchmarks(d=(1, 10)))
    assert result.returncode == 2
    assert "no benchmark of eager torch in common" in result.stderr


def test_files_without_a_time_of_ours_in_common_are_refused(compare):
    new = benchmarks(a=(1, 10))
    del seconds(new)["fastcnn"]
    result = compare(OLD, new)
    assert result.returncode == 2
    assert "no time of fastcnn's is in both files" in result.stderr


def test_a_missing_file_is_named(tmp_path):
    result = subprocess.run([sys.executable, SCRIPT, "no.json", "no.json"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "no.json: No such file or directory" in result.stderr
