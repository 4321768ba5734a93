"""The output of a training and its log.jsonl; it imports no compiler, and says no error twice."""

import copy
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from test_training_graph import training_of
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from training_processes import torchrun
from trainings import log_of, train, write_mnist, write_pictures

from fastcnn.data import find
from fastcnn.training import eager, live, log
from fastcnn.training.batches import Steps
from fastcnn.training.live import Moment, Watch
from fastcnn.training.plan import Epoch
from fastcnn.training.processes import report
from fastcnn.training.scores import Scores

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def mnist(tmp_path):
    """Of ten classes, so that there is an error among five; six steps of 16 images in an epoch."""
    return write_mnist(tmp_path / "data", classes=10)


def lines_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


# In words.

NUMBERS = r"loss \d\.\d{4}, top-1 error \d+\.\d%, top-5 error \d+\.\d%"
SPEED = r", [\d,]+ images/s, 0:\d\d:\d\d to go"


def test_without_a_terminal_there_are_lines(mnist, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(log, "EVERY", 0)
    assert train(mnist, tmp_path / "run") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert said[0] == log.HEADER and len(said) == 13
    assert re.fullmatch(f"epoch 1, step 1 of 12: {NUMBERS}", said[1])
    assert re.fullmatch(f"epoch 2, step 12 of 12: {NUMBERS}{SPEED}", said[12])


def test_lines_come_now_and_then(mnist, tmp_path, capsys):
    assert train(mnist, tmp_path / "run") == 0
    assert len(re.findall("^epoch .* step ", capsys.readouterr().out, re.MULTILINE)) == 1
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [1, 6, 12]


def test_in_a_terminal_the_numbers_are_beside_the_bar(mnist, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(log, "_REFRESH", 0)
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "200", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    assert train(mnist, tmp_path / "run") == 0
    said = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert re.search(f"epoch 2, step 12 of 12 ━+ {NUMBERS}{SPEED}", said)
    assert "of 12: " not in said


def test_the_end_says_what_is_next(mnist, tmp_path, capsys):
    out = tmp_path / "a run"
    assert train(mnist, out) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"Weights, log and checkpoint are in {out}",
        f"Next: python -m fastcnn evaluate '{out}' --data {mnist}, "
        f"or python -m fastcnn predict '{out}' PICTURE...",
    ]


# When, and how fast.


@pytest.fixture
def clock(monkeypatch):
    """The time that a :class:`Watch` sees."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(live, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


class Standing:
    """A training of 3 epochs of 100 steps that stands still; loss tells the step at which it was known."""

    step, stop, rate, known = 0, 300, 0.1, None
    plan = SimpleNamespace(recipe=SimpleNamespace(batch=32, epochs=3))

    def __init__(self):
        self.history = []

    def so_far(self):
        return self.known and Scores(float(self.known), 0.5, None)


def test_speed_is_of_the_steps_since_the_moment_before(clock):
    training = Standing()
    watch = Watch(training, every=10)
    training.step, clock.now = 1, 107
    first = watch.look(None)
    assert first == Moment(1, 1, 0.1, None, None, None, None, 7.0)
    assert watch.text(first) == ""
    training.step, training.known, clock.now = 20, 20, 116
    assert watch.look(None) is None  # too early
    training.step, clock.now = 21, 117
    second = watch.look(None)
    assert second == Moment(21, 1, 0.1, 20.0, 0.5, None, 20 * 32 / 10, 17.0)
    assert watch.text(second) == "loss 20.0000, top-1 error 50.0%, 64 images/s, 0:02:20 to go"


def test_nothing_is_said_twice_and_the_next_speed_is_since_what_was_said(clock):
    training = Standing()
    watch = Watch(training, every=10)
    training.step = training.known = 1
    assert watch.look(None)
    training.step, clock.now = 2, 120
    assert watch.look(None) is None
    training.step, training.known, clock.now = 3, 3, 140
    assert watch.look(None).images_per_second == 2 * 32 / 40


def test_a_test_is_no_step_but_takes_its_time(clock):
    training = Standing()
    watch = Watch(training, every=10)
    training.step = training.known = 1
    assert watch.look(None)
    training.step = training.known = 100
    clock.now += 9
    assert watch.look(None) is None
    clock.now += 1000
    training.history.append("the first epoch")
    assert watch.look("the first epoch") is None
    training.step = training.known = 101
    clock.now += 1
    moment = watch.look(None)
    assert moment.images_per_second == 100 * 32 / 10 and moment.epoch == 2
    assert watch.text(moment).endswith("320 images/s, 0:33:40 to go")  # 199 steps of 0.1 s, 2 tests of 1000 s


def test_an_epoch_begins_without_the_numbers_of_the_one_before(mnist, tmp_path):
    training = training_of(mnist, tmp_path, batch=4)
    for epoch in training.run():
        if epoch:
            assert training.so_far() is None and not training._seen.any()
        else:
            assert training.so_far() is not None
    assert len(training.history) == 2


# For programs.


def test_log_jsonl_has_moments_and_epochs(mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(log, "EVERY", 0)
    out = tmp_path / "run"
    assert train(mnist, out) == 0
    lines = lines_of(out)
    moments = [line for line in lines if "test_loss" not in line]
    assert [(m["step"], m["epoch"]) for m in moments] == [(i, 1 + (i > 6)) for i in range(1, 13)]
    assert all(list(moment) == list(Moment._fields) for moment in moments)
    assert moments[0]["images_per_second"] is None and moments[1]["images_per_second"] > 0
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    epochs = [line for line in lines if "test_loss" in line]
    assert [(e["step"], e["epoch"]) for e in epochs] == [(6, 1), (12, 2)]
    assert all(set(epoch) == {"step", *Epoch._fields} for epoch in epochs)
    assert [str(epoch["loss"]) for epoch in epochs] == [row["loss"] for row in log_of(out)]


def test_what_json_has_no_number_for_is_null():
    line = log._json({"step": 3, "loss": float("nan"), "error": float("inf"), "rate": 0.5, "error5": None})
    assert json.loads(line) == {"step": 3, "loss": None, "error": None, "rate": 0.5, "error5": None}


def test_going_on_drops_what_is_beyond_the_checkpoint(mnist, tmp_path):
    """And what is no line of its own; an epoch of which the line was not written any more is there."""
    out, options = tmp_path / "run", ["--recipe", "alexnet2012", "--rate", "1e-5"]
    assert train(mnist, out, *options, "--epochs", "1") == 0
    first, epoch = (out / "log.jsonl").read_text().splitlines()
    foreign = ['{"step": "3"}', "[1]", "7", '{"epoch": 1}', "\x00", '{"step": 2, "of": "a user"}']
    text = "\n".join([first, *foreign, first.replace('"step": 1', '"step": 7'), '{"step": 6, "epo'])
    (out / "log.jsonl").write_text(text)
    assert train(mnist, out, *options, "--epochs", "2", "--resume") == 0
    lines = (out / "log.jsonl").read_text().splitlines()
    assert lines[:3] == [first, foreign[-1], epoch]
    assert [json.loads(line)["step"] for line in lines[3:]] == [7, 12]
    assert lines[3] != first.replace('"step": 1', '"step": 7')


def test_a_fresh_training_starts_an_empty_one(mnist, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "log.jsonl").write_text('{"step": 1}\n')
    assert train(mnist, out) == 0
    assert [line["step"] for line in lines_of(out)] == [1, 6, 12]


# An error of several processes.


def test_the_first_of_several_reports_an_error_and_torchrun_takes_it_for_the_cause(tmp_path, monkeypatch):
    files = [tmp_path / str(rank) / "error.json" for rank in range(3)]
    said = {}
    for rank in (2, 0, 1):
        files[rank].parent.mkdir()
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(files[rank]))
        said[rank] = report(f"train: of {rank}\nand more")
    assert said == {2: True, 0: False, 1: False}
    failures = {rank: ProcessFailure(rank, 1000 + rank, 1, str(file)) for rank, file in enumerate(files)}
    error = ChildFailedError("fastcnn", failures)
    assert error.get_first_failure()[0] == 2
    assert "traceback : train: of 2\n  and more\n" in str(error)


@pytest.mark.parametrize("file", [None, "", "/nowhere/0/error.json"])
def test_without_torchrun_an_error_is_said(file, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    if file is not None:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)
    assert report("train: an error")


def said_by_two(*arguments):
    process = torchrun(*arguments)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    return said


def test_two_processes_say_the_same_error_once(tmp_path):
    said = said_by_two(tmp_path / "nowhere", tmp_path / "run")
    assert re.findall("^train: .*", said, re.MULTILINE) == [
        f"train: --data must be a folder, or digits, but got '{tmp_path / 'nowhere'}'"
    ]


def test_an_error_of_the_second_process_alone_is_said_once(tmp_path):
    data = write_pictures(tmp_path / "data", 20)
    paths = find(str(data), 28).train.paths
    bad = paths[Steps(len(paths), 16, seed=0).numbers(1)[-1]]
    bad.write_bytes(b"")
    said = said_by_two(data, tmp_path / "run", "--model", "lenet5", "--size", "28")
    (line,) = re.findall("^train: .*", said, re.MULTILINE)
    assert f"can't read {bad}: " in line
    assert f"traceback : {line}" in said.partition("Root Cause")[2]


# Without the compiler.

WITHOUT_THE_COMPILER = """
import sys
from fastcnn.cli import main

_, data, out = sys.argv
for recipe in ("modern", "alexnet2012"):
    for dtype in ("float32", "bfloat16", "float16"):
        options = ["--recipe", recipe, "--rate", "1e-5", "--dtype", dtype, "--workers", "1", "--epochs"]
        run = ["train", "--data", data, "--out", f"{out}-{recipe}-{dtype}", "--batch", "96", *options]
        assert main([*run, "1"]) == 0
        if recipe == "alexnet2012":
            assert main([*run, "2", "--resume"]) == 0
        assert "torch._dynamo" not in sys.modules
"""


def test_training_does_not_import_the_compiler(mnist, tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_COMPILER, str(mnist), str(tmp_path / "run")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr


def test_adamw_is_torchs():
    """To the same bits, also from a state of it."""
    start = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    options = {"lr": 0.1, "weight_decay": 0.05, "fused": True}
    a, b = eager.AdamW([ours], **options), torch.optim.AdamW([theirs], **options)
    for step in range(4):
        for w, optimizer in ((ours, a), (theirs, b)):
            optimizer.zero_grad()
            (w.sin() * (step + 1)).sum().backward()
            optimizer.step()
        assert torch.equal(ours, theirs) and not torch.equal(ours, start)
        if step == 1:
            a.load_state_dict(copy.deepcopy(b.state_dict()))
    assert a.state_dict()["state"].keys() == b.state_dict()["state"].keys()
    assert a.state_dict()["param_groups"] == b.state_dict()["param_groups"]
