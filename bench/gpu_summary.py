"""Compares what a run measured with what the kernels' pages predict; says whether all was right."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ("cuda.md", "triton.md")
RIGHT = ("ok", "does not fit")  # verdicts
CHECKS = ("kernels", "tests", "other tests", "memcheck", "racecheck", "synccheck")


def trusted(result: Row) -> bool:
    """Returns whether tests/test_cuda.py, memcheck and all kernels passed on a GPU, and something ran."""
    tests, memcheck, kernels = (result.get(part, {}) for part in ("tests", "memcheck", "kernels"))
    complete = tests.get("passed", 0) > 0 and tests.get("failed") == tests.get("unfinished") == 0
    checked = memcheck.get("ok", 0) > 0 and memcheck.get("errors") == memcheck.get("wrong") == 0
    return not result["rehearsal"] and complete and checked and not kernels.get("wrong", 0)


def table(page: str) -> str:
    """Returns the page's predictions, as they stand there."""
    after = (DOCS / page).read_text().split("\n## What a run must confirm\n")[1]
    return re.search(r"(?:^\|.*\n)+", after, re.MULTILINE)[0]


def predictions() -> Iterator[tuple[str, str, str]]:
    """Yields a row's name, the quantity, and the predicted range."""
    for page in PAGES:
        for line in table(page).splitlines()[2:]:
            yield tuple(cell.strip() for cell in line.strip("|").split("|")[:3])


def limits(text: str) -> tuple[float, float]:
    """Returns the ends of a range: 32–40, at least 442, at most 0.4."""
    low, high = (float(n) for n in (re.findall(r"\d+(?:\.\d+)?", text) * 2)[:2])
    return (low, math.inf) if "at least" in text else (-math.inf, high) if "at most" in text else (low, high)


def value(row: Row, quantity: str) -> float | None:
    """Returns a median in microseconds, as of "cuda µs", or a number of the row."""
    if quantity.endswith(" µs"):
        return row.get("us", {}).get(quantity.removesuffix(" µs"), [None, None])[1]
    return row.get(quantity)


def compared(rows: dict[str, Row]) -> Iterator[str]:
    """Yields a line for each prediction."""
    for name, quantity, text in predictions():
        measured, (low, high) = value(rows.get(name, {}), quantity), limits(text)
        if measured is None:
            yield f"{name} | {quantity}: predicted {text}, not measured"
        else:
            how = "below" if measured < low else "above" if measured > high else "as predicted"
            yield f"{name} | {quantity}: {measured:.4g}, predicted {text}: {how}"


def wrong(row: Row) -> bool:
    return row.get("verdict", "ok") not in RIGHT or "error" in row or "left out" in row


def summary(result: Row) -> str:
    """Returns what a run prints at its end."""
    lines = ["", *compared({row["name"]: row for row in result["rows"]}), "", f"trusted: {trusted(result)}"]
    lines += [f"{part}: {result[part]}" for part in CHECKS if part in result]
    bad = [row for row in result["rows"] if wrong(row)]
    lines.append(f"{len(bad)} rows are wrong or failed")
    for row in bad[:30]:
        why = row.get("error", row.get("left out", row.get("verdict")))
        lines.append(f"  {row['part']} | {row['name']}: {why}"[:200])
    return "\n".join(lines)
