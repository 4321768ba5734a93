"""Tells in words what fuse does to a model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .fused import Fused, fusion_of, fusions
from .plan import plan
from .runtime import Chain


def explain(model: nn.Module) -> None:
    """Prints what of a model is fused, or would be by ``fuse``, and what is not and why.

    A line for each chain: the module whose forward it is in, the calls in it, and what they have become; for
    each convolution, LRN, max pooling or forward that is left as written; and a summary.

    Raises:
        TypeError: model is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain: model must be a torch.nn.Module, but got {type(model).__name__}")
    fold_bn = any(fusion.fold_bn for fusion in fusions(model))
    found = list(_rows(model, fold_bn))
    rows = [("in", "calls", "run as"), *(row for row, _ in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print(_summary(model, [kinds for _, kinds in found], fold_bn))


def _rows(model: nn.Module, fold_bn: bool) -> Iterator[tuple[tuple[str, str, str], tuple[str, ...]]]:
    """Yields what is printed, and the kinds of a block's parts; none of what is left as written."""
    for name, m, fusion, modes in plan(model, fold_bn, fusion_of):
        where = f"{name or 'model'} ({type(m).__name__})"
        is_fused = fusion is fusion_of(m)
        forwards = {mode: fusion.forwards[mode] for mode in modes}
        forward, other = forwards.get(m.training), forwards.get(not m.training)
        if isinstance(forward, str):
            yield (where, "forward", f"as written: {forward}"), ()
        if isinstance(forward, Fused):
            changed = None
            if is_fused and not forward.depends.holds():
                changed = forward.depends.changed() or "a part was fused or unfused by itself"
            for call, (kinds, calls) in zip(forward.calls, forward.chains, strict=True):
                is_block = not changed and not call.is_left
                row = where, ", ".join(calls), _result(call, kinds, changed, is_fused)
                yield row, kinds if is_block else ()
            for written, reason in forward.left:
                yield (where, written, f"as written: {reason}"), ()
        if isinstance(forward, Fused) and isinstance(other, str):
            mode = "evaluation" if m.training else "training"
            yield (where, f"forward in {mode}", f"as written: {other}"), ()


def _result(call: Chain, kinds: tuple[str, ...], changed: str | None, is_fused: bool) -> str:
    times = " against ".join(f"{1e6 * t:,.0f} us" for t in call.times)
    if changed or call.is_left:
        return f"as written, since {changed or f'a block takes {times}'}"
    result = f"one block: {', '.join(kinds)}" + (f" ({times})" if times else "")
    return result if is_fused else f"not fused yet; {result}"


def _summary(model: nn.Module, found: list[tuple[str, ...]], fold_bn: bool) -> str:
    blocks = [kinds for kinds in found if kinds]
    folded, left = sum("bn" in kinds for kinds in blocks), len(found) - len(blocks)
    said = f"{len(blocks)} blocks, {folded} batch norms folded, {left} left as written"
    if fold_bn:
        return said
    forwards = (fusion.forwards.get(False) for _, _, fusion, _ in plan(model, True))
    chains = [kinds for f in forwards if isinstance(f, Fused) for kinds, _ in f.chains]
    return f"{said}, fold_bn=True would fold {sum('bn' in kinds for kinds in chains)}"
