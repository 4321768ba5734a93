"""ImageNet as ILSVRC2012 is distributed: val without folders, its classes in another file."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from .paths import Paths

_SOLUTION, _ANNOTATIONS = "LOC_val_solution.csv", "Annotations/CLS-LOC/val"
_TRUTH, _META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
_TRAIN_TAR = "ILSVRC2012_img_train.tar"
_WORDS = "LOC_synset_mapping.txt"
_DEVKIT = "ILSVRC2012_devkit_t12/data"

Told = Iterator[tuple[str, str, str]]  # a picture's name without suffix, its class, and where that is said


def root(folder: Path) -> Path:
    """Returns the folder that has train: the folder itself, or ``Data/CLS-LOC`` in it or in its ILSVRC."""
    places = [folder, folder / "Data" / "CLS-LOC", folder / "ILSVRC" / "Data" / "CLS-LOC"]
    return next((place for place in places if (place / "train").is_dir()), folder)


def refuse_packed(folder: Path, folders: Sequence[str], names: Sequence[str]) -> None:
    """Raises a RuntimeError where there are tar files in place of folders of classes."""
    tars = [name for name in names if name.endswith(".tar")]
    if _TRAIN_TAR in tars and not any(re.fullmatch(r"n\d{8}", name) for name in folders):
        unpack = "and each tar file in it, into a folder of its own: train/n01440764, ..."
        raise RuntimeError(f"{folder / _TRAIN_TAR}: must be unpacked first, {unpack}")
    if tars and not folders:
        raise RuntimeError(f"{folder / tars[0]}: must be unpacked first, into a folder for each class")


def named(classes: Sequence[str], root: Path) -> tuple[str, ...]:
    """Returns the classes, with the first of their words where ``LOC_synset_mapping.txt`` is found."""
    path = _find(root, _WORDS)
    lines = [line.partition(" ") for line, _ in _lines(path)] if path else []
    words = {name: f"{name} {words.split(',')[0]}" for name, _, words in lines}
    return tuple(words.get(name, name) for name in classes)


def labels(val: Paths, classes: Sequence[str], root: Path) -> tuple[array[int], Path]:
    """Returns the labels of val's pictures, and the file or folder that they are from.

    Args:
        val: the pictures, in the order of their names.
        classes: the names of train's folders.
        root: the folder that has train and val.

    Raises:
        FileNotFoundError: nothing tells the classes.
        ModuleNotFoundError: scipy, which reads the devkit's ``meta.mat``, is not installed.
        RuntimeError: a picture has no class, or one that train has not; a file is damaged.
    """
    source, told = _told(val, root)
    known = {name: (class_, where) for name, class_, where in told}
    label = {name: label for label, name in enumerate(classes)}
    result = array("i")
    for path in val:
        if path.stem not in known:
            raise RuntimeError(f"{path}: {source} has no class for it")
        class_, where = known[path.stem]
        if class_ not in label:
            raise RuntimeError(f"{where}: {path} is of class {class_!r}, which has no folder in train")
        result.append(label[class_])
    return result, source


def _told(val: Paths, root: Path) -> tuple[Path, Told]:
    if path := _find(root, _SOLUTION):
        return path, _solution(path)
    if path := _find(root, _ANNOTATIONS):
        return path, _annotations(path)
    if path := _find(root, _TRUTH, f"{_DEVKIT}/{_TRUTH}"):
        meta = _find(root, _META, f"{_DEVKIT}/{_META}")
        if meta is None:
            why = f"the devkit's {_META} says which classes its numbers are, but is not there"
            raise FileNotFoundError(f"{path}: {why}; {_WORDS} has them in another order")
        return path, _ground_truth(path, meta, val)
    raise FileNotFoundError(
        f"{val[0].parent}: has pictures, but no folder for each class; needs one of {_SOLUTION}, "
        f"{_ANNOTATIONS}/*.xml, {_TRUTH} with {_META}, in {root} or above, up to {_places(root)[-1]}"
    )


def _find(root: Path, *names: str) -> Path | None:
    """Returns the first of the names that is there."""
    return next((place / name for place in _places(root) for name in names if (place / name).exists()), None)


def _places(root: Path) -> list[Path]:
    """Returns the folder and the one above it; of ILSVRC/Data/CLS-LOC, up to the one that has ILSVRC."""
    root = Path(os.path.abspath(root))
    return [root, *root.parents[: 3 if root.parts[-2:] == ("Data", "CLS-LOC") else 1]]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Returns the lines of a file that are not empty, each with where it is."""
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").split("\n"), 1):
        if line.strip():
            yield line.strip(), f"{path}, line {number}"


def _solution(path: Path) -> Told:
    for line, where in _lines(path):
        name, _, boxes = line.partition(",")
        if name == "ImageId":
            continue
        if not boxes.split():
            raise RuntimeError(f"{where}: must be a picture's name, a comma, its class, but is {line[:80]!r}")
        yield name, boxes.split()[0], where


def _annotations(folder: Path) -> Told:
    name = re.compile(r"<object>.*?<name>\s*([^<\s]+)\s*</name>", re.DOTALL)
    for path in sorted(folder.glob("*.xml")):
        found = name.search(path.read_text(encoding="utf-8", errors="replace"))
        if found is None:
            raise RuntimeError(f"{path}: names no object")
        yield path.stem, found[1], str(path)


def _ground_truth(path: Path, meta: Path, val: Paths) -> Told:
    lines = list(_lines(path))
    if len(lines) != len(val):
        raise RuntimeError(f"{path}: has {len(lines)} lines, but {val[0].parent} has {len(val)} pictures")
    classes = _read_meta(meta)
    for picture, (line, where) in zip(val, lines, strict=True):
        if line not in classes:
            raise RuntimeError(f"{where}: must be a number of {meta}, but is {line[:80]!r}")
        yield picture.stem, classes[line], where


def _read_meta(path: Path) -> dict[str, str]:
    """Returns the WordNet id of each of ILSVRC's class numbers."""
    if importlib.util.find_spec("scipy") is None:
        raise ModuleNotFoundError(f"{path} is read by scipy; install it with: pip install scipy")
    try:
        synsets = importlib.import_module("scipy.io").loadmat(path, squeeze_me=True)["synsets"]
        numbers, names = synsets["ILSVRC2012_ID"], synsets["WNID"]
        return {str(int(number)): str(name) for number, name in zip(numbers, names, strict=True)}
    except Exception as error:  # scipy's are of many types
        raise RuntimeError(f"{path}: damaged, or not the devkit's: {error}") from error
