"""Training that is stopped, damaged or shared: what goes on, to the same bits, and what is said."""

import copy
import gzip
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import rmtree

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_training import log_of, one_thread, train, weights_of, write_idx, write_mnist, write_pictures

from fastcnn import _files
from fastcnn.data import find, idx, pictures
from fastcnn.models import lenet5, load_weights
from fastcnn.training import checkpoint
from fastcnn.training.augment import UNIT
from fastcnn.training.batches import Steps
from fastcnn.training.log import HEADER

KILLS = 30
FILES = [".lock", "checkpoint.pt", "log.csv", "log.jsonl", "model.safetensors"]
__all__ = ["one_thread"]  # a fixture


@pytest.fixture
def mnist(tmp_path):
    (tmp_path / "data").mkdir()
    return write_mnist(tmp_path / "data")


def assert_same_weights(a, b):
    a, b = weights_of(a), weights_of(b)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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
    assert "other settings: --model \"lenet5('relu')\", now \"lenet5('caffe')\"; --seed 0, now 1" in error
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    torch.save(state | {"settings": {"--size": torch.ones(2)}}, out / "checkpoint.pt")
    assert train(mnist, out, "--resume") == 1
    assert "other settings: " in capsys.readouterr().err
    for foreign in ({"model": {}}, [1, 2], {"format": "something"}):
        torch.save(foreign, out / "checkpoint.pt")
        assert train(mnist, out, "--resume") == 1
        assert "checkpoint.pt: not a checkpoint that fastcnn's training wrote" in capsys.readouterr().err


# Damaged.


def changed(*keys, to):
    """What makes another value of a field of a checkpoint."""

    def change(state):
        *path, last = keys
        for key in path:
            if isinstance(state[key], tuple):
                state[key] = list(state[key])
            state = state[key]
        state[last] = to(state[last])

    return change


def without(name):
    return lambda state: state.pop(name)


def nan(t):
    return torch.full_like(t, float("nan"))


def momentum(to):
    def change(state):
        kept = state["optimizer"][0]
        kept.update({name: to(value) for name, value in kept.items()})

    return change


DAMAGES = {
    **{f"no {name}": (without(name), f"its '{name}' is None") for name in checkpoint._FIELDS},
    **{f"{name} is text": (changed(name, to=str), f"its '{name}' is ") for name in checkpoint._FIELDS},
    **{
        f"{name} is -1": (changed(name, to=lambda _: -1), f"its '{name}' is -1")
        for name in checkpoint._FIELDS
    },
    "step of True": (changed("step", to=lambda _: True), "its 'step' is True"),
    "another step": (changed("step", to=lambda n: n - 1), "ValueError: at step "),
    "an epoch too few": (changed("history", to=lambda h: h[:-1]), "after 0 epochs"),
    "an epoch of text": (changed("history", 0, to=lambda _: ("a",) * 8), "its 'history' is"),
    "an epoch of NaN": (
        changed("history", 0, to=lambda e: (*e[:2], float("nan"), *e[3:])),
        "its 'history' is",
    ),
    "a short epoch": (changed("history", 0, to=lambda e: e[:5]), "its 'history' is"),
    "NaN in a weight": (changed("model", "classifier.f6.bias", to=nan), "its 'model' is"),
    "a weight of another shape": (
        changed("model", "classifier.f6.bias", to=lambda t: t[1:]),
        "size mismatch",
    ),
    "a weight missing": (lambda state: state["model"].pop("classifier.f6.bias"), "classifier.f6.bias"),
    "a weight too many": (changed("model", to=lambda m: m | {"x": torch.ones(1)}), '"x"'),
    "no tensor for a weight": (changed("model", "classifier.f6.bias", to=lambda t: 3), "its 'model' is"),
    "NaN in the momentum": (momentum(nan), "its 'optimizer' is"),
    "momentum of another shape": (momentum(lambda t: t[1:]), "ValueError: the optimizer's "),
    "momentum of halves": (momentum(lambda t: t.half()), "ValueError: the optimizer's "),
    "no momentum": (momentum(lambda t: None), "its 'optimizer' is"),
    "other momentum": (changed("optimizer", 0, to=lambda k: {"m": k["v"]}), "ValueError: the optimizer's "),
    "no state of one": (lambda state: state["optimizer"].pop(0), "ValueError: the optimizer's "),
    "no state": (changed("optimizer", to=lambda _: {}), "ValueError: the optimizer's "),
    "state of text": (changed("optimizer", 0, to=str), "its 'optimizer' is"),
    "settings are text": (changed("settings", to=str), "its 'settings' is"),
    "weights of doubles": (changed("model", "classifier.f6.bias", to=lambda t: t.double()), "torch.float64"),
    "weights of integers": (changed("model", "classifier.f6.bias", to=lambda t: t.int()), "torch.int32"),
    "sparse weights": (changed("model", "classifier.f6.bias", to=lambda t: t.to_sparse()), "its 'model' is"),
    "complex sums": (changed("sums", to=lambda t: t.cfloat()), "its 'sums' is"),
    "an epoch's number": (changed("history", 0, to=lambda e: (5, *e[1:])), "its 'history' is"),
    "a huge number": (changed("history", 0, to=lambda e: (10**400, *e[1:])), "its 'history' is"),
    "an error of 750 %": (changed("history", 0, to=lambda e: (*e[:4], 7.5, *e[5:])), "its 'history' is"),
    "a scaler's state": (changed("scaler", to=lambda _: {"scale": 1.0}), "ValueError: the scaler's "),
    "a negative deviation": (changed("statistics", 1, to=lambda t: -t), "its 'statistics' is"),
    "sums of three": (changed("sums", to=lambda t: torch.zeros(3)), "its 'sums' is a tensor of (3,)"),
    "NaN in the sums": (changed("sums", to=nan), "its 'sums' is a tensor of (4,), not all of it numbers"),
    "losses between epochs": (changed("sums", to=torch.ones_like), "an epoch that has not begun"),
    "three statistics": (changed("statistics", to=lambda s: s[:3]), "its 'statistics' is"),
    "statistics of two channels": (
        changed("statistics", to=lambda s: (torch.ones(2), torch.ones(2), torch.eye(2), torch.ones(2))),
        "statistics of 2 channels",
    ),
    "statistics that are no numbers": (
        changed("statistics", to=lambda s: tuple(map(nan, s))),
        "'statistics' is",
    ),
    "numbers among the bad": (changed("bad", to=lambda b: {"a": 1}), "its 'bad' is {'a': 1}"),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Data, and the checkpoint of a training after its first epoch."""
    data = tmp_path_factory.mktemp("data")
    write_mnist(data)
    out = tmp_path_factory.mktemp("out")
    assert train(data, out, "--recipe", "alexnet2012", "--epochs", "1") == 0
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    return data, state


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_field_of_a_checkpoint_is_named(damage, stopped, tmp_path, capsys):
    data, state = stopped
    damaging, message = DAMAGES[damage]
    state = copy.deepcopy(state)
    damaging(state)
    torch.save(state, tmp_path / "checkpoint.pt")
    capsys.readouterr()
    options = ["--recipe", "alexnet2012", "--epochs", "1"]
    assert train(data, tmp_path, "--resume", *options) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"train: {tmp_path / 'checkpoint.pt'}: damaged: ")
    assert message in error
    assert error.count("\n") == 1


def lengths(size, count, draw):
    return [0, 1, *(draw.randrange(2, size * 9 // 10) for _ in range(count - 2))]


def damaged_files(tmp_path):
    """A hundred files: what reads each, and the file."""
    draw = random.Random(0)

    def cut(path, count):
        data = path.read_bytes()
        for i, length in enumerate(lengths(len(data), count, draw)):
            torn = path.with_name(f"{i}-{path.name}")
            torn.write_bytes(data[:length])
            yield torn

    def picture(path):
        pictures.picture(path, 32)

    def weights(path):
        load_weights(lenet5(), path)

    def state(path):
        checkpoint.load(path, {})

    noise = Image.frombytes("RGB", (40, 40), draw.randbytes(4800))
    for suffix in ("jpg", "png"):
        noise.save(tmp_path / f"noise.{suffix}")
    write_mnist(tmp_path)
    save_file(lenet5().state_dict(), tmp_path / "w.safetensors")
    empty = {
        "step": 0,
        "scaler": {},
        "bad": {},
        "history": [],
        "sums": torch.zeros(4, dtype=torch.float64),
        "statistics": tuple(UNIT),
    }
    empty |= {"settings": {}, "optimizer": {}}
    checkpoint.save(tmp_path / "c.pt", empty | {"model": lenet5().state_dict()})
    sources = [
        (picture, tmp_path / "noise.jpg", 20),
        (picture, tmp_path / "noise.png", 20),
        (idx.read, tmp_path / "train-images-idx3-ubyte.gz", 15),
        (idx.read, tmp_path / "train-labels-idx1-ubyte", 15),
        (weights, tmp_path / "w.safetensors", 10),
        (state, tmp_path / "c.pt", 10),
    ]
    for read, path, count in sources:
        read(path)
        yield from ((read, torn) for torn in cut(path, count))
    for i in range(5):
        flipped = bytearray((tmp_path / "c.pt").read_bytes())
        flipped[len(flipped) * (i + 1) // 7] ^= 1
        (tmp_path / f"flipped{i}.pt").write_bytes(flipped)
        yield state, tmp_path / f"flipped{i}.pt"
    shapes = {"flat": (5,), "deep": (2, 2, 2, 2), "none": (0, 28, 28), "thin": (2, 0, 3), "two": (4, 4)}
    for name, shape in shapes.items():
        write_idx(tmp_path / name, torch.zeros(shape, dtype=torch.long), bytes)
        yield lambda path: idx.read_pair(path, tmp_path / "train-labels-idx1-ubyte"), tmp_path / name


def test_a_hundred_damaged_files_give_errors_that_name_them(tmp_path):
    count = 0
    for read, path in damaged_files(tmp_path):
        count += 1
        if read.__name__ == "picture":
            batch = pictures.Files([path], [0], 32).__getitems__([0])
            assert batch.images.shape == (0, 32, 32, 3) and list(batch.bad) == [str(path)]
            message = f"{path}: {batch.bad[str(path)]}"
        else:
            with pytest.raises(RuntimeError) as caught:
                read(path)
            message = str(caught.value)
        assert str(path) in message and len(message) > len(str(path)) + 10, message
        assert "\n" not in message and len(message) < 400, message
    assert count == 100


def test_a_picture_that_cannot_be_read_is_named_or_skipped(tmp_path, capsys):
    data = write_pictures(tmp_path / "data", 20)
    torn = data / "red" / "11.png"
    torn.write_bytes(torn.read_bytes()[:60])
    options = ["--model", "lenet5", "--size", "28", "--recipe", "alexnet2012", "--rate", "1e-6"]
    assert train(data, tmp_path / "a", *options) == 1
    error = capsys.readouterr().err
    assert f"can't read {torn}: " in error and "--skip-bad" in error
    assert train(data, tmp_path / "b", *options, "--skip-bad", "--workers", "1") == 0
    said = capsys.readouterr().out
    assert said.count(f"skipped {torn}: ") == 1 and "1 image could not be read" in said


def test_what_is_no_file_of_a_picture_is_not_opened(tmp_path, capsys):
    """A FIFO would wait for ever; Pillow reads an EPS by Ghostscript, whatever the file is called."""
    data = write_pictures(tmp_path / "data", 20)
    paths = find(str(data), 28).train.paths
    for path in paths[:2]:
        path.unlink()
    os.mkfifo(paths[0])
    paths[1].write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    options = ["--model", "lenet5", "--size", "28", "--epochs", "1", "--skip-bad"]
    assert train(data, tmp_path / "run", *options) == 0
    said = capsys.readouterr().out
    assert f"skipped {paths[0]}: it is no regular file" in said
    assert f"skipped {paths[1]}: it is no picture of BMP, " in said
    assert "2 images could not be read" in said


def test_a_name_does_not_move_the_cursor(tmp_path, capsys):
    data = write_pictures(tmp_path / "data", 20)
    (data / "a\x1b[2Jb\r\n.txt").write_bytes(b"")
    assert train(data, tmp_path / "run", "--model", "lenet5", "--size", "28", "--epochs", "1") == 0
    said = capsys.readouterr().out
    assert "not used: 1 file: a\\x1b[2Jb\\r\\n.txt" in said
    assert "\x1b[2J" not in said


def test_a_step_without_an_image_is_no_step_and_an_epoch_without_one_an_error(tmp_path, capsys):
    data = write_pictures(tmp_path / "data", 20)
    options = ["--model", "lenet5", "--size", "28", "--skip-bad", "--save-every", "1"]
    found = find(str(data), 28)
    for path in found.train.paths[1:]:
        path.write_bytes(b"")
    assert train(data, tmp_path / "one", *options, "--batch", "1", "--epochs", "1") == 0
    assert "53 images could not be read" in capsys.readouterr().out
    found.train.paths[0].write_bytes(b"")
    assert train(data, tmp_path / "none", *options) == 1
    assert "no image to train on can be read" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["train-labels-idx1-ubyte", "t10k-images-idx3-ubyte.gz"])
def test_a_missing_idx_file_is_named(missing, mnist, tmp_path, capsys):
    (mnist / missing).unlink()
    assert train(mnist, tmp_path / "run") == 1
    assert missing.partition("-idx")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: [rmtree(data / name) for name in ("blue", "red")], "two classes at least, but has 1"),
        (
            lambda data: (data / "red").rename(data / "train"),
            "has train, but nothing to test with",
        ),
        (lambda data: (data / "empty").mkdir(), "empty: has no picture"),
        (lambda data: write_pictures(data, 1, ["single"]), "single: needs two pictures"),
        (
            lambda data: [p.rename(data.parent / p.name) for p in data.iterdir()],
            "neither IDX files nor a folder",
        ),
    ],
    ids=["one", "train", "empty", "single", "nothing"],
)
def test_folders_that_are_no_classes_are_named(change, message, tmp_path, capsys):
    data = write_pictures(tmp_path / "data", 3)
    change(data)
    assert train(data, tmp_path / "run") == 1
    assert message in capsys.readouterr().err


def test_a_training_goes_on_with_the_same_images_alone(tmp_path, capsys):
    data = write_pictures(tmp_path / "data", 10)
    options = ["--model", "lenet5", "--size", "28", "--epochs", "1"]
    assert train(data, tmp_path / "run", *options) == 0
    (data / "blue").rename(data / "zebra")
    assert train(data, tmp_path / "run", *options, "--resume") == 1
    assert "other settings: names or values in --data" in capsys.readouterr().err


def test_classes_must_be_those_of_training(tmp_path, capsys):
    write_pictures(tmp_path / "data" / "train", 2)
    write_pictures(tmp_path / "data" / "val", 2, ("blue", "green", "yellow"))
    assert train(tmp_path / "data", tmp_path / "run") == 1
    assert "train and val differ in classes: red, yellow" in capsys.readouterr().err


# Shared.

SMALL = ["--batch", "16", "--epochs", "2", "--dtype", "float32", "--workers", "0"]


def torchrun(data, out, *options, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [
        f"--max-restarts={restarts}",
        "-m",
        "fastcnn",
        "train",
        "--data",
        str(data),
        "--out",
        str(out),
    ]
    return subprocess.Popen(
        [*command, *SMALL, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


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
    assert whole.wait(timeout=120) == 0
    out = tmp_path / "killed"
    process = torchrun(mnist, out, "--resume", *options, restarts=1)
    while not (out / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(workers_of(process)[-1], signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "going on from step" in said
    assert_same_weights(tmp_path / "whole", out)


def test_a_file_that_unpacks_to_more_than_its_header_says_is_not_unpacked(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(path, torch.zeros(2, 3, 4, dtype=torch.uint8))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(10**7)))
    with pytest.raises(RuntimeError, match=r"\(2, 3, 4\), 40 bytes in all, but there are 41 or more"):
        idx.read(path)
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2**32 - 1, 28, 28))
    path.write_bytes(gzip.compress(header))
    with pytest.raises(RuntimeError, match="must have 2,147,483,648 bytes at most, but its header says"):
        idx.read(path)
