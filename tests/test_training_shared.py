"""Trainings shared by processes: as one, without what either cannot read, started again."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from training_processes import assert_same_weights, torchrun
from trainings import log_of, train, weights_of, write_pictures

from fastcnn.data import find
from fastcnn.training.batches import Steps
from fastcnn.training.log import HEADER

pytestmark = pytest.mark.usefixtures("one_thread")


def test_two_processes_train_as_one_with_the_whole_batch(mnist, tmp_path):
    """Equal but for the order in which gradients are added, which later steps magnify."""
    options = ["--epochs", "4", "--batch", "20"]  # a last batch of 16
    process = torchrun(mnist, tmp_path / "two", *options)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "batch 20 shared by 2 processes" in said and said.count(HEADER) == 1
    assert train(mnist, tmp_path / "one", *options) == 0
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    for name in ("loss", "test_loss", "error", "rate"):
        assert [float(r[name]) for r in two] == pytest.approx([float(r[name]) for r in one], rel=1e-4)
    weights = weights_of(tmp_path / "two")
    for name, value in weights_of(tmp_path / "one").items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)


def test_two_processes_leave_out_what_either_cannot_read(tmp_path):
    """In the last step one of them has no image, and its share of the gradients is 0."""
    data = write_pictures(tmp_path / "data", 20)
    paths = find(str(data), 28).train.paths
    last = Steps(len(paths), 18, seed=0).numbers(2).tolist()
    for number in last[:9]:
        paths[number].write_bytes(b"")
    options = ["--model", "lenet5", "--size", "28", "--skip-bad", "--batch", "18", "--epochs", "1"]
    process = torchrun(data, tmp_path / "two", *options)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "9 images could not be read" in said, said
    assert train(data, tmp_path / "one", *options) == 0
    weights = weights_of(tmp_path / "two")
    for name, value in weights_of(tmp_path / "one").items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)


def workers_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if "train" in Path(f"/proc/{child}/cmdline").read_text()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes to kill in /proc")
def test_a_killed_process_is_started_again_and_only_steps_since_the_checkpoint_are_lost(mnist, tmp_path):
    options = ["--epochs", "16", "--save-every", "2"]
    whole = torchrun(mnist, tmp_path / "whole", *options)
    out = tmp_path / "killed"
    process = torchrun(mnist, out, "--resume", *options, restarts=1)
    while not (out / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(workers_of(process)[-1], signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "going on from step" in said
    assert whole.wait(timeout=120) == 0
    assert_same_weights(tmp_path / "whole", out)
