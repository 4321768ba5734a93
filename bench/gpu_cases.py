"""Tries every kernel once on a small input: the cases, and whether a backend computes them right."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from fastcnn import LRN, MaxPool
from fastcnn._verify import verify
from fastcnn.stages import Stages

MAIN, POOL = "relu, lrn, pool 3/2", "relu, pool 3/2"
DTYPES, LAYOUTS = ("bfloat16", "float32", "float16"), ("channels_last", "NCHW")
VARIANTS = {"special": 1, "general": 0}
SHAPE = (2, 48, 21, 19)


@cache
def all_stages() -> dict[str, Stages]:
    """Returns each combination by its name; the most common first."""
    lrn, found = LRN(5, 0.2, k=2.0, groups=2), {}
    for relu, width in product(("relu, ", ""), (3, 2)):
        on, name, pool = bool(relu), f"pool {width}/2", MaxPool(width, 2)
        found[f"{relu}lrn, {name}"] = Stages(on, lrn, pool)
        found[f"{relu}{name}"] = Stages(on, None, pool)
        found[f"{relu}{name}, lrn"] = Stages(on, lrn, pool, "pool_lrn")
    return found | {
        "relu, pool 3/2 to the edge": Stages(pool=MaxPool(3, 2, 1, 1, True)),
        "relu, lrn": Stages(lrn=lrn),
        "lrn": Stages(False, lrn),
        "relu": Stages(),
        "bias": Stages(False),
    }


class Case(NamedTuple):
    """One combination of kernels; kind: "special", "general", or "best", those that the backend takes."""

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
        """Returns x, bias and the gradient at y, which is positive, so that no sum over a channel cancels."""
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
    special, general = (product(all_stages(), DTYPES, LAYOUTS, [kind]) for kind in VARIANTS)
    sliced = product((MAIN, POOL), DTYPES, ("sliced by 8", "sliced by 1"), ["best"])
    exact = product(all_stages(), ["float64"], LAYOUTS, ["general"])
    return [Case(*c) for c in (*special, *sliced, *general, *exact)]


def triton_cases() -> list[Case]:
    """Returns what compiles in time."""
    two = product((MAIN, POOL), DTYPES[:2], LAYOUTS)
    others = product(("relu, pool 3/2, lrn", "relu, lrn", "relu"), DTYPES[:1], LAYOUTS[:1])
    return [Case(*c, "best") for c in (*two, *others, (MAIN, "float64", "NCHW"))]


@contextlib.contextmanager
def kernels(module: Any, kind: str) -> Iterator[None]:
    """Has the cuda backend take kernels of this kind; other backends have only one."""
    if kind not in VARIANTS or not module.__name__.endswith("cuda"):
        yield
        return

    def params(*args: Any, make: Callable[..., Any] = module.params, **named: Any) -> Any:
        p = make(*args, **named)
        p.kernel_set = VARIANTS[kind]
        return p

    with mock.patch.object(module, "params", params):
        yield


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fills fresh memory with NaN, or impossible argmax, so that what is left unwritten is seen."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")  # see torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def check(module: Any, case: Case, device: str, synchronize: Callable[[], None]) -> dict[str, str]:
    """Compares inference, training and backward with float64.

    Returns:
        The verdict: "ok", "does not fit" where kernels of this kind don't take the case, or "wrong".
    """

    def run(fn: Callable[..., Any], *args: Any, **named: Any) -> Any:
        with kernels(module, case.kind), poisoned():
            results = fn(*args, **named)
            synchronize()
        return results

    names = ("epilogue_forward", "epilogue_backward")
    backend = SimpleNamespace(**{name: partial(run, getattr(module, name)) for name in names})
    x, bias, _ = case.tensors(SHAPE, device)
    try:
        verify(backend, x, bias, all_stages()[case.stages])
    except AssertionError as error:
        return {"verdict": "wrong", "error": str(error)}
    except Exception as error:
        if "no such kernels" not in str(error):
            raise
        return {"verdict": "does not fit"}
    return {"verdict": "ok"}
