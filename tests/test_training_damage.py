"""Checkpoints and images that are damaged, missing or no images: errors name them."""

import copy
import gzip
import os
import random
from shutil import rmtree

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from trainings import train, write_idx, write_mnist, write_pictures

from fastcnn.data import find, idx, pictures
from fastcnn.models import lenet5, load_weights
from fastcnn.training import checkpoint
from fastcnn.training.augment import UNIT

pytestmark = pytest.mark.usefixtures("one_thread")

# Damaged.


def changed(*keys, to):
    """Returns a function that changes the value of a field of a checkpoint."""

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
    assert "different settings: names or values in --data" in capsys.readouterr().err


def test_classes_must_be_those_of_training(tmp_path, capsys):
    write_pictures(tmp_path / "data" / "train", 2)
    write_pictures(tmp_path / "data" / "val", 2, ("blue", "green", "yellow"))
    assert train(tmp_path / "data", tmp_path / "run") == 1
    assert "train and val differ in classes: red, yellow" in capsys.readouterr().err


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
