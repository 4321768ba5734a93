"""A checkpoint in torch.hub's cache, downloaded where it is not there yet."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

import torch

from .._files import shown

_CHUNK = 1 << 20  # bytes
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BY_HAND = "download the file by hand and use fastcnn.models.load_weights"


def cached(url: str, progress: bool) -> Path:
    """Returns the file's place in the cache, ``checkpoints`` in ``torch.hub.get_dir()``.

    It is torchvision's cache too; TORCH_HOME moves it. The SHA-256 is checked each time: as torch.hub has it,
    the file's name ends with its first digits. No part of a download is left behind, whatever is raised.

    Args:
        url: where the file is, if it is not in the cache.
        progress: write the source, and torch's progress bar, to stderr.

    Raises:
        OSError: the download failed (urllib.error.URLError, HTTPError; ConnectionError), or the cache can't
            be written or read (PermissionError and others); the message says what to do.
        RuntimeError: a file with another SHA-256, downloaded or in the cache.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    prefix = path.stem.rpartition("-")[2]
    if os.path.exists(path):
        _check_hash(path, prefix)
    else:
        _download(url, path, prefix, progress)
    return path


def _check_hash(path: Path, prefix: str) -> None:
    """Raises RuntimeError unless the file's SHA-256 begins with ``prefix``, as torch.hub does on download."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    begins = digest.hexdigest()[: len(prefix)]
    if begins != prefix:
        raise RuntimeError(
            f"alexnet: {path} is damaged, cut off or another file: its SHA-256 begins with {begins}, "
            f"not {prefix}. Delete it and try again, or {_BY_HAND}"
        )


def _download(url: str, path: Path, prefix: str, progress: bool) -> None:
    """Downloads to a file aside, which is renamed once it is whole and its SHA-256 is right."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if progress:
            print(f"Downloading {url} to {path}", file=sys.stderr)
        torch.hub.download_url_to_file(url, str(path), prefix, progress)
    except (OSError, HTTPException, RuntimeError) as error:
        raise _explained(error, url, path) from error


def _explained(error: Exception, url: str, path: Path) -> Exception:
    """Returns the error with both ends named and what to do; http.client's own become a URLError."""
    advice = "Set TORCH_HOME to another folder" if _local(error) else "Try again"
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    if isinstance(error, RuntimeError):  # torch.hub's, about the SHA-256; it does not look at the length
        reason = f"what came is cut off or another file, {error}"
    said = shown(str(reason).strip())  # a server's words may be in it
    text = f"alexnet: can't download {url} to {path}: {said}. {advice}, or {_BY_HAND}"
    if isinstance(error, HTTPError):
        return HTTPError(url, error.code, text, error.hdrs, error.fp)
    if isinstance(error, URLError) or not isinstance(error, (OSError, RuntimeError)):
        return URLError(text)
    if isinstance(error, OSError) and error.errno is not None:
        return type(error)(error.errno, text)
    return type(error)(text)


def _local(error: Exception) -> bool:
    """Returns true if the cache's folder or disk caused the error; sockets' errors have no file name."""
    if not isinstance(error, OSError) or isinstance(error, URLError):
        return False
    return error.filename is not None or error.errno in _NO_ROOM
