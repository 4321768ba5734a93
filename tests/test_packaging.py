"""The promises of an installed fastcnn besides its results: imports, files, one OpenMP, versions."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastcnn
from fastcnn.testing import backends

ROOT = Path(__file__).parents[1]


def run(code: str) -> str:
    """Returns what code prints in a Python of its own, where no other test has imported anything."""
    return subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout


def test_version_is_the_declared_one():
    try:
        importlib.metadata.version("fastcnn")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fastcnn is not installed, only on the path")
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert fastcnn.__version__ == declared[1]


def test_types_are_declared():
    assert (Path(fastcnn.__file__).parent / "py.typed").is_file()


def test_import_leaves_the_heavy_ones_out():
    heavy = {"matplotlib", "rich", "triton"}
    loaded = run(
        "import sys, torch; before = set(sys.modules); import fastcnn\nprint(*(set(sys.modules) - before))"
    ).split()
    assert heavy.isdisjoint(loaded)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc/self/maps")
@pytest.mark.skipif("cpu" not in backends(), reason="no native extension")
def test_one_openmp_in_the_process():
    maps = run("""
import torch, fastcnn
with fastcnn.use_backend("cpu"):
    fastcnn.functional.epilogue(torch.ones(2, 8, 9, 9), lrn=fastcnn.LRN())
print(open("/proc/self/maps").read())
""")
    libraries = {word for word in maps.split() if ".so" in word}
    assert any("/_C." in path for path in libraries)
    assert len([path for path in libraries if "/libgomp" in path or "/libiomp" in path]) == 1
