"""bench/compare.py, on files written by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "compare.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="a copy of the package without its benchmarks")


def around(median, spread=0.02):
    return {"low": median * (1 - spread), "median": median, "high": median * (1 + spread)}


def benchmarks(**seconds):
    """name=(fastcnn's, eager's)"""
    return {
        "benchmarks": [
            {"name": name, "extra_info": {"seconds": {"fastcnn": around(ours), "eager": around(eager)}}}
            for name, (ours, eager) in seconds.items()
        ]
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
    new["benchmarks"][0]["extra_info"]["seconds"]["fastcnn"]["low"] = 1.01  # below the old upper one, 1.02
    assert compare(OLD, new).returncode == 0


def test_every_way_of_ours_is_compared(compare):
    files = [benchmarks(a=(1, 10)), benchmarks(a=(1, 10))]
    for file, ours in zip(files, (1, 2), strict=True):
        file["benchmarks"][0]["extra_info"]["seconds"]["fastcnn channels_last"] = around(ours)
    result = compare(*files)
    assert "a fastcnn channels_last" in result.stdout
    assert result.returncode == 1


def test_what_only_one_file_has_is_named(compare):
    result = compare(OLD, benchmarks(a=(1, 10), d=(1, 10)))
    assert result.returncode == 0
    assert [line for line in result.stdout.splitlines() if line.startswith("only")] == [
        "only in the old file: b",
        "only in the old file: c",
        "only in the new file: d",
    ]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"benchmarks": 1}', '{"benchmarks": [{"name": "a", "extra_info": {}}]}']
)
def test_another_kind_of_file_is_refused(compare, content):
    result = compare(OLD, content)
    assert result.returncode == 2
    assert "new.json: not a file that make bench-cpu writes" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_without_quartiles_is_refused(compare):
    new = benchmarks(a=(1, 10))
    del new["benchmarks"][0]["extra_info"]["seconds"]["fastcnn"]["high"]
    assert "not a file that make bench-cpu writes" in compare(OLD, new).stderr


def test_files_with_nothing_in_common_are_refused(compare):
    result = compare(OLD, benchmarks(d=(1, 10)))
    assert result.returncode == 2
    assert "no benchmark of eager torch in common" in result.stderr


def test_a_missing_file_is_named(tmp_path):
    result = subprocess.run([sys.executable, SCRIPT, "no.json", "no.json"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "no.json: No such file or directory" in result.stderr
