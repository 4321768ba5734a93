"""Where training's images come from, see ``--data`` of ``python -m fastcnn train --help``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from . import folders, held, shards
from .source import Batch, Data, Source

__all__ = ["Batch", "Data", "Source", "find"]


def find(data: str, size: int | None, side: int | None = None) -> Data:
    """Finds what ``--data`` names, for a network that takes size x size images.

    Args:
        data: "digits"; a folder with MNIST's four IDX files, gzip or not; what ``pack`` made; a folder with a
            folder of pictures for each class, or with two such, "train" and "val" or "test"; webdataset's tar
            files; or ImageNet as ILSVRC2012 is distributed, unpacked: the folder that has ``ILSVRC``, that
            folder, or its ``Data/CLS-LOC``.
        size: pixels; None: what the data has, and 224 for pictures.
        side: of the squares that pictures in files are made into; None: in the paper's proportion.

    Raises:
        FileNotFoundError: nothing is there, or nothing of these; val has no folders, and no file that tells
            its classes.
        ModuleNotFoundError: a package that reads it is not installed.
        RuntimeError: damaged files, or classes that don't fit; the message names them.
        ValueError: a size below that of the images in memory.
    """
    if data == "digits":
        return held.digits(size)
    folder = Path(data)
    if not data or not folder.is_dir():
        raise FileNotFoundError(f"--data must be a folder, or digits, but got {data!r}")
    if any(found := held.idx_files(folder)):
        return held.idx_data(folder, found, size)
    if (folder / "pack.json").exists():
        return _packed(folder, size)
    size = 224 if size is None else size
    side = side or round(size * 256 / 224)  # the paper's proportion
    if tars := shards.found(folder):
        return shards.pictures(tars, side, size)
    return folders.pictures(folder, side, size)


def _packed(folder: Path, size: int | None) -> Data:
    if importlib.util.find_spec("numpy") is None:
        raise ModuleNotFoundError("packed pictures are read by numpy; install it with: pip install numpy")
    from . import packed

    return packed.find(folder, size)
