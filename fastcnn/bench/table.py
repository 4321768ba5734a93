"""Results as a table for the terminal, and what has to be said about them in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from ..measure import Timing
from .race import Result

_CAPTION = (
    "ms: median ± half the distance between the quartiles. Under the others' names: how many times as long "
    "as fastcnn they take, round by round. % of copy, FLOP/s: what fastcnn moves and computes, of a large "
    "copy's rate here, and of the faster one's of a matmul and a convolution."
)
_MEMORY = {"kept": "keeps {:.1f} MB for backward", "peak": "allocates {:.1f} MB more at its peak"}
_WIDE = 100  # columns, where the ratios' spread fits in


def grid(columns: Iterable[str], caption: str, title: str | None = None) -> Table:
    """Returns an empty table of numbers by name."""
    table = Table(
        title=title,
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def with_spread(timing: Timing, scale: float = 1) -> str:
    median, spread = scale * timing.median, scale * (timing.high - timing.low) / 2
    return f"{median:.{_digits(median)}f} ± {spread:.{_digits(median)}f}"


def _digits(value: float) -> int:
    """After the point, for three in all."""
    return 0 if value >= 100 else 1 if value >= 10 else 2


class Sheet(NamedTuple):
    """A table's columns, by contender, and the machine's rates in ``dtype``."""

    peers: Sequence[str]
    dtype: str
    rates: dict[str, float]

    def table(self, results: Sequence[Result], width: int) -> Table:
        """For a terminal of so many columns."""
        peers = [peer.replace("torch.", "torch.\n").replace("ONNX ", "ONNX\n") for peer in self.peers]
        table = grid(("fastcnn\nms", *peers, "% of\ncopy", "% of\nFLOP/s"), _CAPTION)
        for result in results:
            table.add_row(*self._cells(result, width >= _WIDE))
        return table

    def _cells(self, result: Result, spread: bool) -> Iterator[str]:
        case, ratios = result.case, result.times_faster()
        yield f"{case.name}\n[yellow]too noisy[/]" if result.too_close() else case.name
        if "fastcnn" in ratios:
            yield with_spread(result.time("fastcnn"), 1e3)
        for peer in self.peers if ratios else ("fastcnn", *self.peers):
            if peer in ratios:
                each = ratios[peer]
                yield with_spread(each) if spread else f"{each.median:.{_digits(each.median)}f}"
            else:
                yield "failed" if peer in result.failed else "–"
        for amount, rate in ((case.moved, self.rates["copy"]), (case.flops, self.rates[self.dtype])):
            done = amount and ratios
            yield f"{100 * amount / rate / result.time('fastcnn').median:.0f}" if done else "–"


def show(
    console: Console,
    sheet: Sheet,
    races: Iterable[tuple[str, Callable[..., Result]]],
    results: list[Result],
) -> None:
    """Shows the table, a row as soon as it is there; elsewhere than in a terminal, at the end.

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

                results.append(race(tell))
        finally:
            live.update(sheet.table(results, console.width))
    if not console.is_terminal:
        console.line()  # Live ends none there


def remarks(results: Sequence[Result]) -> Iterator[str]:
    """Yields what is needed in memory, why contenders have no time, and which rows can't be trusted."""
    for result in results:
        for name, found in (result.case.memory or {}).items():
            yield f"{result.case.name}: {name} " + ", ".join(
                _MEMORY[k].format(n / 1e6) for k, n in found.items()
            )
        for name, reason in result.failed.items():
            yield f"{result.case.name}: {name} is left out: {reason}"
    noisy = [f"{r.case.name} ({', '.join(r.too_close())})" for r in results if r.too_close()]
    if noisy:
        yield (
            "Too noisy: fastcnn, timed twice a round, differs from itself by as much as from another, or the "
            f"quartiles lie on both sides of 1. Don't trust: {'; '.join(noisy)}."
        )
