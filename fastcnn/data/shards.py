"""Pictures in tar files as webdataset has them: ``key.jpg`` beside ``key.cls``, the class's number."""

from __future__ import annotations

import re
import tarfile
from array import array
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .paths import Paths
from .pictures import SUFFIXES, Files, decoded
from .source import Data

_TEST = re.compile(r"(^|[^a-z])(val|valid|validation|test)([^a-z]|$)")


class Shards(Files):
    """Pictures in tar files, read where they lie in them."""

    def __init__(self, side: int) -> None:
        super().__init__(Paths(), (), side)
        self._tars, self._tar_of = list[Path](), array("i")
        self._offsets, self._sizes = array("q"), array("q")

    def add(self, path: Path) -> None:
        """Adds a tar file's samples.

        Raises:
            OSError: it can't be read.
            RuntimeError: it is no tar file, or a sample has no class.
        """
        self._tars.append(path)
        for sample in _samples(path):
            self._tar_of.append(len(self._tars) - 1)
            self.paths.extend(str(path), [sample.name])
            self.labels.append(sample.label)
            self._offsets.append(sample.offset)
            self._sizes.append(sample.size)

    def picture(self, number: int) -> Tensor:
        """Returns one picture, (side, side, 3)."""
        with open(self._tars[self._tar_of[number]], "rb") as file:
            file.seek(self._offsets[number])
            return decoded(file.read(self._sizes[number]), self.side)


class _Sample(NamedTuple):
    name: str
    label: int
    offset: int
    size: int


def found(folder: Path) -> list[Path]:
    """Returns the tar files in a folder and its subfolders, if the first one has samples with classes."""
    paths = sorted([*folder.glob("*.tar"), *folder.glob("*/*.tar")])
    if not paths or not paths[0].is_file():
        return []
    try:
        with tarfile.open(paths[0], "r:") as tar:
            first = [member.name for member, _ in zip(tar, range(20), strict=False)]
    except tarfile.TarError:
        return []
    return paths if any(name.endswith(".cls") for name in first) else []


def pictures(paths: list[Path], side: int, size: int) -> Data:
    """Returns the pictures of tar files; those with val, validation or test in their name are for testing.

    Raises:
        FileNotFoundError: none is for testing, or for training.
        OSError, RuntimeError: as of :meth:`Shards.add`; a class of the test that is not in training.
    """
    train, test = Shards(side), Shards(side)
    for path in paths:
        names = f"{path.parent.name}/{path.name}".lower()
        (test if _TEST.search(names) else train).add(path)
    for part, kind in ((train, "training"), (test, "testing: val, validation or test in its name")):
        if not len(part):
            raise FileNotFoundError(f"{paths[0].parent}: no tar file is for {kind}")
    count = max(train.labels) + 1
    if max(test.labels) >= count:
        raise RuntimeError(f"{paths[-1]}: has class {max(test.labels)}, but training goes to {count - 1}")
    return Data(train, test, tuple(map(str, range(count))), 3, side, size, mirrored=True)


def _samples(path: Path) -> Iterator[_Sample]:
    try:
        with tarfile.open(path, "r:") as tar:
            files = (member for member in tar if member.isreg())
            for key, members in groupby(files, lambda member: _split(member.name)[0]):
                by_kind = {_split(member.name)[1]: member for member in members}
                image = next((by_kind[s[1:]] for s in SUFFIXES if s[1:] in by_kind), None)
                if image is None:
                    continue
                label = tar.extractfile(by_kind["cls"]) if "cls" in by_kind else None
                text = label.read(20).strip() if label else b""
                if not text.isdigit() or len(text) > 6:
                    raise RuntimeError(f"{path}: {key}.cls must be its class's number, but is {text!r}")
                yield _Sample(image.name, int(text), image.offset_data, image.size)
    except tarfile.TarError as error:
        raise RuntimeError(f"{path}: damaged, or no tar file: {error}") from error


def _split(name: str) -> tuple[str, str]:
    """Returns a sample's key and extension: the name is split at the first dot of its last part."""
    folder, _, last = name.rpartition("/")
    key, _, kind = last.partition(".")
    return f"{folder}/{key}", kind.lower()
