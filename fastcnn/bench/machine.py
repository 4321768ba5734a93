"""Facts that a result depends on besides fastcnn: the machine, and the versions of all contenders."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__, _native, available_backends

# "auto" does not take the CUDA kernels yet, so the backend is asked for by name.
_BACKENDS = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
_CPUINFO = Path("/proc/cpuinfo")
_PROCESSOR = {  # x86 and Arm; a hypervisor's "model name" may be no more than "AMD EPYC"
    "cpu vendor": ("vendor_id", "CPU implementer"),
    "cpu family": ("cpu family", "CPU architecture"),
    "cpu model": ("model", "CPU part"),
    "cpu stepping": ("stepping", "CPU revision"),
}
_FLAGS = re.compile(r"avx2|avx512f|avx512_bf16|amx_\w+|asimd|sve2?|bf16|i8mm")


def backend(device: str) -> str:
    """Returns the fastest backend that can run on the device here."""
    reasons = available_backends()
    return next(name for name in _BACKENDS[device] if reasons[name] is None)


def facts(device: str, *packages: str) -> dict[str, Any]:
    """packages: whose versions matter, besides fastcnn's, torch's and the peers'."""
    versions = _versions("onnxruntime", "openvino", "jax", *packages)
    return {
        "processor": torch.cuda.get_device_name() if device == "cuda" else _cpuinfo().get("model name", ""),
        "cpu": cpu(),
        "device": device,
        "threads": torch.get_num_threads(),
        "backend": backend(device),
        "extension": _native.missing_reason() or _native.load().build_info(),
        "versions": {"fastcnn": __version__, "torch": torch.__version__, **dict(versions)},
    }


def cpu() -> dict[str, str]:
    """Returns which processor it is exactly, and its vector and matrix extensions."""
    info = _cpuinfo()
    found = {name: info[key] for name, keys in _PROCESSOR.items() for key in keys if key in info}
    flags = (info.get("flags") or info.get("Features", "")).split()
    return found | {"cpu flags": " ".join(sorted(filter(_FLAGS.fullmatch, flags)))}


def _cpuinfo() -> dict[str, str]:
    """Returns Linux's facts on the first processor; elsewhere its name alone."""
    first = _CPUINFO.read_text().split("\n\n")[0] if _CPUINFO.exists() else ""
    pairs = (line.partition(":") for line in first.splitlines())
    found = {key.strip(): value.strip() for key, _, value in pairs}
    return {"model name": platform.processor() or platform.machine()} | found


def _versions(*packages: str) -> Iterator[tuple[str, str]]:
    for package in packages:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def describe(facts: dict[str, Any], dtype: str) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    where = f"{facts['processor']}, {facts['threads']} threads"
    return f"{where}, {dtype}, backend {facts['backend']}; {versions}"


def load() -> str | None:
    """Returns a warning where other processes are at work."""
    load = os.getloadavg()[0]
    if load < 0.5:
        return None
    return f"Other processes are busy (load {load:.1f} on {os.cpu_count()} processors): expect noise"
