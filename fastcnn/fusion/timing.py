"""Times each chain against torch's functions one by one, on the values that an example gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from .. import measure
from .runtime import Chain

_SECONDS, _ROUNDS = 2e-3, 7  # of one measurement, at least; of how many
_NOISE = 1.02


def leave_losers(chains: list[Chain], run: Callable[[], Any]) -> None:
    """Leaves the chains that are slower, as ``times`` then says of each that ran."""
    with _recorded(chains) as seen:
        run()
    for chain, (args, kwargs) in seen.items():
        with torch.no_grad():
            times = _raced(partial(chain, *args, **kwargs), partial(chain.written, *args, **kwargs))
        chain.times, chain.is_left = times, times[0] > _NOISE * times[1]


def _raced(*functions: Callable[[], Any]) -> tuple[float, ...]:
    """Returns seconds a call, the medians of rounds in turns."""
    for f in functions:
        f()  # which may fold weights, or prepare a call
    calls = [max(1, round(_SECONDS / max(measure.seconds(f), 1e-7))) for f in functions]

    def repeated(f: Callable[[], Any], n: int) -> Callable[[], Any]:
        return lambda: [f() for _ in range(n)]

    runs = {str(i): repeated(*pair) for i, pair in enumerate(zip(functions, calls, strict=True))}
    medians = [timing.median for timing in measure.compare(runs, _ROUNDS).values()]
    return tuple(median / n for median, n in zip(medians, calls, strict=True))


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
