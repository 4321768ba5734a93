"""The tests are collected without the packages that only a few of them need; those say so and are skipped."""

import re
import subprocess
import sys
from pathlib import Path

NEEDED_BY_FEW = ("expecttest", "matplotlib", "mlxtend", "rich")


def test_what_only_a_few_need_may_be_missing():
    block = f"import sys, pytest; sys.modules.update(dict.fromkeys({NEEDED_BY_FEW}))"
    collect = f"{block}; sys.exit(pytest.main(['--collect-only', '-qq', '-p', 'no:cacheprovider', '.']))"
    run = subprocess.run(
        [sys.executable, "-c", collect], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
    reasons = re.findall(r"^SKIPPED .*", run.stdout, re.MULTILINE)
    assert reasons
    assert all(any(name in reason for name in NEEDED_BY_FEW) for reason in reasons)
