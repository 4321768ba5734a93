"""Without torch, or with one that is too old, fastcnn says in one line what to install."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcnn
from fastcnn import _requirements

PACKAGE = Path(fastcnn.__file__).parent
INSTALL = "install it with: pip install 'torch>=2.11'"
NONE = "raise ModuleNotFoundError('No module named torch', name='torch')"
OLD = "__version__ = '2.10.1+cpu'"
MESSAGES = {
    NONE: f"fastcnn needs torch 2.11 or later, which is not installed; {INSTALL}",
    OLD: f"fastcnn needs torch 2.11 or later, but found 2.10.1+cpu; {INSTALL}",
}
COMMANDS = {"module": ["-m", "fastcnn", "--version"], "script": ["bin/fastcnn", "--version"]}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs Python where fastcnn is, with files of these contents."""
    (tmp_path / "fastcnn").symlink_to(PACKAGE)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "fastcnn").write_text("import sys\nfrom fastcnn.cli import main\nsys.exit(main())")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(*arguments, **files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        program = [sys.executable, *arguments]
        return subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return run


@pytest.mark.parametrize("torch", MESSAGES, ids=["none", "old"])
def test_import(torch, run):
    result = run("-c", "import fastcnn", torch=torch)
    error = "ModuleNotFoundError" if torch is NONE else "ImportError"
    assert result.stderr.splitlines()[-1] == f"{error}: {MESSAGES[torch]}"
    assert result.stderr.count("Traceback") == result.returncode == 1


def test_import_where_torch_is_blocked(run):
    blocked = "import sys; sys.modules['torch'] = None\n"
    code = blocked + "try: import fastcnn\nexcept ModuleNotFoundError as error: print(error)"
    assert run("-c", code).stdout == f"{MESSAGES[NONE]}\n"


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("torch", MESSAGES, ids=["none", "old"])
def test_commands_end_in_one_line(torch, command, run):
    result = run(*command, torch=torch)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", f"{MESSAGES[torch]}\n")


def test_other_programs_are_not_ended(run):
    mine = "try: import fastcnn\nexcept ImportError: print('without')"
    result = run("-m", "mine", torch=OLD, mine=mine)
    assert (result.stdout, result.stderr) == ("without\n", "")


def test_what_a_broken_torch_lacks_is_told_as_it_is(run):
    result = run("-c", "import fastcnn", torch="import no_such_module")
    assert result.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'no_such_module'"


@pytest.mark.parametrize("version", ["2.11.0", "2.14.1+cpu", "3.0.0a0+git1234567", "unknown"])
def test_versions_that_are_taken(version, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    _requirements.check()


@pytest.mark.parametrize("version", ["2.10.1", "2.9.0+cu130", "1.13.1", "2.3.0a0+git1234567"])
def test_versions_that_are_refused(version, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ImportError, match=f"but found {re.escape(version)}; "):
        _requirements.check()


@pytest.mark.skipif(not (PACKAGE.parent / "pyproject.toml").exists(), reason="installed without sources")
def test_the_version_is_the_one_that_pip_is_asked_for():
    (bound,) = re.findall(r'"torch>=(\d+)\.(\d+)', (PACKAGE.parent / "pyproject.toml").read_text())
    assert tuple(map(int, bound)) == _requirements.TORCH
