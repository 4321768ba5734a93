"""Paths of many files, in buffers: a list of 1.2 million pathlib paths needs 470 MB."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import overload


class _Names:
    """Names, one after the other in a buffer, as the bytes that the system has for them."""

    def __init__(self) -> None:
        self.buffer, self.offsets = bytearray(), array("q", [0])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> bytes:
        return bytes(self.buffer[self.offsets[i] : self.offsets[i + 1]])

    def __iter__(self) -> Iterator[memoryview]:
        places = map(slice, self.offsets, islice(self.offsets, 1, None))
        return map(memoryview(self.buffer).__getitem__, places)

    def extend(self, names: Sequence[str]) -> None:
        """Adds names, one at least."""
        encoded = os.fsencode("\0".join(names)).split(b"\0")  # in C; no name has a zero
        self.offsets.extend(islice(accumulate(map(len, encoded), initial=len(self.buffer)), 1, None))
        self.buffer += b"".join(encoded)


class Paths(Sequence[Path]):
    """Paths of files, in the order in which they were added.

    It holds few Python objects, so processes that are forked share its memory: no reference counts change.
    """

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self._names, self._folders = _Names(), _Names()
        self._folder_of = array("i")  # of each name
        for path in paths:
            self.extend(str(path.parent), [path.name])

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...

    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        folder, name = self._folders[self._folder_of[i]], self._names[i]
        return Path(os.fsdecode(folder), os.fsdecode(name))

    def extend(self, folder: str, names: Sequence[str]) -> None:
        """Adds files of a folder. It is kept once if they are added one after the other."""
        if not names:
            return
        if not len(self._folders) or self._folders[len(self._folders) - 1] != os.fsencode(folder):
            self._folders.extend([folder])
        self._names.extend(names)
        self._folder_of.extend([len(self._folders) - 1] * len(names))

    def tails(self) -> Iterator[tuple[bytes, memoryview]]:
        """Returns of each path the last folder's name and the file's."""
        previous, folder = -1, b""
        for number, name in zip(self._folder_of, self._names, strict=True):
            if number != previous:
                previous, folder = number, os.fsencode(Path(os.fsdecode(self._folders[number])).name)
            yield folder, name
