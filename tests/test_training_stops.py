"""Training that is stopped: what goes on, to the same bits, and what is said."""

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from training_processes import assert_same_weights
from trainings import log_of, train

from fastcnn import _files
from fastcnn.training import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

KILLS = 30


FILES = [".lock", "checkpoint.pt", "log.csv", "log.jsonl", "model.safetensors"]


# Stopped.


def run_in_a_child(data, out, *options):
    """A child that has imported everything before it was forked, so that it is killed while it trains."""
    torch.set_num_threads(1)
    sys.exit(train(data, out, *options))


def test_killed_at_any_moment_it_goes_on_to_the_same_bits(mnist, tmp_path):
    """Dropout, shifts, momentum and a checkpoint after every step."""
    options = ["--epochs", "3", "--recipe", "alexnet2012", "--rate", "0.001", "--save-every", "1"]
    assert train(mnist, tmp_path / "whole", *options) == 0
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_training_stops", "fastcnn.training.log"])
    draw, stopped, out = random.Random(0), 0, tmp_path / "killed"
    while stopped < KILLS:
        child = context.Process(target=run_in_a_child, args=(mnist, out, "--resume", *options))
        child.start()
        child.join(draw.uniform(0.02, 0.4))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            stopped += 1
            child.join()
        else:
            assert child.exitcode == 0
            (out / "checkpoint.pt").unlink()  # it got to the end: once more from the beginning
    assert train(mnist, out, "--resume", *options) == 0
    assert_same_weights(tmp_path / "whole", out)
    assert [row["loss"] for row in log_of(out)] == [row["loss"] for row in log_of(tmp_path / "whole")]
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "test_loss" in line] == [1, 2, 3]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert sorted(os.listdir(out)) == sorted([*FILES, "best.safetensors"])


def test_a_full_disk_stops_it_and_leaves_the_last_checkpoint(mnist, tmp_path, capsys):
    """The limit on a file's size stands for the disk's: writing fails in the middle of a checkpoint."""
    out = tmp_path / "run"
    assert train(mnist, tmp_path / "whole") == 0
    child = subprocess.run(
        [sys.executable, "-c", _WITH_A_SMALL_DISK, str(mnist), str(out)], capture_output=True, text=True
    )
    assert child.returncode == 1 and child.stderr.startswith("train: ") and "File too large: " in child.stderr
    assert "checkpoint.pt" in child.stderr
    assert sorted(os.listdir(out)) == FILES
    assert checkpoint.load(out / "checkpoint.pt", {})["step"] == 2
    assert train(mnist, out, "--resume") == 0
    assert_same_weights(tmp_path / "whole", out)


_WITH_A_SMALL_DISK = """
import resource, sys, torch
from fastcnn.training import checkpoint
from fastcnn.cli import main

save = checkpoint.save

def limited(path, state):
    if state["step"] > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    save(path, state)

checkpoint.save = limited
torch.set_num_threads(1)
_, data, out = sys.argv
options = "--batch 16 --epochs 2 --dtype float32 --workers 0 --save-every 2".split()
sys.exit(main(["train", "--data", data, "--out", out, *options]))
"""


_HOLDS = "import sys, pathlib; from fastcnn._files import held\nwith held(pathlib.Path({!r})): input()"


def test_a_second_training_in_the_folder_is_refused(mnist, tmp_path, capsys):
    """And none goes on beside it; what it had begun to write is left to it, and removed once it is killed."""
    out, begun = tmp_path / "run", tmp_path / "run" / f".checkpoint.pt.{'0' * 16}.new"
    out.mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", _HOLDS.format(str(out))], **pipes) as other:
        while not (out / ".lock").exists():
            assert other.poll() is None
            time.sleep(0.01)
        begun.write_bytes(b"half of it")
        for options in ((), ("--resume",)):
            while train(mnist, out, *options) == 0:  # it made the file, and then takes the lock
                (out / "checkpoint.pt").unlink()
                begun.write_bytes(b"half of it")
            assert f"train: {out}: another process writes to it" in capsys.readouterr().err
        assert begun.exists()
        other.kill()
    assert train(mnist, out) == 0
    assert not begun.exists()


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    for error in (FileNotFoundError(2, "gone", "another"), OSError("no number")):
        with pytest.raises(type(error), match=re.escape(str(error))), _files.replacing(tmp_path / "x"):
            raise error
    assert list(tmp_path.iterdir()) == []


def test_a_link_for_a_lock_or_a_file_aside_is_not_followed(mnist, tmp_path, capsys):
    out, precious = tmp_path / "run", tmp_path / "precious"
    out.mkdir()
    precious.write_text("mine")
    (out / ".lock").symlink_to(precious)
    assert train(mnist, out) == 1
    assert ".lock" in capsys.readouterr().err
    assert precious.read_text() == "mine"


@pytest.mark.parametrize(("after", "workers"), [(0.0, "0"), (0.05, "0"), (0.2, "0"), (0.2, "2")])
def test_sigterm_saves_and_ends_it(mnist, tmp_path, after, workers):
    """At a step that no checkpoint was due at. A whole process group gets it, the workers too."""
    options = ["--epochs", "2000", "--batch", "16", "--dtype", "float32", "--workers", workers]
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fastcnn", "train", "--data", str(mnist), "--out", str(out), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, env=environment, start_new_session=True) as process:
        while not (out / "log.csv").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(after)
        os.killpg(process.pid, signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, error
    (step,) = re.findall(rb"train: stopped by SIGTERM at step (\d+); --resume goes on from there\n", error)
    assert checkpoint.load(out / "checkpoint.pt", {})["step"] == int(step)


def test_losses_that_are_no_numbers_are_noticed_within_an_epoch(mnist, tmp_path, capsys):
    assert train(mnist, tmp_path / "run", "--batch", "1", "--rate", "1e30") == 1
    error = capsys.readouterr().err
    (step,) = re.findall(r"became NaN or infinite at step (\d+), at rate \S+; a lower --rate may help", error)
    assert int(step) <= 50


def test_a_checkpoint_is_not_written_over(mnist, tmp_path, capsys):
    assert train(mnist, tmp_path / "run", "--epochs", "1") == 0
    assert train(mnist, tmp_path / "run", "--epochs", "1") == 1
    assert "checkpoint.pt is there: --resume goes on from it" in capsys.readouterr().err


def test_more_epochs_extend_a_training_and_fewer_are_refused(mnist, tmp_path, capsys):
    """With the paper's rate, which knows nothing of the end, to the same bits."""
    recipe = ["--recipe", "alexnet2012", "--epochs"]
    assert train(mnist, tmp_path / "whole", *recipe, "3") == 0
    assert train(mnist, tmp_path / "run", *recipe, "2") == 0
    assert train(mnist, tmp_path / "run", *recipe, "3", "--resume") == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "run")
    assert train(mnist, tmp_path / "run", *recipe, "1", "--resume") == 1
    assert re.search(
        r"checkpoint.pt: is at step \d+ already; --epochs 1 ends at \d+\n", capsys.readouterr().err
    )


def test_no_checkpoint_is_said_and_a_foreign_one_refused(mnist, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(mnist, out, "--resume") == 0
    assert f"no checkpoint in {out} yet: starting from the beginning" in capsys.readouterr().out
    assert train(mnist, out, "--resume", "--seed", "1", "--variant", "caffe") == 1
    error = capsys.readouterr().err
    assert "different settings: --model \"lenet5('relu')\", now \"lenet5('caffe')\"; --seed 0, now 1" in error
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    torch.save(state | {"settings": {"--size": torch.ones(2)}}, out / "checkpoint.pt")
    assert train(mnist, out, "--resume") == 1
    assert "different settings: " in capsys.readouterr().err
    for foreign in ({"model": {}}, [1, 2], {"format": "something"}):
        torch.save(foreign, out / "checkpoint.pt")
        assert train(mnist, out, "--resume") == 1
        assert "checkpoint.pt: not a checkpoint that fastcnn's training wrote" in capsys.readouterr().err
