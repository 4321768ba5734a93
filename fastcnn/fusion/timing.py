"""Times each chain against torch's functions one by one, on the values that an example gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from .. import measure
from .runtime import Chain

_NOISE = 1.02


def leave_losers(chains: list[Chain], run: Callable[[], Any]) -> None:
    """Leaves the chains that are slower, as ``times`` then says of each that ran."""
    with _recorded(chains) as seen:
        run()
    for chain, (args, kwargs) in seen.items():
        with torch.no_grad():
            ours, plain = measure.compare(
                {"ours": partial(chain, *args, **kwargs), "plain": partial(chain.written, *args, **kwargs)}
            ).values()
        chain.times, chain.is_left = (ours.median, plain.median), ours.median > _NOISE * plain.median


@contextmanager
def _recorded(chains: list[Chain]) -> Iterator[dict[Chain, Any]]:
    """Notes what each is called with."""
    seen: dict[Chain, Any] = {}

    def recording(cls: Any) -> Any:
        def call(self: Chain, *args: Any, **kwargs: Any) -> Any:
            seen[self] = args, kwargs
            return cls.__call__(self, *args, **kwargs)

        return type(cls.__name__, (cls,), {"__call__": call})

    before = [type(chain) for chain in chains]
    for chain in chains:
        chain.__class__ = recording(type(chain))
    try:
        yield seen
    finally:
        for chain, cls in zip(chains, before, strict=True):
            chain.__class__ = cls
