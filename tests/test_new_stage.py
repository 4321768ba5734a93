"""The example of docs/new_stage.md, applied to a copy of fastcnn, passes its own tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fastcnn

PAGE = Path(__file__).parents[1] / "docs" / "new_stage.md"


def apply(diff, folder):
    """Applies a diff without line numbers; the old lines of each hunk must be in the file, once."""
    for section in diff.split("+++ ")[1:]:
        name, _, rest = section.partition("\n")
        path = folder / name
        text = path.read_text() if path.exists() else ""
        for hunk in re.split(r"(?m)^@@.*\n", rest)[1:]:
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] in " -")
            new = "".join(line[1:] for line in lines if line[0] in " +")
            assert text.count(old) == 1 or not (old or text), f"{name} has changed; the page has:\n{old}"
            text = text.replace(old, new) if old else new
        path.write_text(text)


def test_the_example(tmp_path):
    package = Path(fastcnn.__file__).parent
    shutil.copytree(package, tmp_path / "fastcnn", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests").mkdir()
    diffs = re.findall(r"(?ms)^```diff\n(.*?)^```", PAGE.read_text())
    assert len(diffs) == 5
    for diff in diffs:
        apply(diff, tmp_path)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_leaky_relu.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
