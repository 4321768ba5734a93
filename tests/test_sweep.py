"""bench/sweep.py on a few cases: both sides agree, what counts as slower, and the page it becomes."""

import json
import random
from pathlib import Path

import pytest
import torch

from fastcnn.measure import Timing
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
        monkeypatch.setattr(sweep, "in_turns", lambda plain, ours, rounds, given=given: (next(given), 1e-6))
        assert sweep.compare(None, None)["slower"] is slower
        assert next(given, None) is None


def test_a_few_cases_become_a_page(sweep, monkeypatch, capsys, tmp_path):
    from report_sweep import page

    monkeypatch.setattr(sweep, "ROUNDS", 2)
    monkeypatch.setattr(sweep, "AGAIN", 3)
    monkeypatch.setattr(sweep, "LIMIT", 0)
    monkeypatch.setattr(sweep, "TURN", 0)
    names = ("max_pool2d", "fused Sequential", "lenet5")
    monkeypatch.setattr(sweep, "OPS", {name: sweep.OPS[name] for name in names})
    path = tmp_path / "sweep.json"
    monkeypatch.setattr("sys.argv", ["sweep.py", "--cases", "1", "--out", str(path)])
    sweep.main()
    printed = capsys.readouterr().out
    assert len(printed.split("The worst:")[1].strip().splitlines()) == sweep.WORST
    data = json.loads(path.read_text())
    found = [(row["op"], row["mode"], row["threads"]) for row in data["rows"]]
    assert found == [(op, mode, threads) for op in names for mode in sweep.MODES for threads in (1, 2)]
    assert data["machine_info"]["threads"] == "1 and 2"
    data["rows"][0] |= {
        "slower": True,
        "plain_seconds": 1e-6,
        "times_faster": {"low": 0.1, "median": 0.2, "high": 0.3},
    }
    text = page(data)
    assert "| max_pool2d | inference | < 50 µs |" in text
    assert "| 0.20 | 0.10–0.30 | 1 | 1 | max_pool2d, inference | `[" in text


def test_quick_writes_no_results(sweep, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "RESULTS", tmp_path / "sweep.json")
    monkeypatch.setattr(sweep, "sweep", lambda cases, seed: iter([]))
    monkeypatch.setattr(sweep, "show", lambda rows: None)
    monkeypatch.setattr("sys.argv", ["sweep.py", "--quick"])
    sweep.main()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("sys.argv", ["sweep.py"])
    sweep.main()
    assert json.loads((tmp_path / "sweep.json").read_text())["cases"] == 60
