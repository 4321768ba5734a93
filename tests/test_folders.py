"""Finding pictures in folders: against a simple way of doing it."""

import hashlib
import os
from pathlib import Path

import pytest

from fastcnn.data import find
from fastcnn.data.paths import Paths

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


# Against a list of paths, sorted.


def simple(folder):
    """The pictures of each class, without links."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    found = [[Path(root, name) for root, _, names in os.walk(path) for name in names] for path in classes]
    shown = [
        [p for p in paths if not any(x[0] == "." for x in p.relative_to(folder).parts)] for paths in found
    ]
    return [sorted(p for p in paths if p.suffix.lower() in SUFFIXES) for paths in shown]


def fingerprint(classes):
    lines = [f"{i} {p.parent.name}/{p.name}\0" for i, paths in enumerate(classes) for p in paths]
    return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()


NASTY = [
    *("a/1.png", "a-b.png", "a b.png", "a.png/x.JPG", "a/b/c/d.Jpeg", "a/.png", "a/x.txt", "x.png.txt"),
    *("Z.PNG", "ä.png", "\uff21.png", "\U0001f600.png", "e\u0301.png", "new\nline.tiff", ".hidden/1.png"),
    *(os.fsdecode(b"\xff.png"), os.fsdecode(b"\xc3.webp"), os.fsdecode(b"\xe4/\xe4 \xf6.gif"), "ä/1.bmp"),
    *(f"many/{i}.ppm" for i in range(25)),
]


@pytest.fixture
def nasty(tmp_path):
    for name in ("red", "Blue", "a b", "é", "\U0001f600", os.fsdecode(b"\xe4"), ".no"):
        try:
            touch(tmp_path / "data" / name, *NASTY)
        except OSError as error:
            pytest.skip(f"the file system does not take these names: {error}")
    return tmp_path / "data"


def test_pictures_are_held_out_as_from_a_sorted_list(nasty):
    found, expected = find(str(nasty), 28), simple(nasty)
    train = [[p for i, p in enumerate(paths) if i % 10] for paths in expected]
    test = [paths[::10] for paths in expected]
    for part, classes in ((found.train, train), (found.test, test)):
        assert list(part.paths) == [p for paths in classes for p in paths]
        assert list(part.labels) == [i for i, paths in enumerate(classes) for _ in paths]
        assert part.fingerprint() == fingerprint(classes)
    every = sorted(p for p in nasty.rglob("*") if p.is_file())
    unused = [str(p.relative_to(nasty)) for p in every if not {p} & {q for paths in expected for q in paths}]
    assert found.notes[-1] == f"not used: {len(unused)} files: {', '.join(unused[:3])}, ..."


def test_train_and_val_are_found_as_in_a_sorted_list(nasty, tmp_path):
    (tmp_path / "split").mkdir()
    nasty.rename(tmp_path / "split" / "val")
    for folder in simple(tmp_path / "split" / "val"):
        touch(
            tmp_path / "split" / "train" / folder[0].relative_to(tmp_path / "split" / "val").parts[0],
            *NASTY[:9],
        )
    found = find(str(tmp_path / "split"), 28)
    for part, name in ((found.train, "train"), (found.test, "val")):
        expected = simple(tmp_path / "split" / name)
        assert list(part.paths) == [p for paths in expected for p in paths]
        assert part.fingerprint() == fingerprint(expected)


def test_paths_are_a_sequence():
    expected = [Path("a/1.png"), Path("a/2.png"), Path("b/c/ä.png"), Path("a/3.png"), Path("4.png")]
    paths = Paths(expected)
    assert list(paths) == expected and len(paths) == 5
    assert paths[-1] == Path("4.png") and paths[1:3] == expected[1:3] and paths.index(expected[3]) == 3
    with pytest.raises(IndexError):
        paths[5]
    assert list(Paths()) == []


# Links.


def test_links_out_of_the_folder_are_named(tmp_path):
    data = touch(tmp_path / "data", *(f"{name}/{i}.png" for name in ("blue", "red") for i in range(3)))
    away = touch(tmp_path / "away", *(f"more/{i}.png" for i in range(2)), "more/deep/x.png", "one.png")
    (data / "red" / "a").symlink_to(away / "more")
    (data / "red" / "b.png").symlink_to(Path("..", "..", "away", "one.png"))
    (data / "red" / "self.png").symlink_to("self.png")
    (data / "red" / "inside").symlink_to(data / "red")
    (data / "blue" / "0b.png").symlink_to("0.png")
    (data / ".hidden").symlink_to(away)
    found = find(str(data), 28)
    assert len(found.train) + len(found.test) == 3 + 1 + 3 + 3 + 1 + 1
    assert found.notes[1:] == (
        "not used: 1 file: .hidden",
        f"links that lead out of the folder: 2: red/a -> {away}/more, red/b.png -> {away}/one.png",
    )


def test_val_may_be_a_link_to_train(tmp_path):
    touch(tmp_path, "train/blue/0.png", "train/red/0.png")
    (tmp_path / "val").symlink_to("train")
    found = find(str(tmp_path), 28)
    assert len(found.train) == len(found.test) == 2 and found.notes == ()


def test_a_class_may_be_a_link_and_each_class_has_its_own(tmp_path):
    touch(tmp_path / "away", "0.png", "1.png")
    data = touch(tmp_path / "data", "blue/0.png", "blue/1.png")
    (data / "red").symlink_to(tmp_path / "away")
    (data / "same").symlink_to("blue")
    found = find(str(data), 28)
    assert found.classes == ("blue", "red", "same") and len(found.train) == len(found.test) == 3
    assert found.notes[1:] == (f"links that lead out of the folder: 1: red -> {tmp_path}/away",)
