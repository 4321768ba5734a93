"""Which modules of a model have chains in their forwards."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.fx import Tracer

from .depends import written
from .fused import Fused, Fusion
from .trace import OWN, Traces


def plan(model: nn.Module, fold_bn: bool) -> Iterator[tuple[str, nn.Module, Fusion]]:
    """Modules whose own forward is looked at, by name, with what becomes of it.

    One that another's forward looks through, or no longer calls, is not among them.
    """
    traces, seen = Traces(), set[nn.Module]()

    def visit(name: str, m: nn.Module) -> Iterator[tuple[str, nn.Module, Fusion]]:
        if m in seen:
            return
        seen.add(m)
        if _may_have_chains(m):
            fusion = Fusion(fold_bn)
            fusion.make(m, traces)
            yield name, m, fusion
            modes = fusion.forwards.values()
            passed = [set(f.depends.bypassed) if isinstance(f, Fused) else set() for f in modes]
            seen.update(set.intersection(*passed))
        for key, child in m.named_children():
            yield from visit(f"{name}.{key}".lstrip("."), child)

    yield from visit("", model)


def _may_have_chains(m: nn.Module) -> bool:
    return is_alone(m) or not (Tracer().is_leaf_module(m, "") or isinstance(m, OWN))


def is_alone(m: nn.Module) -> bool:
    """Whether a layer of torch's is a chain by itself."""
    return written(type(m)) in (nn.LocalResponseNorm, nn.MaxPool2d)
