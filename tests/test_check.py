"""``python -m fastcnn check``: each kernel in a process of its own, and what becomes of one that is wrong."""

import json
import os
import signal

import pytest
import torch

from fastcnn import check, cli
from fastcnn.backends import cpu
from fastcnn.check import Case, Outcome

CASE = Case("cpu", "relu, lrn, pool 3/2", torch.float32, "NCHW", "cpu")


def dies(case):
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves(case):
    os._exit(3)


def hangs(case):
    signal.pause()


def test_every_kernel_of_this_machine_is_right(monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # which takes minutes for all of them
    assert cli.main(["check", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    ours = [row for row in rows if row["backend"] == "cpu"]
    assert len(ours) == 6 * 4 * 2
    assert all(row["wrong"] is None and row["speed"] > 0 for row in rows)


@pytest.mark.parametrize(("attempt", "wrong"), [
    (dies, "ended its process: SIGSEGV"),
    (leaves, "ended its process: exit status 3"),
    (hangs, "took more than 1 s"),
])  # fmt: skip
def test_what_ends_a_process_ends_one_row(monkeypatch, attempt, wrong):
    monkeypatch.setattr(check, "_LIMIT", 1 if attempt is hangs else 60)
    assert check.in_process(attempt, CASE).wrong == wrong


def test_a_wrong_kernel_is_named(monkeypatch, capsys):
    forward = cpu.epilogue_forward

    def planted(x, bias, stages, save):
        y, *kept = forward(x, bias, stages, save)
        y[0, 0, 0, 0] += 1
        return y, *kept

    monkeypatch.setattr(cpu, "epilogue_forward", planted)
    monkeypatch.setattr(check, "_cases", lambda device: [CASE])
    monkeypatch.setattr(check, "in_process", lambda attempt, case: attempt(case))
    assert cli.main(["check"]) == 1
    line = capsys.readouterr().out
    assert line.startswith(
        "cpu    relu, lrn, pool 3/2  float32   NCHW           WRONG  AssertionError: error 1"
    )


@pytest.mark.parametrize("device", ["cuda:99", "mps", "meta", "nothing", ""])
def test_a_device_that_is_not_there_is_one_line(capsys, device):
    assert cli.main(["check", "--device", device]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("check: ")
    assert device in output.err
    assert output.err.count("\n") == 1


def test_where_nothing_of_ours_runs_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(check, "_cases", lambda device: [])
    assert cli.main(["check"]) == 0
    assert "only torch's own functions run on cpu" in capsys.readouterr().out


def test_an_outcome_is_a_speed_or_a_reason():
    assert check._line(CASE, Outcome(None, 2.0)).endswith("right  2.00 times plain torch's speed")
