"""README and docs say what bench/results say, pictures and all."""

import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "speed.svg"


def test_texts_and_pictures_are_what_the_results_give():
    if not PICTURE.exists():
        pytest.skip("a copy of the package without its docs")
    if f"Matplotlib v{matplotlib.__version__}," not in PICTURE.read_text():
        pytest.skip(f"the pictures are by another matplotlib than {matplotlib.__version__}")
    command = [sys.executable, ROOT / "bench" / "report.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
