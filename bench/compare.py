"""Did fastcnn become slower? Two files that `make bench-cpu` wrote, beside each other.

    python bench/compare.py OLD NEW

A machine that is slower as a whole is no regression: fastcnn's times are taken over how eager torch's moved
between the files, the median over all benchmarks. Slower is what then takes over 5 % longer and has its lower
quartile beyond the old upper one. The exit status is 1 if anything is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SLOWER = 0.05
Quartiles = dict[str, float]  # "low", "median" and "high", seconds


class Row(NamedTuple):
    """Of one of fastcnn's contenders in a benchmark; times: new over old."""

    name: str
    old: Quartiles
    new: Quartiles
    drift: float  # how much the machine slowed down

    @property
    def times(self) -> float:
        return self.new["median"] / self.old["median"] / self.drift

    @property
    def slower(self) -> bool:
        return self.times > 1 + SLOWER and self.new["low"] / self.drift > self.old["high"]

    def __str__(self) -> str:
        old, new = (1e3 * side["median"] for side in (self.old, self.new))
        return f"{old:10.3f} {new:10.3f} {self.times:6.2f}  {'SLOWER  ' * self.slower}{self.name}"


def read(path: Path) -> dict[str, dict[str, Quartiles]]:
    """Quartiles by benchmark and contender.

    Raises:
        ValueError: the file isn't there, or is another kind of file.
    """
    try:
        benchmarks = json.loads(path.read_text())["benchmarks"]
        found = {b["name"]: b["extra_info"]["seconds"] for b in benchmarks}
        if not all({"low", "median", "high"} <= of.keys() for s in found.values() for of in s.values()):
            raise KeyError("quartiles")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a file that make bench-cpu writes") from None
    return found


def drift(old: dict[str, dict[str, Quartiles]], new: dict[str, dict[str, Quartiles]]) -> float:
    """Eager's new time over its old one, the median over the benchmarks that both have.

    Raises:
        ValueError: they have none.
    """
    both = [name for name in old if "eager" in old[name] and "eager" in new.get(name, {})]
    if not both:
        raise ValueError("the files have no benchmark of eager torch in common")
    return statistics.median(new[n]["eager"]["median"] / old[n]["eager"]["median"] for n in both)


def rows(
    old: dict[str, dict[str, Quartiles]], new: dict[str, dict[str, Quartiles]], drift: float
) -> Iterator[Row]:
    for name in old:
        for who in old[name]:
            if who.startswith("fastcnn") and who in new.get(name, {}):
                yield Row(f"{name} {who}", old[name][who], new[name][who], drift)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    args = parser.parse_args()
    try:
        old, new = read(args.old), read(args.new)
        moved = drift(old, new)
    except ValueError as error:
        parser.error(str(error))
    print(f"eager torch takes {moved:.2f} times as long as it did; fastcnn's times over that:")
    print(f"{'old, ms':>10} {'new, ms':>10} {'times':>6}")
    compared = list(rows(old, new, moved))
    for row in compared:
        print(row)
    for names, where in ((old.keys() - new.keys(), "old"), (new.keys() - old.keys(), "new")):
        for name in sorted(names):
            print(f"only in the {where} file: {name}")
    slower = sum(row.slower for row in compared)
    print(f"{slower} of {len(compared)} slower")
    return int(slower > 0)


if __name__ == "__main__":
    sys.exit(main())
