"""README and docs say what bench/results say, pictures and all."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"
pytestmark = pytest.mark.skipif(not BENCH.exists(), reason="a copy of the package without its benchmarks")


def test_texts_and_pictures_are_what_the_results_give():
    pytest.importorskip("matplotlib")
    command = [sys.executable, BENCH / "report.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def milliseconds(median):
    return {"low": 0.9 * median, "median": median, "high": 1.1 * median}


def test_what_a_gpu_gave_becomes_tables(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    from report_gpu import section

    rows = {
        "a layer | bfloat16": {
            "ms": {"fastcnn": milliseconds(0.5), "eager": milliseconds(2)},
            "times": {"eager": milliseconds(4)},
            "errors": {"torch.compile": "wrong by 1 of the largest value, not 0.05"},
            "GB/s": 1500.0,
            "share of copy": 0.75,
        },
        "a step | 256": {
            "ms": {"eager": milliseconds(10)},
            "times": {},
            "errors": {"fastcnn": "RuntimeError: no"},
            "peak_bytes": {"eager": 2_000_000},
        },
        "another": {"skipped": "no time left"},
    }
    text = section(
        {
            "device": "a GPU",
            "driver": "1.2",
            "versions": {"torch": "3.4"},
            "date": "2026-01-01",
            "parts": {
                "tests": {"status": "ok", "results": {"passed": 9}},
                "rates": {"status": "ok", "results": {"copy": {"GB/s": 2000.0}}},
                "blocks": {"status": "failed", "results": rows},
                "models": {"status": "timed out", "results": {}},
            },
        }
    )
    assert (
        text
        == """## GPU

By `make gpu` on a GPU, driver 1.2, torch 3.4, 2026-01-01.

### tests

ok; passed: 9

### rates

ok; copy: 2000 GB/s

### blocks

failed; another: skipped no time left

| | ms | quartiles | times the first's | GB/s | of a copy's | peak, MB |
|---|--:|--:|--:|--:|--:|--:|
| a layer, bfloat16: fastcnn | 0.5 | 0.45–0.55 |  | 1500 | 75% |  |
| a layer, bfloat16: eager | 2 | 1.8–2.2 | 4.00 |  |  |  |
| a layer, bfloat16: torch.compile | wrong by 1 of the largest value, not 0.05 | | | | | |
| a step, 256: eager | 10 | 9–11 |  |  |  | 2 |
| a step, 256: fastcnn | RuntimeError: no | | | | | |

### models

timed out
"""
    )
