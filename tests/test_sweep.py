"""bench/sweep.py on a few cases: both sides agree, what counts as slower, and the page it becomes."""

import json
import random
from pathlib import Path

import pytest
import torch

from fastcnn.measure import Budget, Timing
from fastcnn.testing import assert_close

BENCH = Path(__file__).parents[1] / "bench"
pytestmark = pytest.mark.skipif(not BENCH.exists(), reason="a copy of the package without its benchmarks")


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    import sweep

    threads = torch.get_num_threads()
    yield sweep
    torch.set_num_threads(threads)


def test_both_sides_compute_the_same(sweep):
    for make in sweep.OPS.values():
        torch.manual_seed(0)
        draw = random.Random(1)
        for _ in range(2):
            case = make(draw)
            for mode in sweep.MODES:
                plain, ours = (run() for run in sweep.runs(case, mode))
                pairs = [(ours, plain)] if mode == "inference" else zip(ours, plain, strict=True)
                for a, b in pairs:
                    assert_close(a / b.abs().max(), b / b.abs().max(), 100)


def test_slower_is_what_stays_slower(sweep, monkeypatch):
    fast, slow, noisy = Timing(1.0, 0.9, 1.1), Timing(0.8, 0.7, 0.9), Timing(0.9, 0.7, 1.1)
    for ratios, slower in (
        ([fast], False),
        ([slow, slow], True),
        ([slow, fast], False),
        ([slow, noisy], False),
    ):
        given = iter(ratios)
        monkeypatch.setattr(sweep, "in_turns", lambda fns, budget: {name: [1e-6] for name in fns})
        monkeypatch.setattr(sweep, "ratio", lambda over, under, given=given: next(given))
        assert sweep.compare(None, None)["slower"] is slower
        assert next(given, None) is None


def test_a_few_cases_become_a_page(sweep, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sweep, "LOOK", Budget(2))
    monkeypatch.setattr(sweep, "LOOK_AGAIN", Budget(3))
    names = ("max_pool2d", "fused Sequential", "lenet5")
    monkeypatch.setattr(sweep, "OPS", {name: sweep.OPS[name] for name in names})
    path = tmp_path / "sweep.json"
    monkeypatch.setattr("sys.argv", ["sweep.py", "--cases", "1", "--out", str(path)])
    sweep.main()
    assert capsys.readouterr().out.startswith("# Random shapes beside plain torch")
    data = json.loads(path.read_text())
    found = [(row["op"], row["mode"], row["threads"]) for row in data["rows"]]
    assert found == [(op, mode, threads) for op in names for mode in sweep.MODES for threads in (1, 2)]
    assert data["machine_info"]["threads"] == "1 and 2"
    for row in data["rows"]:
        row["slower"] = False  # whatever so few rounds said
    data["rows"][0] |= {
        "slower": True,
        "plain_seconds": 1e-6,
        "times_faster": {"low": 0.1, "median": 0.2, "high": 0.3},
    }
    text = sweep.page(data)
    assert "| max_pool2d | inference | < 50 µs |" in text
    (slow,) = (line for line in text.splitlines() if line.startswith("| max_pool2d, inference | `["))
    assert slow.endswith("` | 1 | 0.20 | 0.10–0.30 | 1 |")


def test_quick_writes_no_results(sweep, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "RESULTS", tmp_path / "sweep.json")
    monkeypatch.setattr(sweep, "sweep", lambda cases, seed: iter([]))
    monkeypatch.setattr("sys.argv", ["sweep.py", "--quick"])
    sweep.main()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("sys.argv", ["sweep.py"])
    sweep.main()
    assert json.loads((tmp_path / "sweep.json").read_text())["cases"] == 60
