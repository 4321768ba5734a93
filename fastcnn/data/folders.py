"""A folder of pictures for each class: finding them, and what is to be tested with."""

from __future__ import annotations

import functools
import importlib.util
import os
from array import array
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from . import ilsvrc
from .paths import Paths
from .pictures import SUFFIXES, Files
from .source import Data

_TESTS = ("val", "valid", "validation", "test")  # the first of them is tested with
_HELD_OUT = 10  # one image of so many of a class, where no folder says which are for testing


def pictures(folder: Path, side: int, size: int) -> Data:
    """Returns the pictures of a folder, with notes of what was left out; see :func:`fastcnn.data.find`.

    Of each a square of ``side`` pixels is made, and of that crops of ``size``.
    """
    if importlib.util.find_spec("PIL") is None:
        raise ModuleNotFoundError("pictures are read by Pillow; install it with: pip install pillow")
    layout = _layout(ilsvrc.root(folder))
    if (count := len(layout.classes)) < 2:
        raise RuntimeError(f"{layout.root}: needs the folders of two classes at least, but has {count}")
    found = _Search(layout)
    notes = []
    if not layout.parts:
        notes.append(f"held out for testing: each class's first picture of every {_HELD_OUT}, by name")
    if layout.flat:
        found.test.labels, source = ilsvrc.labels(found.test.paths, layout.classes, layout.root)
        notes.append(f"classes of {layout.parts[1]}: from {source}")
    notes += found.notes()
    train, test = (Files(part.paths, part.labels, side) for part in (found.train, found.test))
    return Data(train, test, ilsvrc.named(layout.classes, layout.root), 3, side, size, True, tuple(notes))


class _Layout(NamedTuple):
    """The layout of the pictures: ``root/part/class``, or ``root/class`` without parts."""

    root: Path
    parts: tuple[str, ...]  # the folder for training and the one for testing, or none
    classes: tuple[str, ...]
    flat: bool = False  # whether the pictures for testing are in no folders of classes


def _layout(folder: Path) -> _Layout:
    if not (folder / "train").is_dir():
        return _Layout(folder, (), _classes(folder))
    test = next((name for name in _TESTS if (folder / name).is_dir()), None)
    if test is None:
        raise FileNotFoundError(f"{folder}: has train, but nothing to test with: {', '.join(_TESTS)}")
    classes = _classes(folder / "train")
    test_folders, names = _listing(folder / test)
    if not test_folders and any(map(is_picture, names)):
        return _Layout(folder, ("train", test), classes, flat=True)
    if different := ", ".join(sorted(set(classes) ^ set(_classes(folder / test)))):
        raise RuntimeError(f"{folder}: train and {test} differ in classes: {different}")
    return _Layout(folder, ("train", test), classes)


def _classes(folder: Path) -> tuple[str, ...]:
    """Returns the names of the folders in it."""
    folders, names = _listing(folder)
    ilsvrc.refuse_packed(folder, folders, names)
    if not folders:
        raise FileNotFoundError(f"{folder}: has neither IDX files nor a folder for each class")
    return tuple(folders)


def _listing(folder: Path) -> tuple[list[str], list[str]]:
    """Returns the names of the folders in it and of the files, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        found = sorted((entry.name, _is_folder(entry)) for entry in entries if not _is_hidden(entry.name))
    return [name for name, is_folder in found if is_folder], [
        name for name, is_folder in found if not is_folder
    ]


def _is_hidden(name: str) -> bool:
    """Returns whether some program made it for itself, as .ipynb_checkpoints or .DS_Store."""
    return name.startswith(".") or name == "__MACOSX"


def is_picture(name: str) -> bool:
    """Returns whether a file of this name is taken for a picture."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether it is a folder, or a link to one. Only links are looked up on the disk."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or through a folder that can't be read
        return False


class _Part:
    """The pictures for training, or those for testing, and their labels."""

    def __init__(self) -> None:
        self.paths, self.labels = Paths(), array("i")

    def extend(self, folder: str, names: Sequence[str], label: int) -> None:
        self.paths.extend(folder, names)
        self.labels.extend([label] * len(names))


class _Some:
    """Counts names, and keeps the first three."""

    def __init__(self) -> None:
        self.count, self.first = 0, list[str]()

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.first) < 3:
            self.first.append(name)

    def __str__(self) -> str:
        return ", ".join(self.first) + ", ..." * (self.count > 3)


class _Search:
    """Finds a layout's pictures: one walk over its folder, in the order of sorted paths.

    Links to folders are followed where pictures are looked for, to each folder once in a class.

    Raises:
        FileNotFoundError: a class has no picture.
        OSError: a folder can't be read.
        RuntimeError: a class has one picture, and none is left to train on.
    """

    def __init__(self, layout: _Layout) -> None:
        self.layout, self.depth = layout, 2 if layout.parts else 1  # of the classes' folders
        self.label = {name: label for label, name in enumerate(layout.classes)}
        self.counts = [0] * len(layout.classes)  # of pictures so far, where some are held out
        self.train, self.test = _Part(), _Part()
        self.not_used, self.outside = _Some(), _Some()
        self.real_root = os.path.realpath(layout.root)
        self.real_path = functools.lru_cache(os.path.realpath)
        self.walk(str(layout.root), self.real_root, (), set())
        self.check()

    def walk(self, folder: str, real: str, parts: tuple[str, ...], seen: set[str]) -> None:
        """Adds the files below a folder.

        Args:
            folder: its path.
            real: the same without links.
            parts: the same from the root on.
            seen: the real paths of the class's folders that were walked before.
        """
        if real in seen:
            return
        seen.add(real)
        with os.scandir(folder) as entries:
            found = sorted(entries, key=attrgetter("name"))
        names = list[str]()
        for entry in found:
            target = None
            if entry.is_symlink():
                target = self.follow(entry, real, (*parts, entry.name))
            elif entry.is_dir():
                target = os.path.join(real, entry.name)
            if target is None:
                names.append(entry.name)
                continue
            self.add(folder, parts, names)
            names.clear()
            in_class = len(parts) >= self.depth
            self.walk(entry.path, target, (*parts, entry.name), seen if in_class else set())
        self.add(folder, parts, names)

    def follow(self, link: os.DirEntry[str], real: str, parts: tuple[str, ...]) -> str | None:
        """Returns the real path of the folder that a link leads to; None: no folder, or not used."""
        if not self.is_used(parts):
            return None
        is_folder = _is_folder(link)
        if is_folder:
            target = os.path.realpath(link.path)
        else:  # a million links may lead to the same folder
            above, name = os.path.split(os.path.join(real, os.readlink(link.path)))
            target = os.path.join(self.real_path(above), name)
        if not f"{target}/".startswith(os.path.join(self.real_root, "")):
            self.outside.add(f"{'/'.join(parts)} -> {target}")
        return target if is_folder else None

    def is_used(self, parts: tuple[str, ...]) -> bool:
        """Returns whether pictures, or folders of classes, are looked for there."""
        used = not self.layout.parts or parts[0] in self.layout.parts
        return used and not any(map(_is_hidden, parts))

    def label_of(self, parts: tuple[str, ...]) -> int | None:
        """Returns the label of a folder's pictures, 0 where it is to be read; None: they aren't used."""
        if not parts or not self.is_used(parts):
            return None
        if self.layout.flat and parts == self.layout.parts[1:]:
            return 0
        return self.label.get(parts[self.depth - 1]) if len(parts) >= self.depth else None

    def add(self, folder: str, parts: tuple[str, ...], names: Sequence[str]) -> None:
        """Adds files of a folder, to train on, to test with, or to those that are not used."""
        label = self.label_of(parts)
        used = [] if label is None else [name for name in names if is_picture(name)]
        if len(used) < len(names):
            for name in sorted(set(names).difference(used)):
                self.not_used.add("/".join((*parts, name)))
        if label is None:
            return
        if self.layout.parts:
            part = self.train if parts[0] == "train" else self.test
            part.extend(folder, used, label)
            return
        first = -self.counts[label] % _HELD_OUT
        self.counts[label] += len(used)
        self.test.extend(folder, used[first::_HELD_OUT], label)
        del used[first::_HELD_OUT]
        self.train.extend(folder, used, label)

    def check(self) -> None:
        """Raises an error where a class has too few pictures."""
        root, parts, classes, flat = self.layout
        trained, tested = set(self.train.labels), set(self.test.labels)
        needed = [(root, tested)]
        if parts:
            needed = [(root / parts[0], trained), (root / parts[1], tested)][: 1 if flat else 2]
        for folder, labels in needed:
            if empty := [name for label, name in enumerate(classes) if label not in labels]:
                raise FileNotFoundError(f"{folder / empty[0]}: has no picture ({' '.join(SUFFIXES)})")
        if single := [name for label, name in enumerate(classes) if label not in trained]:
            raise RuntimeError(f"{root / single[0]}: needs two pictures, one to train on, one to test with")

    def notes(self) -> list[str]:
        """Returns lines about files that are not used, and about links out of the folder."""
        notes = []
        if count := self.not_used.count:
            notes.append(f"not used: {count} file{'s' if count > 1 else ''}: {self.not_used}")
        if count := self.outside.count:
            notes.append(f"links that lead out of the folder: {count}: {self.outside}")
        return notes
