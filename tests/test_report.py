"""README and docs say what bench/results say, pictures and all."""

import json
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


def test_what_a_gpu_gave_becomes_tables(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCH)
    from report_gpu import section

    rows = [
        {"name": "an epilogue", "us": {"cuda": [9.5, 10, 10.5, "graph"]}, "cuda of copy": 0.75},
        {"name": "a block", "us": {"plain": [90, 100, 110, "delay"]}, "left out": {"cuda": "Error: no"}},
        {"name": "an epilogue, right", "verdict": "ok"},
    ]
    result = {
        "command": "full",
        "device": "a GPU",
        "driver": "1.2",
        "versions": {"torch": "3.4"},
        "date": "2026-01-01",
        "tests": {"passed": 9, "failed": 0},
        "rows": rows,
    }
    (tmp_path / "gpu_full.json").write_text(json.dumps(result))
    page = section(tmp_path)
    assert page.startswith("## GPU\n")
    assert "- copy, 512 MiB · GB/s: predicted 2800–3100, not measured\n" in page
    assert (
        page[page.index("### ") :]
        == """### `python bench/gpu.py full`

On a GPU, driver 1.2, torch 3.4, 2026-01-01.

- tests: 9 passed, 0 failed

|  | µs | quartiles | of a copy's rate |
|---|--:|--:|--:|
| an epilogue: cuda | 10 | 9.5–10.5 | 75% |
| a block: plain (delay) | 100 | 90–110 |  |
| a block: cuda, left out: Error: no |  |  |  |
"""
    )
