"""What bench/choices.py measured, as the tables of docs/cpu.md: choices beside what they replaced."""

from __future__ import annotations

from collections.abc import Iterator

from report_cpu import machine, milliseconds, times


def table(rows: list[dict]) -> Iterator[str]:
    yield "| | replaced | by | ms before | ms since | times as fast | quartiles | |"
    yield "|---|---|---|--:|--:|--:|--:|---|"
    for row in rows:
        before, since = (fine(1e3 * row["seconds"][side]["median"]) for side in ("replaced", "by"))
        low, high = (times(row["times"][quartile]) for quartile in ("low", "high"))
        yield (
            f"| {row['case']} | {row['replaced']} | {row['by']} | {before} | {since} "
            f"| {times(row['times']['median'])} | {low}–{high} | {row.get('commit', '')} |"
        )


def fine(ms: float) -> str:
    return milliseconds(ms) if ms >= 0.1 else f"{ms:.4f}"


def parts(rows: dict[str, dict]) -> Iterator[str]:
    beside = list(next(iter(rows.values()))["seconds"])[-1]
    yield f"| MB at a time | ms | over that of {beside} | quartiles |"
    yield "|--:|--:|--:|--:|"
    for megabytes, row in rows.items():
        ms = milliseconds(1e3 * row["seconds"][megabytes]["median"])
        low, high = (times(row["times"][quartile]) for quartile in ("low", "high"))
        yield f"| {megabytes} | {ms} | {times(row['times']['median'])} | {low}–{high} |"


def section(data: dict) -> str:
    introduction = f"""By `make choices` on {machine(data)},
each beside what it replaced, in turns, over [32, 96, 55, 55] in float32 unless named. Those with a commit are
built from the history, with it and without; what came later is in neither.
"""
    rows = [*data["history"], *data["pages"].values()]
    block = (
        "\nAlexNet's first block on 32 images, by how much of the convolution's 37 MB is made at a time:\n"
    )
    return "\n".join([introduction, *table(rows), block, *parts(data["parts"])])
