"""Pictures in tar files as webdataset has them."""

import io
import tarfile

import pytest
import torch
from PIL import Image
from trainings import log_of, train, weights_of

from fastcnn.cli import main
from fastcnn.data import find
from fastcnn.data.pictures import picture

pytestmark = pytest.mark.usefixtures("one_thread")


def picture_of(label, number):
    colour = [20 + 3 * number] * 3
    colour[label] = 200
    file = io.BytesIO()
    Image.new("RGB", (50, 40), tuple(colour)).save(file, "PNG")
    return file.getvalue()


def write_tar(path, samples):
    """Of (name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def samples(count, first=0):
    for n in range(first, first + count):
        yield f"./a.b/{n:04}.cls", str(n % 3).encode()
        yield f"./a.b/{n:04}.json", b"{}"
        yield f"./a.b/{n:04}.png", picture_of(n % 3, n)


@pytest.fixture
def tars(tmp_path):
    """Two to train on, one to test with."""
    for part in range(2):
        write_tar(tmp_path / "data" / f"colours-train-{part:04}.tar", samples(12, 12 * part))
    write_tar(tmp_path / "data" / "colours-validation-0000.tar", samples(6))
    return tmp_path / "data"


def test_samples_are_read_where_they_lie(tars, tmp_path):
    data = find(str(tars), 28)
    assert (len(data.train), len(data.test), data.side, data.classes) == (24, 6, 32, ("0", "1", "2"))
    batch = data.train.__getitems__([0, 13, 23])
    assert batch.labels.tolist() == [0, 1, 2] and batch.bad == {}
    for image, number in zip(batch.images, (0, 13, 23), strict=True):
        (tmp_path / "x.png").write_bytes(picture_of(number % 3, number))
        assert torch.equal(image, picture(tmp_path / "x.png", 32))


def test_they_are_trained_on_and_packed(tars, tmp_path):
    options = ["--model", "lenet5", "--size", "28"]
    assert train(tars, tmp_path / "a", *options, "--workers", "2") == 0
    assert main(["pack", str(tars), str(tmp_path / "packed"), "--size", "32", "--workers", "0"]) == 0
    assert train(tmp_path / "packed", tmp_path / "b", *options) == 0
    a, b = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert log_of(tmp_path / "a")[-1]["error"] == log_of(tmp_path / "b")[-1]["error"]


def test_folders_tell_what_is_for_testing(tars, tmp_path):
    for path in tars.glob("*.tar"):
        part = "val" if "validation" in path.name else "train"
        (tmp_path / "b" / part).mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "b" / part / path.name[-8:])
    data = find(str(tmp_path / "b"), 28)
    assert (len(data.train), len(data.test)) == (24, 6)


ONE = [("1.cls", b"0"), ("1.png", b"")]
CHANGES = {
    "no class": ("train-0000", [*ONE, ("2.png", b"x")], "2.cls must be its class's number"),
    "a class of text": ("train-0000", [*ONE, ("2.cls", b"a"), ("2.png", b"")], "but is b'a'"),
    "an unknown class": ("validation-0000", [("1.cls", b"7"), ONE[1]], "has class 7, but training"),
    "none to test with": ("validation-0000", [], "no tar file is for testing"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_named(change, tars, tmp_path, capsys):
    name, members, message = CHANGES[change]
    write_tar(tars / f"colours-{name}.tar", members)
    assert train(tars, tmp_path / "run", "--model", "lenet5", "--size", "28") == 1
    error = capsys.readouterr().err
    assert message in error and str(tars) in error and error.count("\n") == 1


def test_a_damaged_tar_file_and_picture_are_named(tars, tmp_path, capsys):
    path = tars / "colours-train-0001.tar"
    content = bytearray(path.read_bytes())
    place = content.index(b"IHDR") + 6
    content[place] ^= 0xFF
    path.write_bytes(content)
    options = ["--model", "lenet5", "--size", "28"]
    assert train(tars, tmp_path / "run", *options) == 1
    assert f"can't read {path}/a.b/0012.png: " in capsys.readouterr().err
    path.write_bytes(b"x" * 2000)
    assert train(tars, tmp_path / "run", *options) == 1
    assert f"{path}: damaged, or no tar file: " in capsys.readouterr().err
