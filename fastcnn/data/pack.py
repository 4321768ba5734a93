"""Decoding a folder of pictures once, into the array that packed.py reads: ``python -m fastcnn pack``."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader

from .. import _files
from .packed import FORMAT, NAME, digest
from .pictures import Files
from .pictures import workers as decoders
from .source import Data

_LARGEST = 8192  # rows and columns
# Images that are hashed together, and decoded again if they are not whole after a stop. Of 16, which stay in
# the cache, each takes 1.9 ms, of 128 2.3 ms (one thread of an AMD EPYC with AVX-512).
_CHUNK = 16

Done = tuple[str, dict[int, str]]  # a chunk's hash, and why some of its rows can't be read


class Chunk(NamedTuple):
    """Some images of a source, and the row of the first of them."""

    row: int
    source: Files
    numbers: range


def run(source: Path, out: Path, side: int, workers: int | None, skip_bad: bool) -> None:
    """Packs, with a progress bar in the terminal.

    Raises:
        OSError, RuntimeError: as of :func:`folders.pictures` and :func:`pack`.
        ValueError: ``out`` is in ``source``, or has a pack already.
    """
    from rich.console import Console
    from rich.progress import Progress

    from . import find

    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"OUT must not be in SRC, but got {out} in {source}")
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"OUT must be a folder, but got {out}")
    if (out / NAME).exists():
        raise ValueError(f"{out / NAME} is there: it is packed; another OUT packs anew")
    if side > _LARGEST:
        raise ValueError(f"--size must be at most {_LARGEST}, but got {side}")
    if not source.is_dir():
        raise FileNotFoundError(f"SRC must be a folder, but got {source}")
    data = find(str(source), side, side)
    if not isinstance(data.train, Files):
        raise ValueError(f"SRC must be pictures in files, but got {source}")
    out.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    for note in data.notes:
        console.print(_files.shown(note))
    start, done, bad = time.perf_counter(), 0, 0
    bar = Progress(
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=False,  # as in training/log.py
        redirect_stderr=False,
    )
    with _files.held(out), bar as progress:
        _refuse_to_overwrite(out)
        task = progress.add_task("packing", total=len(data.train) + len(data.test))
        for step in pack(data, out, decoders(data.train) if workers is None else workers, skip_bad):
            done, unread = step
            bad += len(unread)
            progress.update(task, completed=done)
            for line in unread:
                console.print(_files.shown(line))
    left_out = f", {bad} of them left out, as {NAME} says" if bad else ""
    speed = done / (time.perf_counter() - start)
    console.print(f"{done:,} pictures of {side} x {side} are in {out}{left_out}; {speed:.0f} a second")


def _refuse_to_overwrite(out: Path) -> None:
    for name in ("images.npy", "labels.npy", ".pack.log"):
        path = out / name
        if path.is_symlink() or (path.exists() and not (out / ".pack.log").is_file()):
            raise ValueError(f"{path} is there, but not from a pack that was begun; take another OUT")


def pack(data: Data, folder: Path, workers: int, skip_bad: bool) -> Iterator[tuple[int, list[str]]]:
    """Decodes all pictures; yields how many are done, and why some of these last can't be read.

    After a stop it goes on: chunks that are whole, by their hashes, are left. pack.json is written last, and
    without it nothing is packed.

    Args:
        data: pictures in files.
        folder: nobody else may write to it.
        workers: processes that decode.
        skip_bad: leave out pictures that can't be read, as zeros that are never trained on.

    Raises:
        OSError: it can't be written, the disk is full.
        RuntimeError: a picture can't be read.
    """
    sources = [part for part in (data.train, data.test) if isinstance(part, Files)]
    count, path = sum(map(len, sources)), folder / "images.npy"
    plan = [FORMAT, data.side, count, *(source.fingerprint() for source in sources)]
    chunks = _chunks(sources)
    with _Log(folder / ".pack.log", plan) as log:
        start = _make_room(path, (count, data.side, data.side, 3))
        reader: DataLoader[Done] = DataLoader(
            _Decoding(path, start, data.side, dict(log.done)),  # type: ignore[arg-type]
            batch_sampler=chunks,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
        )
        for chunk, done in zip(chunks, reader, strict=True):
            if done[1] and not skip_bad:
                raise RuntimeError(f"{next(iter(done[1].values()))}; --skip-bad leaves such pictures out")
            log.add(chunk.row, done)
            yield chunk.row + len(chunk.numbers), list(done[1].values())
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        _write_rest(folder, data, sources, [log.done[chunk.row] for chunk in chunks])
    (folder / ".pack.log").unlink()


def _as_it_is(done: Done) -> Done:
    return done


def _chunks(sources: list[Files]) -> list[Chunk]:
    rows = [0, len(sources[0])]
    return [
        Chunk(row + first, source, range(first, min(first + _CHUNK, len(source))))
        for row, source in zip(rows, sources, strict=True)
        for first in range(0, len(source), _CHUNK)
    ]


def _make_room(path: Path, shape: tuple[int, ...]) -> int:
    """Reserves the whole file, so that a full disk shows now; returns the byte where its rows start."""
    with open(path, "r+b" if path.exists() else "w+b") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        start, size = file.tell(), int(np.prod(shape, dtype=np.int64))
        file.truncate(start + size)
        try:
            os.posix_fallocate(file.fileno(), 0, start + size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    return start


class _Decoding:
    """A dataset of chunks, which are written to the file by whoever decodes them."""

    def __init__(self, path: Path, start: int, side: int, done: Mapping[int, Done]) -> None:
        self._path, self._start, self._shape, self._done = path, start, (side, side, 3), done

    def __getitems__(self, chunk: Chunk) -> Done:
        size = len(chunk.numbers) * int(np.prod(self._shape))
        with open(self._path, "r+b") as file:
            place = self._start + chunk.row * int(np.prod(self._shape))
            hashed, unread = self._done.get(chunk.row, ("", {}))
            if hashed and not unread:  # what could not be read may be mended now
                file.seek(place)
                if hashlib.sha256(file.read(size)).hexdigest() == hashed:
                    return hashed, unread
            batch = chunk.source.__getitems__(list(chunk.numbers))
            images = batch.images.numpy()
            if batch.bad:
                images = np.zeros((len(chunk.numbers), *self._shape), np.uint8)
                images[batch.places.numpy()] = batch.images.numpy()
            memory = images.data.cast("B")
            file.seek(place)
            file.write(memory)
        missing = sorted(set(range(len(images))) - set(batch.places.tolist()))
        why = [f"can't read {path}: {reason}" for path, reason in batch.bad.items()]
        rows = {chunk.row + number: line for number, line in zip(missing, why, strict=True)}
        return hashlib.sha256(memory).hexdigest(), rows


class _Log:
    """The chunks that are done, by their first row: a line of JSON each, after one that says of what.

    A line may be torn, or its chunk not be on the disk after a loss of power; that the hash tells.
    """

    def __init__(self, path: Path, plan: list[Any]) -> None:
        self.done: dict[int, Done] = {}
        lines = path.read_bytes().splitlines() if path.is_file() else []
        if lines and _parsed(lines[0]) == plan:
            for row, hashed, unread in filter(None, map(_parsed, lines[1:])):
                self.done[row] = hashed, {int(number): why for number, why in unread.items()}
        told = [plan, *([row, *done] for row, done in self.done.items())]
        _files.replace(path, "".join(json.dumps(line) + "\n" for line in told).encode())
        self._file = open(path, "a")  # noqa: SIM115

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, row: int, done: Done) -> None:
        if self.done.get(row) != done:
            self.done[row] = done
            self._file.write(json.dumps([row, *done]) + "\n")
            self._file.flush()


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _write_rest(folder: Path, data: Data, sources: list[Files], done: list[Done]) -> None:
    labels = np.array([label for source in sources for label in source.labels], "<i8")
    unread = {row: why for _, rows in done for row, why in rows.items()}
    first = len(sources[0])
    for part in (range(first), range(first, len(labels))):
        if all(row in unread for row in part):
            raise RuntimeError(f"of one of the two parts no picture can be read; {unread[part[0]]}")
    with _files.replacing(folder / "labels.npy") as file:
        np.save(file, labels)
    told = {
        "format": FORMAT,
        "side": data.side,
        "images": len(labels),
        "train": first,
        "classes": data.classes,
        "bad": list(unread),
        "why": list(unread.values()),
        "labels": hashlib.sha256(labels.tobytes()).hexdigest(),
        "hashes": [hashed for hashed, _ in done],
    }
    _files.replace(folder / NAME, json.dumps({**told, "sha256": digest(told)}).encode())
