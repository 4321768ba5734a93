"""What the tests of fastcnn, and of a backend or layer built on it, are made of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import BACKENDS, module
from .stages import DTYPES, LRN, MaxPool, Stages

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
    """The devices of this machine that fastcnn knows."""
    return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def backends(device: str = "cpu") -> list[str]:
    """The backends that run on a device here."""
    probe, stages = torch.empty(1, 1, 1, 1, device=device), Stages()
    return [name for name in BACKENDS if module(name).unsupported_reason(probe, stages) is None]


def assert_close(actual: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    """Equal shape, dtype and device; values within the dtype's TOLERANCES times factor; NaN equals NaN."""
    rtol, atol = TOLERANCES.get(actual.dtype, (0.0, 0.0))
    torch.testing.assert_close(actual, expected, rtol=factor * rtol, atol=factor * atol, equal_nan=True)


def assert_within_twice(actual: Tensor, plain: Tensor, exact: Tensor, terms: Tensor | None = None) -> None:
    """The error rule: against ``exact`` (float64), at most twice the error of plain torch.

    Both errors are the largest over the tensor, where all three are finite; one unit in the last place
    of the largest value (or of the largest of ``terms``, where the result is a difference of those) is
    granted on top, since plain torch is now and then exact by luck. Where plain torch has a finite
    value, so must ``actual``. In float64 nothing here is more exact than ``exact``: TOLERANCES decide.
    """
    if actual.dtype == torch.float64:
        return assert_close(actual, exact)
    assert actual.shape == exact.shape, f"{actual.shape} is not {exact.shape}"
    assert actual.dtype == plain.dtype, f"{actual.dtype} is not {plain.dtype}"
    bad = actual.isnan() & ~plain.isnan()
    assert not bad.any(), f"NaN in {int(bad.sum())} places where plain torch has none"
    finite = exact.isfinite() & plain.isfinite() & actual.isfinite()
    lost = exact.isfinite() & plain.isfinite() & ~actual.isfinite()
    assert not lost.any(), f"not finite in {int(lost.sum())} places where plain torch is"
    if not finite.any():
        return
    exact = exact[finite]
    ulp = torch.finfo(actual.dtype).eps * (exact if terms is None else terms).abs().max().item()
    ours, theirs = ((t[finite].double() - exact).abs().max().item() for t in (actual, plain))
    assert ours <= 2 * theirs + ulp, f"error {ours:.3g}, plain torch's {theirs:.3g}, ulp {ulp:.3g}"


def _plain_lrn(x: Tensor, lrn: LRN) -> Tensor:
    """torch's own LRN within each group; in float32 where torch has none in the dtype."""
    n, c, h, w = x.shape
    grouped = x.reshape(n * lrn.groups, c // lrn.groups, h, w)
    wide = grouped.float() if x.dtype in (torch.float16, torch.bfloat16) else grouped
    y = F.local_response_norm(wide, lrn.size, lrn.alpha, lrn.beta, lrn.k)
    return y.to(x.dtype).view(n, c, h, w)


def plain_epilogue(x: Tensor, bias: Tensor | None, stages: Stages) -> Tensor:
    """The same stages as anyone would write them with torch.nn.functional, one rounding after another."""
    if bias is not None:
        x = x + bias.view(1, -1, 1, 1)
    if stages.relu:
        x = F.relu(x)
    stages_left = [stages.lrn, stages.pool] if stages.order == "lrn_pool" else [stages.pool, stages.lrn]
    for spec in stages_left:
        if isinstance(spec, LRN):
            x = _plain_lrn(x, spec)
        elif isinstance(spec, MaxPool):
            x = F.max_pool2d(x, *spec.pairs, spec.ceil_mode)  # type: ignore[call-overload]
    return x
