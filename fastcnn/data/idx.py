"""MNIST's file format, IDX: two zero bytes, type, dimensions, their sizes, then the values (LeCun's page)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from .. import _files

_UINT8 = 8
_DIMENSIONS = 4 + 4 * 4  # bytes of a header of four dimensions
_LARGEST = 2**31  # bytes
_PART = 2**24


def read(path: Path) -> Tensor:
    """Reads the uint8 values of an IDX file, gzip or not, in its own shape.

    Raises:
        OSError: it can't be opened.
        RuntimeError: it is damaged or no such file; the message names it.
    """
    _files.check_regular(path)
    data = _content(path, _DIMENSIONS)
    if len(data) < 4 or data[:2] != b"\0\0" or data[3] == 0:
        raise RuntimeError(f"{path}: not an IDX file: it starts with {data[:4].hex(' ') or 'nothing'}")
    if data[2] != _UINT8:
        raise RuntimeError(f"{path}: must hold bytes (IDX type 8), but its type is {data[2]}")
    start = 4 + 4 * data[3]
    if data[3] > 4:
        raise RuntimeError(f"{path}: must have four dimensions at most, but its header says {data[3]}")
    sizes = [int.from_bytes(data[i : i + 4], "big") for i in range(4, min(start, len(data)), 4)]
    if start + math.prod(sizes) > _LARGEST:
        raise RuntimeError(
            f"{path}: must have {_LARGEST:,} bytes at most, but its header says {tuple(sizes)}"
        )
    data = _content(path, start + math.prod(sizes) + 1)  # no more than it should have
    if len(data) != start + math.prod(sizes):
        more = " or more" if len(data) > start + math.prod(sizes) else ""
        raise RuntimeError(
            f"{path}: damaged: its header says {tuple(sizes)}, {start + math.prod(sizes)} bytes in all, "
            f"but there are {len(data)}{more}"
        )
    if math.prod(sizes) == 0:
        raise RuntimeError(f"{path}: is empty: its header says {tuple(sizes)}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start).view(sizes)


def _content(path: Path, size: int) -> bytes:
    """Reads the first bytes of a file, gzip or not, in no more memory than they need."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with (gzip.open if packed else open)(path, "rb") as file:
            parts = []
            while size > 0 and (part := file.read(min(size, _PART))):
                parts.append(part)
                size -= len(part)
            return b"".join(parts)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RuntimeError(f"{path}: damaged gzip file: {error}") from error


def read_pair(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    """Reads images (N, H, W) and their labels (N,), uint8.

    Raises:
        OSError, RuntimeError: as of :func:`read`; shapes that don't fit.
    """
    values, classes = read(images), read(labels)
    if values.dim() != 3:
        raise RuntimeError(f"{images}: must be (N, H, W), but is {tuple(values.shape)}")
    if classes.shape != values.shape[:1]:
        raise RuntimeError(
            f"{labels}: must have a label for each of {len(values)} images, but is {tuple(classes.shape)}"
        )
    return values, classes
