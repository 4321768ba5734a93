"""Which modules of a model have chains in their forwards."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .fused import MODES, Fused, Fusion
from .guard import written
from .trace import Traces, is_layer


def plan(model: nn.Module, fold_bn: bool) -> Iterator[tuple[str, nn.Module, Fusion]]:
    """Yields the modules whose forward is looked at, by name, with what becomes of it.

    A module that another's forward looks through, or no longer calls, in one mode has none of its own in it.
    """
    traces = Traces()
    passed: dict[bool, set[nn.Module]] = {mode: set() for mode in MODES}
    for name, m in model.named_modules():
        modes = [mode for mode in MODES if m not in passed[mode]]
        if not modes or (is_layer(m) and written(type(m)) not in (nn.LocalResponseNorm, nn.MaxPool2d)):
            continue  # but these two layers are chains by themselves
        fusion = Fusion(fold_bn)
        fusion.make(m, traces, modes)
        for mode, forward in fusion.forwards.items():
            if isinstance(forward, Fused):
                passed[mode].update(forward.depends.passed.values())
        yield name, m, fusion
