"""Checks that Triton's kernels don't spill, keep their bounds, and are as docs/triton_resources.md says."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_page_is_what_triton_compiles():
    if not (ROOT / "docs" / "triton_resources.md").exists():
        pytest.skip("a copy of the package without its docs")
    command = [sys.executable, ROOT / "bench" / "triton_resources.py", "--check"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
