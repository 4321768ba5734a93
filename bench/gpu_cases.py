"""Every kernel once against float64: which cases there are, and what is wrong with a backend's answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
from gpu_timing import describe
from torch import Tensor

from fastcnn import LRN, MaxPool
from fastcnn.stages import NO_PLACE, Stages
from fastcnn.testing import plain_epilogue as plain

MAIN, POOL = "relu, lrn, pool 3/2", "relu, pool 3/2"
HALVES, LAYOUTS = ("bfloat16", "float32", "float16"), ("channels_last", "NCHW")
VARIANTS = {"special": 1, "general": 0}
SHAPE = (2, 48, 21, 19)

# Units in the last place that an error is granted: of the value and the typical one together, or of the sum
# of a bias gradient's terms. tests/test_gpu_harness.py plants errors that these must see.
UNITS = {torch.float64: 64, torch.float32: 32, torch.float16: 4, torch.bfloat16: 4}


@cache
def all_stages() -> dict[str, Stages]:
    """Each combination by its name; the commonest first."""
    lrn, found = LRN(5, 0.2, k=2.0, groups=2), {}
    for relu, width in product(("relu, ", ""), (3, 2)):
        on, name, pool = bool(relu), f"pool {width}/2", MaxPool(width, 2)
        found[f"{relu}lrn, {name}"] = Stages(on, lrn, pool)
        found[f"{relu}{name}"] = Stages(on, None, pool)
        found[f"{relu}{name}, lrn"] = Stages(on, lrn, pool, "pool_lrn")
    found["relu, pool 3/2 to the edge"] = Stages(pool=MaxPool(3, 2, 1, 1, True))
    return found | {
        "relu, lrn": Stages(lrn=lrn),
        "lrn": Stages(False, lrn),
        "relu": Stages(),
        "bias": Stages(False),
    }


class Case(NamedTuple):
    """kind: of kernels: "special", "general", or "best", those that the backend takes."""

    stages: str
    dtype: str
    layout: str
    kind: str

    def __str__(self) -> str:
        return f"{self.stages}; {self.dtype}, {self.layout}, {self.kind}"

    @property
    def format(self) -> torch.memory_format:
        return torch.contiguous_format if self.layout == "NCHW" else torch.channels_last

    def tensors(self, shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor | None, Tensor]:
        """x, bias and the gradient at y, which is positive, so that no sum over a channel cancels."""
        stages, dtype = all_stages()[self.stages], getattr(torch, self.dtype)
        first = int(self.layout.removeprefix("sliced by ")) if self.layout.startswith("sliced") else 0
        n, c, h, w = shape
        torch.manual_seed(0)
        x = 2 * torch.randn(n, c + first, h, w, device=device)
        bias = torch.randn(c, device=device).to(dtype) if stages.relu or self.stages == "bias" else None
        grad = 0.5 + torch.rand(stages.output_shape(shape), device=device)
        x, grad = (t.to(dtype).contiguous(memory_format=self.format) for t in (x, grad))
        return x[:, first:], bias, grad


def cuda_cases() -> list[Case]:
    special, general = (product(all_stages(), HALVES, LAYOUTS, [kind]) for kind in VARIANTS)
    sliced = product((MAIN, POOL), HALVES, ("sliced by 8", "sliced by 1"), ["best"])
    exact = product(all_stages(), ["float64"], LAYOUTS, ["general"])
    return [Case(*c) for c in (*special, *sliced, *general, *exact)]


def triton_cases() -> list[Case]:
    """What compiles in time."""
    two = product((MAIN, POOL), HALVES[:2], LAYOUTS)
    others = product(("relu, pool 3/2, lrn", "relu, lrn", "relu"), HALVES[:1], LAYOUTS[:1])
    return [Case(*c, "best") for c in (*two, *others, (MAIN, "float64", "NCHW"))]


@contextlib.contextmanager
def poisoned(poison: bool = True) -> Iterator[None]:
    """Fresh memory holds NaN, or an impossible offset, wherever nothing is written."""
    before = torch.get_deterministic_debug_mode()
    # See torch.utils.deterministic.fill_uninitialized_memory.
    torch.set_deterministic_debug_mode("error" if poison else "default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


@contextlib.contextmanager
def kernels(module: ModuleType, kind: str) -> Iterator[None]:
    """The cuda backend with this kind of kernels; the others have but one."""
    if kind not in VARIANTS or not module.__name__.endswith("cuda"):
        yield
        return

    def params(*args: Any, make: Callable[..., Any] = module.params, **named: Any) -> Any:
        p = make(*args, **named)
        p.variant = VARIANTS[kind]
        return p

    with mock.patch.object(module, "params", params):
        yield


def kept(x: Tensor, y: Tensor, r: Tensor | None, stages: Stages, bias: Tensor | None) -> Tensor | None:
    """What backward is given of forward's tensors."""
    return {"output": y, "input": x, "r": r, None: None}[stages.residual(bias is not None)]


def exact(x: Tensor, bias: Tensor | None, stages: Stages, offsets: Tensor | None) -> tuple[Tensor, ...]:
    """y by the places that offsets names; with pooling also what these hold, and the maxima there.

    Where offsets say that the ReLU just before cut the maximum, that is 0 and has no gradient.
    """
    v, found = plain(x, bias, Stages(stages.relu)), ()
    if stages.lrn and not (stages.pool and stages.pool_first):
        v = plain(v, None, Stages(False, stages.lrn))
    if stages.pool:
        (_, kw), (sh, sw), (ph, pw), _ = stages.pool.pairs
        best = plain(v, None, Stages(False, None, stages.pool))
        row, column = (torch.arange(n, device=v.device) for n in best.shape[2:])
        cut = (offsets == NO_PLACE) & (stages.relu and stages.pool_first)
        places = offsets.long()
        row, column = row.view(-1, 1) * sh - ph + places // kw, column * sw - pw + places % kw
        outside = (row < 0) | (row >= v.shape[2]) | (column < 0) | (column >= v.shape[3])
        if (outside & ~cut).any():
            raise ValueError(f"{int((outside & ~cut).sum())} offsets are outside of the image")
        at = (row * v.shape[3] + column).masked_fill(cut, 0)
        v = v.flatten(2).gather(2, at.flatten(2)).view(best.shape).masked_fill(cut, 0)
        found = (v, best)
    if stages.lrn and stages.pool and stages.pool_first:
        v = plain(v, None, Stages(False, stages.lrn))
    return v, *found


def share(actual: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """The largest error as a share of what is granted; NaN where there is one."""
    if actual.shape != expected.shape:
        raise ValueError(f"a shape is {tuple(actual.shape)}, not {tuple(expected.shape)}")
    if scale is None:  # the value and the typical one, of those that are not 0
        scale = expected.abs() + expected.norm() / max(1, int(expected.count_nonzero())) ** 0.5
    granted = UNITS[actual.dtype] * torch.finfo(actual.dtype).eps * scale
    return ((actual.double() - expected).abs() / granted).max().item()


def shares(
    x: Tensor,
    bias: Tensor | None,
    grad: Tensor,
    stages: Stages,
    y: Tensor,
    offsets: Tensor | None,
    grads: Any,
) -> dict[str, float]:
    """Each result's largest error as a share of what is granted."""
    leaves = [t.double().requires_grad_() for t in (x, bias) if t is not None]
    expected, *found = exact(leaves[0], leaves[1] if leaves[1:] else None, stages, offsets)
    grad_x, *grad_bias = torch.autograd.grad(expected, leaves, grad.double())
    shares = {"y": share(y, expected.detach()), "grad": share(grads[0], grad_x)}
    if found:
        chosen, best = (t.detach() for t in found)
        shares["offsets"] = share(chosen.to(y.dtype), best)
    if grad_bias:
        shares["bias grad"] = share(grads[1], grad_bias[0], grad_x.abs().sum((0, 2, 3)))
    return shares


def check(
    module: Any, case: Case, device: str, synchronize: Callable[[], None], poison: bool = True
) -> dict[str, Any]:
    """Runs inference, forward for training, and backward twice; compares all of it with float64.

    "verdict": ok, wrong, error, or does not fit; "of what is granted": each error's share.
    """
    stages, (x, bias, grad) = all_stages()[case.stages], case.tensors(SHAPE, device)
    phase, has_bias = "inference", bias is not None
    try:
        with kernels(module, case.kind), poisoned(poison):
            inference, *_ = module.epilogue_forward(x, bias, stages, False)
            synchronize()
            phase = "forward for training"
            y, r, offsets = module.epilogue_forward(x, bias, stages, True)
            synchronize()
            phase = "backward"
            rest = (grad, kept(x, y, r, stages, bias), offsets, stages, x.shape, case.format, has_bias)
            grads, again = module.epilogue_backward(*rest), module.epilogue_backward(*rest)
            synchronize()
        phase = "comparison"
        found = shares(x, bias, grad, stages, y, offsets, grads)
        pairs = {"inference": [(inference, y)], "a second backward": zip(grads, again, strict=True)}
        other = [n for n, p in pairs.items() if not all(torch.equal(a, b) for a, b in p if a is not None)]
    except Exception as error:
        if "no such kernels" in str(error):
            return {"verdict": "does not fit"}
        verdict = "wrong" if isinstance(error, ValueError) else "error"
        return {"verdict": verdict, "error": f"{phase}: {describe(error)}"}
    right = all(s <= 1 for s in found.values())  # NaN is not
    verdict = "wrong" if not right else f"other bits in {' and in '.join(other)}" if other else "ok"
    return {"verdict": verdict, "of what is granted": {k: float(f"{s:.2g}") for k, s in found.items()}}
