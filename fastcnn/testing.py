"""Tolerances, error rule and device lists, for tests of fastcnn and of backends or layers built on it."""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import BACKENDS, module
from .backends.plain import epilogue as plain_epilogue
from .stages import DTYPES, Stages

__all__ = [
    "DTYPES",
    "TOLERANCES",
    "assert_close",
    "assert_within_twice",
    "backends",
    "devices",
    "plain_epilogue",
]

# (rtol, atol) between two right answers in a dtype, several roundings apart.
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (4e-3, 4e-3),
    torch.bfloat16: (3e-2, 3e-2),
}


def devices() -> list[str]:
    """Returns this machine's devices that fastcnn supports."""
    return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def backends(device: str = "cpu") -> list[str]:
    """Returns the backends that run on a device here."""
    probe, stages = torch.empty(1, 1, 1, 1, device=device), Stages()
    return [name for name in BACKENDS if module(name).unsupported_reason(probe, stages) is None]


def assert_close(actual: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    """Asserts equal shape, dtype, device, and values within TOLERANCES times factor; NaN equals NaN."""
    rtol, atol = TOLERANCES.get(actual.dtype, (0.0, 0.0))
    torch.testing.assert_close(actual, expected, rtol=factor * rtol, atol=factor * atol, equal_nan=True)


def assert_within_twice(actual: Tensor, plain: Tensor, exact: Tensor, terms: Tensor | None = None) -> None:
    """Asserts the error rule: against ``exact`` (float64), at most twice the error of plain torch.

    Both errors are the largest over the tensor, where all three are finite; one unit in the last place
    of the largest value (or of the largest of ``terms``, where the result is a difference of those) is
    granted on top, since plain torch is now and then exact by luck. Where plain torch has a finite
    value, so must ``actual``. In float64 nothing here is more exact than ``exact``: TOLERANCES decide.
    """
    if actual.dtype == torch.float64:
        return assert_close(actual, exact)
    require(actual.shape == exact.shape, f"{actual.shape} is not {exact.shape}")
    require(actual.dtype == plain.dtype, f"{actual.dtype} is not {plain.dtype}")
    bad = actual.isnan() & ~plain.isnan()
    require(not bad.any(), f"NaN in {int(bad.sum())} places where plain torch has none")
    finite = exact.isfinite() & plain.isfinite() & actual.isfinite()
    lost = exact.isfinite() & plain.isfinite() & ~actual.isfinite()
    require(not lost.any(), f"not finite in {int(lost.sum())} places where plain torch is")
    if not finite.any():
        return
    exact = exact[finite]
    ulp = torch.finfo(actual.dtype).eps * (exact if terms is None else terms).abs().max().item()
    ours, theirs = ((t[finite].double() - exact).abs().max().item() for t in (actual, plain))
    require(ours <= 2 * theirs + ulp, f"error {ours:.3g}, plain torch's {theirs:.3g}, ulp {ulp:.3g}")


def require(condition: object, message: str) -> None:
    """Asserts, under ``python -O`` too."""
    if not condition:
        raise AssertionError(message)
