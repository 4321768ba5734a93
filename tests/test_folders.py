"""Finding pictures in folders: against a simple way of doing it; and ImageNet as it is distributed."""

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


# ImageNet as it is distributed.

IDS = ("n01440764", "n01443537", "n02119022")
CLASSES = [IDS[i] for i in (2, 0, 1, 0)]  # of val's pictures
NUMBERS = {IDS[0]: 2, IDS[1]: 3, IDS[2]: 1}  # ILSVRC's own, in another order
VAL = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 5)]


@pytest.fixture
def kaggle(tmp_path):
    """Without what tells the classes of val."""
    names = [f"train/{name}/{name}_{i}.JPEG" for name in IDS for i in range(2)]
    touch(tmp_path / "in" / "ILSVRC" / "Data" / "CLS-LOC", *names, *(f"val/{name}.JPEG" for name in VAL))
    return tmp_path / "in"


def write_solution(folder, classes=CLASSES, names=VAL):
    lines = [
        f"{name},{class_} 1 2 3 4 {class_} 5 6 7 8 " for name, class_ in zip(names, classes, strict=True)
    ]
    lines = ["ImageId,PredictionString", *reversed(lines)]
    (folder / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")


def write_annotations(folder, classes=CLASSES):
    xml = "<annotation><folder>val</folder><object>\n<name>{}</name><pose>x</pose></object></annotation>"
    for name, class_ in zip(VAL, classes, strict=True):
        path = touch(folder / "Annotations" / "CLS-LOC" / "val", f"{name}.xml") / f"{name}.xml"
        path.write_text(xml.format(class_))


def write_truth(folder, lines=None):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [NUMBERS[class_] for class_ in CLASSES] if lines is None else lines
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{line}\n" for line in lines))


def write_meta(folder):
    """As the devkit's: above the classes are others, which have children."""
    numpy, io = pytest.importorskip("numpy"), pytest.importorskip("scipy.io")
    rows = [(number, name, "words", "gloss", 0) for name, number in NUMBERS.items()]
    rows.append((1001, "n00001740", "entity", "gloss", 3))
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")
    synsets = numpy.array(rows, dtype=[(name, object) for name in fields])
    io.savemat(folder / "meta.mat", {"synsets": synsets[:, None]})


def assert_found(folder, source):
    found = find(str(folder), 28)
    assert found.classes == IDS and len(found.train) == 6
    assert [path.stem for path in found.test.paths] == VAL
    assert list(found.test.labels) == [IDS.index(class_) for class_ in CLASSES]
    assert found.test.__getitems__([]).labels.shape == (0,)
    assert found.notes == (f"classes of val: from {source}",)


@pytest.mark.parametrize("folder", [".", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
@pytest.mark.parametrize("place", [".", "ILSVRC"])
def test_classes_of_val_are_read_from_kaggles_file(folder, place, kaggle):
    write_solution(kaggle / place)
    assert_found(kaggle / folder, kaggle / place / "LOC_val_solution.csv")


@pytest.mark.parametrize("folder", [".", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_classes_of_val_are_read_from_annotations(folder, kaggle):
    write_annotations(kaggle / "ILSVRC")
    assert_found(kaggle / folder, kaggle / "ILSVRC" / "Annotations" / "CLS-LOC" / "val")


@pytest.mark.parametrize("place", [".", "ILSVRC2012_devkit_t12/data"])
def test_classes_of_val_are_read_from_the_devkit(place, kaggle):
    write_truth(kaggle / place)
    write_meta(kaggle / place)
    assert_found(kaggle, kaggle / place / "ILSVRC2012_validation_ground_truth.txt")


def test_train_and_a_flat_val_may_be_in_any_folder(kaggle, tmp_path):
    (kaggle / "ILSVRC" / "Data" / "CLS-LOC").rename(tmp_path / "imagenet")
    write_solution(tmp_path)
    assert_found(tmp_path / "imagenet", tmp_path / "LOC_val_solution.csv")


def test_classes_have_words_where_these_are_there(kaggle):
    write_solution(kaggle)
    words = [f"{IDS[0]} tench, Tinca tinca", f"{IDS[2]} red fox, Vulpes vulpes", "n09999999 none"]
    (kaggle / "LOC_synset_mapping.txt").write_text("\n".join(words))
    assert find(str(kaggle), 28).classes == (f"{IDS[0]} tench", IDS[1], f"{IDS[2]} red fox")


def error(folder, kind=RuntimeError):
    with pytest.raises(kind) as caught:
        find(str(folder), 28)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_flat_val_without_classes_says_what_would_tell_them(kaggle):
    said = error(kaggle, FileNotFoundError)
    assert said.startswith(f"{kaggle}/ILSVRC/Data/CLS-LOC/val: has pictures, but no folder for each class")
    for name in ("LOC_val_solution.csv", "*.xml", "ILSVRC2012_validation_ground_truth.txt with meta.mat"):
        assert name in said
    assert said.endswith(f"up to {kaggle}")


def test_numbers_of_classes_need_the_devkits_table(kaggle):
    write_truth(kaggle)
    (kaggle / "LOC_synset_mapping.txt").write_text("\n".join(IDS))
    said = error(kaggle, FileNotFoundError)
    assert said.startswith(f"{kaggle}/ILSVRC2012_validation_ground_truth.txt: ") and "meta.mat" in said


def test_a_missing_scipy_is_named(kaggle, monkeypatch):
    write_truth(kaggle)
    touch(kaggle, "meta.mat")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name != "scipy" or None)
    assert "pip install scipy" in error(kaggle, ModuleNotFoundError)


def test_a_damaged_table_is_named(kaggle):
    pytest.importorskip("scipy")
    write_truth(kaggle)
    touch(kaggle, "meta.mat")
    assert error(kaggle).startswith(f"{kaggle}/meta.mat: damaged, or not the devkit's: ")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda f: write_solution(f, CLASSES[:3], VAL[:3]),
            "{v}4.JPEG: {f}/LOC_val_solution.csv has no class",
        ),
        (
            lambda f: write_solution(f, ["n02", *CLASSES[1:]]),
            "{f}/LOC_val_solution.csv, line 5: {v}1.JPEG is of class 'n02', which has no folder in train",
        ),
        (
            lambda f: (f / "LOC_val_solution.csv").write_text("\nx,\n"),
            "{f}/LOC_val_solution.csv, line 2: must be",
        ),
        (
            lambda f: write_annotations(f, ["n02", *CLASSES[1:]]),
            "val/ILSVRC2012_val_00000001.xml: {v}1.JPEG is of class 'n02'",
        ),
        (lambda f: write_annotations(f, ["", *CLASSES[1:]]), "ILSVRC2012_val_00000001.xml: names no object"),
        (lambda f: (write_truth(f, [1, 2, 3]), write_meta(f)), "ground_truth.txt: has 3 lines, but"),
        (
            lambda f: (write_truth(f, [1, 2, 9, 3]), write_meta(f)),
            "ground_truth.txt, line 3: must be a number of",
        ),
        (
            lambda f: (write_truth(f, [1, 1001, 2, 3]), write_meta(f)),
            "line 2: {v}2.JPEG is of class 'n00001740'",
        ),
    ],
    ids=["no line", "class", "line", "class in xml", "xml", "length", "number", "no class"],
)
def test_what_does_not_fit_is_named_with_its_line(write, message, kaggle):
    write(kaggle)
    val = kaggle / "ILSVRC" / "Data" / "CLS-LOC" / "val" / "ILSVRC2012_val_0000000"
    assert message.format(f=kaggle, v=val) in error(kaggle)


@pytest.mark.parametrize(
    ("names", "packed"),
    [
        (["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"], "ILSVRC2012_img_train.tar"),
        (["ILSVRC2012_img_train.tar", "val/1.JPEG", "ILSVRC2012_devkit_t12/x"], "ILSVRC2012_img_train.tar"),
        (["train/n01440764.tar", "train/n01443537.tar", "val/1.JPEG"], "train/n01440764.tar"),
        (["train/ILSVRC2012_img_train.tar", "val/1.JPEG"], "train/ILSVRC2012_img_train.tar"),
        (
            [*(f"train/{name}/1.JPEG" for name in IDS), "val/ILSVRC2012_img_val.tar"],
            "val/ILSVRC2012_img_val.tar",
        ),
    ],
    ids=["all", "train", "classes", "train in train", "val"],
)
def test_tar_files_must_be_unpacked(names, packed, tmp_path):
    assert error(touch(tmp_path / "in", *names)).startswith(f"{tmp_path}/in/{packed}: must be unpacked first")


def test_tar_files_beside_what_they_had_do_no_harm(kaggle):
    write_solution(kaggle)
    touch(kaggle / "ILSVRC" / "Data" / "CLS-LOC", "ILSVRC2012_img_train.tar", f"train/{IDS[0]}.tar")
    assert find(str(kaggle), 28).notes[1].startswith("not used: 2 files: ILSVRC2012_img_train.tar, train/n0")
