"""Reads what ncu, compute-sanitizer and pytest print."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram %",
    "dram__bytes_read.sum": "bytes read",
    "dram__bytes_write.sum": "bytes written",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy %",
    "launch__registers_per_thread": "registers",
}
KINDS = {"passed": ("PASSED", "XFAIL"), "failed": ("FAILED", "ERROR", "XPASS"), "skipped": ("SKIPPED",)}
VERDICT = "|".join(word for words in KINDS.values() for word in words)
TEST = re.compile(rf"(?:\[gw\d+\] \[ *\d+%\] ({VERDICT}) )?(tests/\S+::.*?)(?: ({VERDICT})\b.*)?$")


def sanitizer_errors(text: str) -> int | None:
    """Returns the errors that a sanitizer counted in all its processes; None if it was ended before that."""
    found = re.findall(r"=+ (?:ERROR SUMMARY: |RACECHECK SUMMARY: .*\()(\d+) error", text)
    return sum(map(int, found)) if found else None


def ncu_rows(lines: list[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields each kernel's number and name, and its METRICS."""
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    for row in csv.DictReader(line for line in lines[start:] if line.startswith('"')):
        if row["ID"].isdigit():  # the row of units has none
            values = {name: float(row[m].replace(",", "")) for m, name in METRICS.items() if row.get(m)}
            yield f"{row['ID']} {row['Kernel Name'][:100]}", values


class Tests:
    """Counts verdicts from the lines of ``pytest -v``, with xdist or without, as they come."""

    def __init__(self) -> None:
        self.collected, self.verdicts = 0, {}

    def read(self, line: str) -> str | None:
        """Returns the test's name if the line says that it failed."""
        if found := re.search(r"collected (\d+) item|\[(\d+) items\]", line):
            self.collected = int(found[1] or found[2])
        found = TEST.match(line.strip())
        if found is None or not (word := found[1] or found[3]):
            return None
        self.verdicts[found[2]] = word
        return found[2] if word in KINDS["failed"] else None

    def counts(self) -> dict[str, int]:
        counted = {kind: sum(v in words for v in self.verdicts.values()) for kind, words in KINDS.items()}
        return counted | {"unfinished": max(0, self.collected - len(self.verdicts))}
