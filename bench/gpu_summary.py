"""Reads tools' outputs; says what a run measured beside what was predicted, and what that decides."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ("cuda.md", "triton.md")
METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram %",
    "dram__bytes_read.sum": "bytes read",
    "dram__bytes_write.sum": "bytes written",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy %",
    "launch__registers_per_thread": "registers",
}
CHOICES = {  # what a row decides among: the fastest
    "space to depth": ("channels_last", "space to depth"),
    "kernels": ("cuda", "general"),
    "backend": ("cuda", "triton", "plain"),
    "block": ("whole", "space to depth, whole", "triton", "plain"),
    "groups": ("one call", "a call a group"),
    "fuse": ("fused", "plain"),
}


def sanitizer_errors(text: str) -> int | None:
    """A sanitizer's own count, in all its processes; None where it was ended before it told."""
    found = re.findall(r"=+ (?:ERROR SUMMARY: |RACECHECK SUMMARY: .*\()(\d+) error", text)
    return sum(map(int, found)) if found else None


def ncu_rows(lines: list[str]) -> Iterator[tuple[str, Row]]:
    """Each kernel, and what was counted of it."""
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    for row in csv.DictReader(line for line in lines[start:] if line.startswith('"')):
        if (row["ID"] or "").isdigit():  # not the row of units
            counted = {told: row[name].replace(",", "") for name, told in METRICS.items() if row.get(name)}
            yield f"{row['ID']} {row['Kernel Name'][:100]}", {k: float(v) for k, v in counted.items()}


class Tests:
    """What became of each test, from the lines of `pytest -v` as they come, of xdist's workers too."""

    def __init__(self) -> None:
        self.collected, self.verdicts = 0, {}

    def read(self, line: str) -> str | None:
        """Returns the test's name if it failed."""
        if found := re.search(r"collected (\d+) item|\[(\d+) items\]", line):
            self.collected = int(found[1] or found[2])
        words = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"
        found = re.match(
            rf"(?:\[gw\d+\] \[ *\d+%\] ({words}) )?(tests/\S+::.*?)(?: ({words})\b.*)?$", line.strip()
        )
        if found is None or not (word := found[1] or found[3]):
            return None
        self.verdicts[found[2]] = word
        return found[2] if word in ("FAILED", "ERROR") else None

    def counts(self) -> dict[str, int]:
        kinds = {
            "passed": ("PASSED", "XFAIL"),
            "failed": ("FAILED", "ERROR", "XPASS"),
            "skipped": ("SKIPPED",),
        }
        counted = {kind: sum(v in words for v in self.verdicts.values()) for kind, words in kinds.items()}
        return counted | {"unfinished": max(0, self.collected - len(self.verdicts))}


def trusted(result: Row) -> bool:
    """Whether all of tests/test_cuda.py and memcheck passed on a GPU: no failure, and something ran."""
    tests, memcheck, kernels = (result.get(part, {}) for part in ("tests", "memcheck", "kernels"))
    complete = tests.get("passed", 0) > 0 and tests.get("failed") == tests.get("unfinished") == 0
    checked = memcheck.get("ok", 0) > 0 and memcheck.get("errors") == memcheck.get("wrong") == 0
    return not result["rehearsal"] and complete and checked and not kernels.get("wrong", 0)


def table(page: str) -> str:
    """The page's predictions, as they stand there."""
    after = (DOCS / page).read_text().split("\n## What a run must confirm\n")[1]
    return re.search(r"(?:^\|.*\n)+", after, re.MULTILINE)[0]


def predictions() -> Iterator[tuple[str, str, str]]:
    """Row, quantity, and range of each."""
    for page in PAGES:
        for line in table(page).splitlines()[2:]:
            yield tuple(cell.strip() for cell in line.strip("|").split("|")[:3])


def limits(told: str) -> tuple[float, float]:
    """Of a range: 32–40, at least 442, at most 0.4."""
    low, high = (float(n) for n in (re.findall(r"\d+(?:\.\d+)?", told) * 2)[:2])
    return (low, math.inf) if "at least" in told else (-math.inf, high) if "at most" in told else (low, high)


def value(row: Row, quantity: str) -> float | None:
    """A median in microseconds, as of "cuda µs", or a number of the row."""
    if quantity.endswith(" µs"):
        return row.get("us", {}).get(quantity.removesuffix(" µs"), [None, None])[1]
    return row.get(quantity)


def compared(rows: dict[str, Row]) -> Iterator[str]:
    for name, quantity, told in predictions():
        measured, (low, high) = value(rows.get(name, {}), quantity), limits(told)
        if measured is None:
            yield f"{name} | {quantity}: predicted {told}, not measured"
        else:
            how = "below" if measured < low else "above" if measured > high else "as predicted"
            yield f"{name} | {quantity}: {measured:.4g}, predicted {told}: {how}"


def decisions(rows: dict[str, Row]) -> Iterator[str]:
    """The fastest of each choice, row by row; "as" where quartiles overlap."""
    for name, row in rows.items():
        for question, names in CHOICES.items():
            us = {who: row["us"][who] for who in names if who in row.get("us", {})}
            if names[0] in us and len(us) > 1:
                best, *others = sorted(us, key=lambda who: us[who][1])
                near = [who for who in others if us[who][0] <= us[best][2]]
                times = ", ".join(f"{who} {us[who][1]:.4g}" for who in us)
                yield f"{name} | {question}: {best}" + "".join(f" as {w}" for w in near) + f" ({times} µs)"


def summary(result: Row) -> str:
    rows = {row["name"]: row for row in result["rows"]}
    parts = ("kernels", "tests", "other tests", "memcheck", "racecheck", "initcheck", "synccheck")
    lines = ["", "measured beside predicted", *compared(rows), "", "what this decides", *decisions(rows)]
    lines += ["", f"trusted: {trusted(result)}", *(f"{p}: {result[p]}" for p in parts if p in result)]
    right = ("ok", "does not fit")
    wrong = [
        f"  {r['part']} | {r['name']}: {r.get('verdict', '')} {r.get('error', r.get('left out', ''))}"
        for r in result["rows"]
        if r.get("verdict", "ok") not in right or "error" in r or "left out" in r
    ]
    return "\n".join([*lines, f"{len(wrong)} rows are wrong or failed", *(line[:200] for line in wrong[:30])])
