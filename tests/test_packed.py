"""Pictures as one array on disk: made from a folder, gone on with after a stop, trained on, damaged."""

import json
import os
import warnings
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from trainings import log_of, train, weights_of, write_pictures

from fastcnn.cli import main
from fastcnn.data import find, folders, pictures
from fastcnn.data import pack as packing

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 32


@pytest.fixture
def source(tmp_path):
    return write_pictures(tmp_path / "pictures", 20)


def pack(source, out, *options):
    return main(["pack", str(source), str(out), "--size", str(SIDE), "--workers", "0", *options])


def all_images(part):
    return part.__getitems__(list(range(len(part))))


def test_what_is_packed_is_what_the_files_hold(source, tmp_path, capsys):
    assert pack(source, tmp_path / "packed") == 0
    assert "60 pictures of 32 x 32 are in" in capsys.readouterr().out
    files, array = find(str(source), 28), find(str(tmp_path / "packed"), None)
    assert files._replace(train=None, test=None, notes=()) == array._replace(train=None, test=None)
    for ours, theirs in ((array.train, files.train), (array.test, files.test)):
        a, b = all_images(ours), all_images(theirs)
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        assert torch.equal(a.places, b.places) and len(a.images) == len(ours)
    assert np.load(tmp_path / "packed" / "images.npy").shape == (60, SIDE, SIDE, 3)
    assert sorted(os.listdir(tmp_path / "packed")) == [".lock", "images.npy", "labels.npy", "pack.json"]


def test_it_trains_to_the_same_bits_as_the_files_whoever_reads_them(source, tmp_path):
    assert pack(source, tmp_path / "packed") == 0
    options = ["--model", "lenet5", "--size", "28", "--recipe", "alexnet2012", "--rate", "1e-5"]
    for name, data, workers in (("a", source, "0"), ("b", "packed", "0"), ("c", "packed", "2")):
        assert train(tmp_path / data, tmp_path / name, *options, "--workers", workers) == 0
    a, b, c = (weights_of(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) and torch.equal(a[name], c[name]) for name in a)
    assert log_of(tmp_path / "a")[-1]["test_loss"] == log_of(tmp_path / "b")[-1]["test_loss"]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(packing, "_CHUNK", 8)


def decoded(monkeypatch):
    """The paths that are decoded from now on."""
    seen = []
    picture = pictures.picture
    monkeypatch.setattr(pictures, "picture", lambda path, side: seen.append(path) or picture(path, side))
    return seen


@pytest.mark.parametrize("damage", ["none", "pixels", "log's last line", "log", "a chunk of zeros"])
def test_after_a_stop_only_what_is_not_whole_is_decoded_again(
    damage, source, tmp_path, small_chunks, monkeypatch
):
    assert pack(source, tmp_path / "whole") == 0
    data, out = folders.pictures(source, SIDE, SIDE), tmp_path / "stopped"
    out.mkdir()
    for done, _ in packing.pack(data, out, 0, False):
        if done >= 24:
            break
    assert not (out / "pack.json").exists()
    log, images = out / ".pack.log", out / "images.npy"
    if damage == "pixels":
        content = bytearray(images.read_bytes())
        content[1000] ^= 1
        images.write_bytes(content)
    elif damage == "log's last line":
        log.write_bytes(log.read_bytes()[:-10])
    elif damage == "log":
        log.write_bytes(b"\xff\xfe\0")
    elif damage == "a chunk of zeros":
        os.truncate(images, 128 + SIDE * SIDE * 3)
    seen = decoded(monkeypatch)
    assert pack(source, out) == 0
    again = {"none": 0, "pixels": 8, "log's last line": 8, "log": 24, "a chunk of zeros": 24}[damage]
    assert len(seen) == 60 - 24 + again
    for name in ("images.npy", "labels.npy", "pack.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_of_other_pictures_nothing_is_taken_over(source, tmp_path, small_chunks, monkeypatch):
    data, out = folders.pictures(source, SIDE, SIDE), tmp_path / "packed"
    out.mkdir()
    next(packing.pack(data, out, 0, False))
    next(source.glob("red/*")).rename(source / "red" / "other.png")
    seen = decoded(monkeypatch)
    assert pack(source, out) == 0
    assert len(seen) == 60


def test_a_picture_that_cannot_be_read_is_named_or_left_out(source, tmp_path, capsys):
    bad = sorted(source.glob("green/*"))[3]
    bad.write_bytes(b"\x89PNG\r\n\x1a\n no more")
    assert pack(source, tmp_path / "packed") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"pack: can't read {bad}: ") and "--skip-bad" in error
    assert pack(source, tmp_path / "packed", "--skip-bad") == 0
    assert "1 of them left out" in capsys.readouterr().out
    data = find(str(tmp_path / "packed"), None)
    assert len(data.train) + len(data.test) == 59
    assert data.notes == ("left out: 1 picture that could not be read, as pack.json says",)
    assert all_images(data.train).images.flatten(1).any(1).all()


def test_a_picture_that_is_mended_is_read_again(source, tmp_path, small_chunks):
    """After a stop, of a pack that had left it out."""
    mended = sorted(source.glob("green/*"))[3]
    content = mended.read_bytes()
    mended.write_bytes(b"no more")
    out = tmp_path / "packed"
    out.mkdir()
    told = list(islice(packing.pack(folders.pictures(source, SIDE, SIDE), out, 0, True), 6))
    assert sum(len(unread) for _, unread in told) == 1
    mended.write_bytes(content)
    assert pack(source, out) == 0
    assert find(str(out), None).notes == ()


def test_packs_are_not_written_over_nor_into_their_source(source, tmp_path, capsys):
    assert pack(source, source / "packed") == 1
    assert "OUT must not be in SRC" in capsys.readouterr().err
    assert pack(tmp_path / "none", tmp_path / "packed") == 1
    assert f"SRC must be a folder, but got {tmp_path / 'none'}" in capsys.readouterr().err
    assert pack(source, tmp_path / "packed") == 0
    assert pack(source, tmp_path / "packed") == 1
    assert "pack.json is there: it is packed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "pack.json"])
@pytest.mark.parametrize("link", [False, True])
def test_files_of_others_are_not_written_over(name, link, source, tmp_path, capsys):
    out, mine = tmp_path / "packed", tmp_path / "mine"
    out.mkdir()
    mine.write_text("mine")
    (out / name).symlink_to(mine) if link else mine.rename(out / name)
    assert pack(source, out) == 1
    assert f"pack: {out / name} is there" in capsys.readouterr().err
    assert (mine if link else out / name).read_text() == "mine"


def test_a_size_is_at_most_8192_and_a_path_is_not_empty(source, tmp_path, capsys):
    assert main(["pack", str(source), str(tmp_path / "packed"), "--size", "10" * 9]) == 1
    assert "--size must be at most 8192, but got 1010" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pack(source, "")
    assert "OUT: must be a path, but got ''" in capsys.readouterr().err


def test_crops_are_no_larger_than_the_images(source, tmp_path, capsys):
    assert pack(source, tmp_path / "packed") == 0
    assert train(tmp_path / "packed", tmp_path / "run", "--size", "33") == 1
    assert "--size must be at most 32" in capsys.readouterr().err


def replaced_by_a_fifo(path):
    path.unlink()
    os.mkfifo(path)


def changed(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES = {
    "no images": lambda out: (out / "images.npy").unlink(),
    "images cut off": lambda out: os.truncate(out / "images.npy", 5000),
    "no array": lambda out: (out / "images.npy").write_bytes(b"no array"),
    "an array of objects": lambda out: np.save(out / "images.npy", np.array([{}], object)),
    "other shape": lambda out: np.save(out / "images.npy", np.zeros((60, 3, SIDE, SIDE), np.uint8)),
    "labels of others": lambda out: np.save(out / "labels.npy", np.zeros(60, "<i8")),
    "no labels": lambda out: (out / "labels.npy").write_bytes(b""),
    "images a FIFO": lambda out: replaced_by_a_fifo(out / "images.npy"),
    "labels a FIFO": lambda out: replaced_by_a_fifo(out / "labels.npy"),
    "pack.json a FIFO": lambda out: replaced_by_a_fifo(out / "pack.json"),
    "one image more to train on": lambda out: changed(out / "pack.json", train=55),
    "hashes of zeros": lambda out: changed(out / "pack.json", hashes=["0" * 64]),
    "no JSON": lambda out: (out / "pack.json").write_text("{"),
    "a list": lambda out: (out / "pack.json").write_text("[]"),
    "bytes": lambda out: (out / "pack.json").write_bytes(b"\xff"),
    "nested": lambda out: (out / "pack.json").write_text("[" * 100_000),
    "other format": lambda out: changed(out / "pack.json", format="2"),
    "no training": lambda out: changed(out / "pack.json", train=60),
    "a negative number": lambda out: changed(out / "pack.json", images=-1),
    "no class": lambda out: changed(out / "pack.json", classes=[]),
    "fewer classes": lambda out: changed(out / "pack.json", classes=["a", "b"]),
    "classes of numbers": lambda out: changed(out / "pack.json", classes=[1, 2, 3]),
    "all bad": lambda out: changed(out / "pack.json", bad=list(range(60))),
    "bad beyond": lambda out: changed(out / "pack.json", bad=[60]),
    "hashes": lambda out: changed(out / "pack.json", hashes=None),
    "side": lambda out: changed(out / "pack.json", side=31),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_pack_is_an_error_that_names_the_file(damage, source, tmp_path, capsys):
    assert pack(source, tmp_path / "packed") == 0
    DAMAGES[damage](tmp_path / "packed")
    capsys.readouterr()
    assert train(tmp_path / "packed", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert error.startswith("train: ") and error.count("\n") == 1 and str(tmp_path / "packed") in error


# Decoding.


@pytest.mark.parametrize("size", [(75, 50), (401, 300), (500, 375), (37, 99)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_simplejpeg_decodes_to_pillows_bits(size, mode, progressive, tmp_path, monkeypatch):
    pytest.importorskip("simplejpeg")
    path = tmp_path / "x.jpg"
    noise = Image.effect_noise((size[0] // 4, size[1] // 4), 90).resize(size)
    Image.merge("RGB", [noise, noise.rotate(90).resize(size), noise.rotate(180)]).convert(mode).save(
        path, quality=80, progressive=progressive
    )
    ours = pictures.picture(path, 32)
    monkeypatch.setattr(pictures, "_simplejpeg", lambda: None)
    assert torch.equal(ours, pictures.picture(path, 32))


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_jpeg_that_is_cut_off_is_no_picture(cut, tmp_path):
    path = tmp_path / "x.jpg"
    Image.effect_noise((90, 60), 90).save(path)
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    with pytest.raises(OSError, match="truncated"):
        pictures.picture(path, 32)


@pytest.mark.parametrize("size", [(75, 75), (500, 500), (20, 20)])
def test_pictures_are_scaled_as_pillow_does(size, tmp_path):
    picture = Image.effect_noise(size, 90).convert("RGB")
    picture.save(tmp_path / "x.png")
    expected = np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert abs(pictures.picture(tmp_path / "x.png", 32).numpy() - expected).max() <= 1


def test_a_picture_of_many_pixels_is_read_without_a_warning_and_of_too_many_is_an_error(
    tmp_path, monkeypatch
):
    Image.new("L", (200, 100)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pictures.picture(tmp_path / "x.png", 32).shape == (32, 32, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)
    with pytest.raises(Image.DecompressionBombError, match="exceeds limit"):
        pictures.picture(tmp_path / "x.png", 32)
