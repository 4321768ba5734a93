"""Triton: its epilogue kernels are still to come."""

from __future__ import annotations

from torch import Tensor

from ..stages import Stages


def missing_reason() -> str | None:
    return "this version has no Triton kernels yet; CUDA tensors run on the reference backend"


def unsupported_reason(x: Tensor, stages: Stages) -> str | None:
    return missing_reason()
