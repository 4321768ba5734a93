"""Write docs/threads.md: how the forward epilogue's work falls to 1 to 64 threads, by counting.

    python bench/threads.py

No clock is involved. The bands are those of csrc/cpu/geometry.h, for NCHW float32, ReLU, LRN and 3x3
pooling with stride 2.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

PATH = Path(__file__).parents[1] / "docs" / "threads.md"
THREADS = (1, 2, 4, 8, 16, 32, 64)
SHAPES = ((32, 96, 55, 55), (32, 256, 27, 27), (1, 96, 55, 55), (1, 256, 27, 27))
BUDGET, RING = 128 * 1024, 5  # kPlanesBudget of csrc/cpu/planes.h; channels held for an LRN of 5
GRAIN = 32768  # _GRAIN of fastcnn/backends/cpu.py

HEADER = """# The epilogue on many threads, on paper

A task is a band of pooled rows of one image, all its channels: as few bands as give every thread the same
number, so that batch 1 occupies them too. Tasks share nothing but the input rows that two bands' windows
both look at: these are read, and their LRN is computed, twice. Counted, not timed, for ReLU, LRN over 5
channels and 3×3 pooling with stride 2, float32, NCHW, by `python bench/threads.py`. No more threads are
woken than one, and another for each 32,768 values, so one image has no use for many:

- rows: pooled rows in a task;
- read: bytes read over the input's size, which is also the LRN's arithmetic over what it must be;
- most: bytes that the busiest thread reads and writes, and its share over an equal one.

Equal bits for 1, 2, 4 and 8 threads are tested (`tests/test_ops.py`). Timed here were 1 and 2 threads alone.
"""


class Work(NamedTuple):
    threads: int  # those that are woken
    rows: int
    tasks: int
    read: float
    most: int
    imbalance: float


def work(shape: tuple[int, int, int, int], threads: int) -> Work:
    n, c, h, w = shape
    pooled_h, pooled_w = (h - 3) // 2 + 1, (w - 3) // 2 + 1
    most_rows = (BUDGET // ((RING + 4) * 4 * w) - 3) // 2 + 1
    threads = min(threads, 1 + n * c * h * w // GRAIN)
    bands = threads // math.gcd(n, threads)
    rows = min(-(-pooled_h // bands), max(most_rows, 1))
    starts = range(0, pooled_h, rows)
    ends = [min(start + rows, pooled_h) for start in starts]
    counts = [end - start for start, end in zip(starts, ends, strict=True)] * n
    moved = [4 * c * ((2 * r + 1) * w + r * pooled_w) for r in counts]
    share = [0] * threads
    each, extra = divmod(len(counts), threads)  # OpenMP's static schedule
    at = 0
    for thread in range(threads):
        size = each + (thread < extra)
        share[thread] = sum(moved[at : at + size])
        at += size
    read = sum((2 * r + 1) for r in counts) / (n * (2 * pooled_h + 1))
    return Work(threads, rows, len(counts), read, max(share), max(share) * threads / sum(share))


def main() -> None:
    lines = [HEADER]
    for shape in SHAPES:
        lines += [
            f"## {list(shape)}\n",
            "| threads | woken | tasks | rows | read | most, MB | over an equal share |",
            "|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for threads in THREADS:
            k = work(shape, threads)
            counts = f"{threads} | {k.threads} | {k.tasks} | {k.rows} | {k.read:.2f}"
            lines.append(f"| {counts} | {k.most / 1e6:.2f} | {k.imbalance:.2f} |")
        lines.append("")
    PATH.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
