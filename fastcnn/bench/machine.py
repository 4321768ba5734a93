"""What a result depends on besides fastcnn: the machine, and the versions of all contenders."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__, _native, available_backends

# "auto" does not take the CUDA kernels yet, so the backend is asked for by name.
_BACKENDS = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}


def backend(device: str) -> str:
    """The fastest that can run on the device here."""
    reasons = available_backends()
    return next(name for name in _BACKENDS[device] if reasons[name] is None)


def facts(device: str) -> dict[str, Any]:
    return {
        "processor": processor(device),
        "device": device,
        "threads": torch.get_num_threads(),
        "backend": backend(device),
        "extension": _native.missing_reason() or _native.load().build_info(),
        "versions": {"fastcnn": __version__, "torch": torch.__version__, **dict(_peers())},
    }


def processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _peers() -> Iterator[tuple[str, str]]:
    for package in ("onnxruntime", "openvino", "jax"):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def describe(facts: dict[str, Any], dtype: str) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    where = f"{facts['processor']}, {facts['threads']} threads"
    return f"{where}, {dtype}, backend {facts['backend']}; {versions}"


def load() -> str | None:
    """A warning where other processes are at work."""
    load = os.getloadavg()[0]
    if load < 0.5:
        return None
    return f"Other processes are busy (load {load:.1f} on {os.cpu_count()} processors): expect noise"
