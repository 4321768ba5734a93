"""A folder of pictures for each class: finding them, and what is to be tested with."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from .pictures import Files
from .source import Data

_PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_TESTS = ("val", "valid", "validation", "test")  # the first of them is tested with
_HELD_OUT = 10  # one image of so many of a class, where no folder says which are for testing

Classes = dict[str, list[Path]]


def pictures(folder: Path, side: int, size: int) -> Data:
    """Pictures by class, of which squares of ``side`` pixels are made, and crops of ``size``."""
    if importlib.util.find_spec("PIL") is None:
        raise ModuleNotFoundError("pictures are read by Pillow; install it with: pip install pillow")
    train, test, notes = _split(folder)
    if len(train) < 2:
        raise RuntimeError(f"{folder}: needs the folders of two classes at least, but has {len(train)}")
    used = {path for part in (train, test) for paths in part.values() for path in paths}
    notes += _not_used(folder, used)
    return Data(_files(train, side), _files(test, side), tuple(train), 3, side, size, True, tuple(notes))


def _split(folder: Path) -> tuple[Classes, Classes, list[str]]:
    """What to train on and to test with, by the folders where one is called train; and what to say of it."""
    if not (folder / "train").is_dir():
        return _held_out(folder)
    test_folder = next((folder / name for name in _TESTS if (folder / name).is_dir()), None)
    if test_folder is None:
        raise FileNotFoundError(f"{folder}: has train, but nothing to test with: {', '.join(_TESTS)}")
    train, test = _classes(folder / "train"), _classes(test_folder)
    if list(train) != list(test):
        different = ", ".join(sorted(set(train) ^ set(test)))
        raise RuntimeError(f"{folder}: train and {test_folder.name} differ in classes: {different}")
    return train, test, []


def _held_out(folder: Path) -> tuple[Classes, Classes, list[str]]:
    found = _classes(folder)
    test = {name: paths[::_HELD_OUT] for name, paths in found.items()}
    train = {name: [p for i, p in enumerate(paths) if i % _HELD_OUT] for name, paths in found.items()}
    single = [name for name, paths in train.items() if not paths]
    if single:
        raise RuntimeError(f"{folder / single[0]}: needs two pictures, one to train on, one to test with")
    return train, test, [f"held out for testing: each class's first picture of every {_HELD_OUT}, by name"]


def _files(classes: Classes, side: int) -> Files:
    paths = [path for paths in classes.values() for path in paths]
    return Files(paths, [label for label, paths in enumerate(classes.values()) for _ in paths], side)


def _classes(folder: Path) -> Classes:
    """The pictures of each class, by name."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))
    if not folders:
        raise FileNotFoundError(f"{folder}: has neither IDX files nor a folder for each class")
    result = {path.name: [p for p in _walk(path) if p.suffix.lower() in _PICTURES] for path in folders}
    empty = [name for name, paths in result.items() if not paths]
    if empty:
        raise FileNotFoundError(f"{folder / empty[0]}: has no picture ({' '.join(_PICTURES)})")
    return result


def _is_hidden(name: str) -> bool:
    """Returns whether some program made it for itself, as .ipynb_checkpoints or .DS_Store."""
    return name.startswith(".") or name == "__MACOSX"


def _walk(folder: Path, hidden: bool = False) -> list[Path]:
    """Returns all files by name, with the hidden ones if asked for; OSError where a folder can't be read.

    Links are followed, to each folder once.
    """

    def fail(error: OSError) -> None:
        raise error

    found, seen = list[Path](), set[str]()
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if os.path.realpath(root) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        folders[:] = [name for name in folders if hidden or not _is_hidden(name)]
        found += [Path(root, name) for name in names if hidden or not _is_hidden(name)]
    return sorted(found)


def _not_used(folder: Path, used: set[Path]) -> list[str]:
    """A line about the files that are hidden, no pictures by their names, or in no class's folder."""
    names = [str(path.relative_to(folder)) for path in _walk(folder, hidden=True) if path not in used]
    if not names:
        return []
    more = ", ..." if len(names) > 3 else ""
    return [f"not used: {len(names)} file{'s' if len(names) > 1 else ''}: {', '.join(names[:3])}{more}"]
