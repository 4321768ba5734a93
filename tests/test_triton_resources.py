"""Triton's kernels compile for every target without spilling, as docs/triton_resources.md says."""

import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "triton_resources.md"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_table_is_what_triton_compiles():
    if not TABLE.exists():
        pytest.skip("a copy of the package without its docs")
    compiler = re.search(r"Triton (\d[\d.]*\d)\.$", TABLE.read_text(), re.MULTILINE)[1]
    if version("triton") != compiler:
        pytest.skip(f"the table is Triton {compiler}'s, this is {version('triton')}")
    command = [sys.executable, ROOT / "bench" / "triton_resources.py", "--check"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
