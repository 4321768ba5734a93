"""Decides which kernels ``auto`` may take on a GPU: those that are known to be right on it.

That is where the project's own device results say so (``trusted.json``, made of bench/results), and elsewhere
after a check at first use: a small example forward and backward, against float64. A kernel that fails it is
not taken, with one warning; ``python -m fastcnn info`` tells why.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from .. import _files
from ..stages import Stages

_RESULTS = Path(__file__).with_name("trusted.json")  # by bench/report.py: capabilities and what was compiled


_verdicts: dict[str, str | None] = {}
_lock = threading.Lock()


def verdicts() -> dict[str, str | None]:
    """Returns this process's verdicts: None if a kernel is right, else what was wrong."""
    return dict(_verdicts)


def epilogue_reason(
    backend: str,
    device: torch.device,
    stages: Stages,
    dtype: torch.dtype,
    format: torch.memory_format,
    channels: int,
) -> str | None:
    """Returns :func:`reason` for a backend's kernels of these stages, dtype and format."""
    from . import module

    sources = module(backend).sources()
    if vouched_for(device, sources):
        return None

    def check() -> None:
        from .._verify import example, verify

        verify(module(backend), *example((2, channels, 21, 19), dtype, format, device), stages)

    return reason(_kernels(backend, stages, dtype, format), device, sources, check)


@functools.lru_cache(maxsize=1024)
def _kernels(backend: str, stages: Stages, dtype: torch.dtype, format: torch.memory_format) -> str:
    return f"{backend}'s {stages.name}, {_name(dtype)}, {_name(format)}"


def _name(value: torch.dtype | torch.memory_format) -> str:
    return str(value).removeprefix("torch.")


def reason(kernels: str, device: torch.device, sources: str, check: Callable[[], None]) -> str | None:
    """Returns why ``auto`` may not take some kernels on a device; None if it may.

    Args:
        kernels: what they are, and all that decides which code runs.
        device: where.
        sources: a hash of what they were compiled from.
        check: runs them on a small example there, and raises if something is wrong.
    """
    if vouched_for(device, sources):
        return None
    name = f"{kernels}, on {_identity(device, sources)}"
    if name not in _verdicts:
        if _capturing(device):
            return "not checked yet, and nothing can be while a CUDA graph is captured: run it once before"
        with _lock:  # one thread checks
            if name not in _verdicts:
                _verdicts[name] = None if _known(name) else _first_verdict(name, check)
    return _verdicts[name]


def _first_verdict(name: str, check: Callable[[], None]) -> str | None:
    wrong = _failure(check)
    if wrong is None:
        _remember(name)
    else:
        warnings.warn(
            f"fastcnn: plain torch takes over from {name}, which failed its check: {wrong}",
            RuntimeWarning,
            stacklevel=2,
        )
    return wrong


def _failure(check: Callable[[], None]) -> str | None:
    """Returns a check's error, or None. It runs in a new thread, without the caller's modes and streams."""
    raised: list[str] = []

    def run() -> None:
        try:
            check()
        except Exception as error:  # whatever it is, plain torch does not have it
            raised.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@functools.cache
def vouched_for(device: torch.device, sources: str) -> bool:
    """Returns whether the device suite and memcheck passed on such a GPU, with these sources."""
    rows = json.loads(_RESULTS.read_text())
    if device.type != "cuda" or not rows:
        return False
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return {"compute capability": capability, "sources": sources} in rows


@functools.cache
def _identity(device: torch.device, sources: str) -> str:
    """Returns what a verdict depends on besides the kernels: GPU, driver, torch, and what was compiled."""
    parts = [str(torch.__version__), sources]
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        parts += [gpu.name, f"sm_{gpu.major}{gpu.minor}", _driver()]
    return f"{device} ({', '.join(parts)})"


def _driver() -> str:
    with suppress(OSError):
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    return "unknown driver"


# Successes are kept, a file each, so that two processes can't get in each other's way. A file that does not
# say what it is about, or a folder that can't be read or written, costs a check.


def _file(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "fastcnn" / hashlib.sha256(name.encode()).hexdigest()[:32]


def _known(name: str) -> bool:
    with suppress(OSError, RuntimeError, ValueError):  # RuntimeError: no home
        return _file(name).read_text() == name
    return False


def _remember(name: str) -> None:
    with suppress(OSError, RuntimeError):
        path = _file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        _files.replace(path, name.encode())
