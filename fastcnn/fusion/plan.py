"""Finds the modules of a model that have chains in their forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from .fused import MODES, Fused, Fusion
from .guard import written
from .trace import Traces, is_layer


def plan(
    model: nn.Module, fold_bn: bool, made: Callable[[nn.Module], Fusion | None] = lambda m: None
) -> Iterator[tuple[str, nn.Module, Fusion, list[bool]]]:
    """Yields the modules whose forward is looked at, by name, with what becomes of it, and in which modes.

    One that is a part of another's forward in one mode is not looked at by itself in it. made: returns what
    is there already.
    """
    traces = Traces()
    parts: dict[bool, set[nn.Module]] = {mode: set() for mode in MODES}
    for name, m in model.named_modules():
        modes = [mode for mode in MODES if not _is_part(m, parts[mode])]
        if not modes or (is_layer(m) and written(type(m)) not in (nn.LocalResponseNorm, nn.MaxPool2d)):
            continue  # but these two layers are chains by themselves
        there = made(m)
        fusion = there or Fusion(fold_bn)
        for mode in modes:
            forward = fusion.forward(m, mode, traces)
            if isinstance(forward, Fused) and (there is None or forward.depends.holds()):
                parts[mode].update(forward.depends.passed.values())
        yield name, m, fusion, modes


def _is_part(m: nn.Module, parts: set[nn.Module]) -> bool:
    """Returns whether a module is one of these; or is not called, and holds nothing else but layers."""
    held = [child for child in m.children() if child in parts or not is_layer(child)]
    return m in parts or (bool(held) and all(_is_part(child, parts) for child in held))
