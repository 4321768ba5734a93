"""What fuse does to a model, in words."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .fused import Fused, Fusion, fusion_of
from .plan import plan


def explain(model: nn.Module) -> None:
    """Print what of a model is fused, or would be by ``fuse``, and what is not and why.

    A line for each chain: the module whose forward it is in, the calls in it, and what they have become; and
    for each convolution, LRN, max pooling or forward that is left as written.

    Raises:
        TypeError: model is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain: model must be a torch.nn.Module, but got {type(model).__name__}")
    rows = list(_rows(model))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _rows(model: nn.Module) -> Iterator[tuple[str, str, str]]:
    yield "in", "calls", "run as"
    fusions = [fusion for m in model.modules() if (fusion := fusion_of(m)) is not None]
    fold_bn = any(fusion.fold_bn for fusion in fusions)
    for name, m, fusion in plan(model, fold_bn):
        where = f"{name or 'model'} ({type(m).__name__})"
        made = fusion_of(m)
        fusion = made or fusion
        for calls, result in _of_module(m, fusion, made is not None):
            yield where, calls, result


def _of_module(m: nn.Module, fusion: Fusion, is_fused: bool) -> Iterator[tuple[str, str]]:
    forward, other = (fusion.forwards.get(mode) for mode in (m.training, not m.training))
    if forward is None:  # another's forward looks through it
        return
    if not isinstance(forward, Fused):
        yield "forward", f"as written: {forward}"
        return
    changed = forward.depends.changed() if is_fused else None
    for kinds, calls in forward.chains:
        result = f"one block: {', '.join(kinds)}"
        if changed:
            result = f"as written, since {changed}"
        elif not is_fused:
            result = f"not fused yet; {result}"
        yield ", ".join(calls), result
    for call, reason in forward.left:
        yield call, f"as written: {reason}"
    if isinstance(other, str):
        yield f"forward in {'evaluation' if m.training else 'training'}", f"as written: {other}"
