"""Did fastcnn become slower? Two files that `make bench-cpu` wrote, beside each other.

    python bench/compare.py OLD NEW

A machine that is slower as a whole is no regression: fastcnn's times are taken over how eager torch's moved
between the files, the median over all benchmarks. Slower is what then takes over 5 % longer and has its lower
quartile beyond the old upper one. The exit status is 1 if anything is. Named too: what differs between the
machines and versions, and what only one file has.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SLOWER = 0.05
AGAIN = "fastcnn again"  # fastcnn's own second timing
Quartiles = dict[str, float]  # "low", "median" and "high", seconds
Benchmarks = dict[str, dict[str, Quartiles]]  # by name and contender


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


def flat(info: dict[str, Any]) -> dict[str, Any]:
    """What is in a dict within, as the versions are, beside the rest."""
    found: dict[str, Any] = {}
    for name, value in info.items():
        found |= value if isinstance(value, dict) else {name: value}
    return found


def read(path: Path) -> tuple[Benchmarks, dict[str, Any]]:
    """The times, and what the machine was.

    Raises:
        ValueError: the file isn't there, or is another kind of file.
    """
    try:
        file = json.loads(path.read_text())
        found = {b["name"]: b["extra_info"]["seconds"] for b in file["benchmarks"]}
        quartiles = [of for seconds in found.values() for of in seconds.values()]
        if not all(0 < of[q] < math.inf for of in quartiles for q in ("low", "median", "high")):
            raise ValueError("no times")
        return found, flat(file.get("machine_info", {}))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a file that make bench-cpu writes") from None


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name in old | new:
        was, now = (machine.get(name, "none") for machine in (old, new))
        if was != now:
            yield f"{name} {was}, now {now}"


def drift(old: Benchmarks, new: Benchmarks) -> float:
    """Eager's new time over its old one, the median over the benchmarks that both have.

    Raises:
        ValueError: they have none.
    """
    both = [name for name in old if "eager" in old[name] and "eager" in new.get(name, {})]
    if not both:
        raise ValueError("the files have no benchmark of eager torch in common")
    return statistics.median(new[n]["eager"]["median"] / old[n]["eager"]["median"] for n in both)


def ours(seconds: dict[str, Quartiles]) -> list[str]:
    return [who for who in seconds if who.startswith("fastcnn") and who != AGAIN]


def rows(old: Benchmarks, new: Benchmarks, drift: float) -> list[Row]:
    """One for each of fastcnn's contenders that both have.

    Raises:
        ValueError: they have none.
    """
    both = [(name, who) for name in old for who in ours(old[name]) if who in new.get(name, {})]
    if not both:
        raise ValueError("no time of fastcnn's is in both files")
    return [Row(f"{name} {who}", old[name][who], new[name][who], drift) for name, who in both]


def missing(one: Benchmarks, other: Benchmarks) -> Iterator[str]:
    """Benchmarks that the other lacks, and fastcnn's contenders that it lacks in the rest."""
    for name in one:
        if name not in other:
            yield name
        else:
            yield from (f"{name} {who}" for who in ours(one[name]) if who not in other[name])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    args = parser.parse_args()
    try:
        (old, was), (new, now) = read(args.old), read(args.new)
        moved = drift(old, new)
        compared = rows(old, new, moved)
    except ValueError as error:
        parser.error(str(error))
    for difference in differences(was, now):
        print(f"differs: {difference}")
    print(f"eager torch takes {moved:.2f} times as long as it did; fastcnn's times over that:")
    print(f"{'old, ms':>10} {'new, ms':>10} {'times':>6}")
    for row in compared:
        print(row)
    for where, names in (("old", missing(old, new)), ("new", missing(new, old))):
        for name in names:
            print(f"only in the {where} file: {name}")
    slower = sum(row.slower for row in compared)
    print(f"{slower} of {len(compared)} slower")
    return int(slower > 0)


if __name__ == "__main__":
    sys.exit(main())
