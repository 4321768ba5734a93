"""What bench/sweep.py measured, as docs/sweep.md: how often fastcnn is slower than plain torch, and where."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from report_cpu import machine, times

# By plain's time, in seconds.
CLASSES = {"< 50 µs": 50e-6, "50–500 µs": 500e-6, "0.5–5 ms": 5e-3, "> 5 ms": math.inf}
WORST = 20


def size_class(row: dict) -> str:
    return next(name for name, below in CLASSES.items() if row["plain_seconds"] < below)


def gain(row: dict) -> float:
    return row["times_faster"]["median"]


def table(rows: list[dict]) -> Iterator[str]:
    yield "| | | plain's time | cases | slower | worst | median |"
    yield "|---|---|---|--:|--:|--:|--:|"
    for op, mode in dict.fromkeys((row["op"], row["mode"]) for row in rows):
        for name in CLASSES:
            found = [r for r in rows if (r["op"], r["mode"], size_class(r)) == (op, mode, name)]
            if found:
                gains = list(map(gain, found))
                share = 100 * statistics.mean(row["slower"] for row in found)
                cells = [f"{share:.0f}%", times(min(gains)), times(statistics.median(gains))]
                yield f"| {op} | {mode} | {name} | {len(found)} | {' | '.join(cells)} |"


def slowest(rows: list[dict]) -> Iterator[str]:
    yield "| | quartiles | plain, µs | threads | | case |"
    yield "|--:|--:|--:|--:|---|---|"
    for row in sorted(filter(lambda row: row["slower"], rows), key=gain)[:WORST]:
        low, high = (times(row["times_faster"][name]) for name in ("low", "high"))
        what = f"{row['op']}, {row['mode']}"
        took = f"{1e6 * row['plain_seconds']:.0f}"
        yield f"| {times(gain(row))} | {low}–{high} | {took} | {row['threads']} | {what} | `{row['case']}` |"


def page(data: dict) -> str:
    rows = data["rows"]
    slower = sum(row["slower"] for row in rows)
    introduction = f"""# Random shapes beside plain torch

By `make sweep` on {machine(data)}; {data["cases"]} cases of each op, drawn
from seed {data["seed"]}, in inference and in training (forward and backward), with each number of threads.

A ratio is plain torch's time over fastcnn's, the median of rounds in which both take turns. A case counts as
slower if the upper quartile of its ratio is below 0.95, after 25 rounds if it looked slower in the first 9.
{slower} of {len(rows)} are.
"""
    parts = [introduction, *table(rows)]
    if slower:
        parts += ["\n## The slowest\n", *slowest(rows)]
    return "\n".join(parts) + "\n"
