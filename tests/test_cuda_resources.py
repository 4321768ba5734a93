"""Checks that no CUDA kernel spills, and that docs/cuda_resources.md says what the compiled ones need."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastcnn import _native

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cuda_resources.md"


def test_the_page_is_what_was_compiled():
    if not PAGE.exists():
        pytest.skip("a copy of the package without its docs")
    built = _native.load().build_info()["cuda"] if _native.missing_reason() is None else "missing"
    compiler = re.search(r"^By nvcc (.*)\.$", PAGE.read_text(), re.MULTILINE)[1]
    if not built.startswith(compiler):
        pytest.skip(f"the page is of {compiler}; the extension's CUDA side is {built}")
    command = [sys.executable, ROOT / "bench" / "resources.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
