"""Results as a table for the terminal, and what has to be said about them in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from ..measure import Timing
from .result import Result

_CAPTION = (
    "ms: median ± half the distance between the quartiles. Under the others' names: how many times as long "
    "as fastcnn they take, round by round. % of copy, FLOP/s: what fastcnn moves and computes, of a large "
    "copy's rate here, and of the faster one's of a matmul and a convolution."
)
_WIDE = 100  # columns, where the ratios' spread fits in


class Sheet(NamedTuple):
    """A table's columns, by contender, and the machine's rates in ``dtype``."""

    peers: Sequence[str]
    dtype: str
    rates: dict[str, float]

    def table(self, results: Sequence[Result], width: int) -> Table:
        """For a terminal of so many columns."""
        table = Table(
            caption=_CAPTION,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
            show_edge=False,
        )
        table.add_column("")
        for header in ("fastcnn\nms", *self.peers, "% of\ncopy", "% of\nFLOP/s"):
            lines = header.replace("torch.", "torch.\n").replace("ONNX ", "ONNX\n")
            table.add_column(lines, justify="right", no_wrap=True)
        for result in results:
            table.add_row(*self._cells(result, width >= _WIDE))
        return table

    def _cells(self, result: Result, spread: bool) -> Iterator[str]:
        ratios = result.times_faster()
        yield f"{result.name}\n[yellow]too noisy[/]" if result.too_close() else result.name
        if not ratios:
            columns = ("fastcnn", *self.peers, "% of copy", "% of FLOP/s")
            yield from ("failed" if name in result.failed else "–" for name in columns)
            return
        ours = result.time("fastcnn")
        yield _with_spread(Timing(*(1e3 * value for value in ours)))
        for peer in self.peers:
            yield _ratio(ratios.get(peer), peer in result.failed, spread)
        for amount, rate in ((result.moved, self.rates["copy"]), (result.flops, self.rates[self.dtype])):
            yield f"{100 * amount / rate / ours.median:.0f}" if amount else "–"


def _ratio(ratio: Timing | None, failed: bool, spread: bool) -> str:
    if ratio is None:
        return "failed" if failed else "–"
    return _with_spread(ratio) if spread else f"{ratio.median:.{_digits(ratio.median)}f}"


def _with_spread(timing: Timing) -> str:
    digits = _digits(timing.median)
    return f"{timing.median:.{digits}f} ± {(timing.high - timing.low) / 2:.{digits}f}"


def _digits(value: float) -> int:
    """After the point, for three in all."""
    return 0 if value >= 100 else 1 if value >= 10 else 2


def show(
    console: Console,
    sheet: Sheet,
    races: Iterable[tuple[str, Callable[..., Result]]],
    results: list[Result],
) -> None:
    """The table, a row as soon as it is there; elsewhere than in a terminal, at the end.

    It is drawn between times only: a thread that animates would take its share of the processor.

    Args:
        races: by name, what is called with a function to tell its state to, and gives the row.
        results: gets the rows as they come, and has them when Ctrl-C ends the rest.
    """
    with Live(console=console, auto_refresh=False) as live:
        try:
            for name, race in races:

                def tell(state: str, name: str = name) -> None:
                    live.update(Group(sheet.table(results, console.width), f"{name}: {state}"), refresh=True)

                tell("preparing")
                results.append(race(tell))
        finally:
            live.update(sheet.table(results, console.width))
    if not console.is_terminal:
        console.line()  # Live ends none there


def remarks(results: Sequence[Result]) -> Iterator[str]:
    """Yields why contenders have no time; last, which rows can't be trusted."""
    for result in results:
        for name, reason in result.failed.items():
            yield f"{result.name}: {name} is left out: {reason}"
    noisy = [f"{r.name} ({', '.join(r.too_close())})" for r in results if r.too_close()]
    if noisy:
        yield (
            "Too noisy: fastcnn, timed twice a round, differs from itself by as much as from another, or the "
            f"quartiles lie on both sides of 1. Don't trust: {'; '.join(noisy)}."
        )
