"""Did fastcnn become slower? Two files of `make bench-cpu`, or of `python -m fastcnn bench --save`.

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
from typing import Any

SLOWER = 0.05
AGAIN = "fastcnn again"  # fastcnn's own second timing
Quartiles = dict[str, float]  # "low", "median" and "high", seconds
Benchmarks = dict[str, dict[str, Quartiles]]  # by name and contender
EXACTLY = ("cpu family", "cpu model")  # which a processor's name may not say


def read(path: Path) -> tuple[Benchmarks, dict[str, Any]]:
    """Returns the times, and what the machine was.

    Raises:
        ValueError: the file isn't there, or is another kind of file.
    """
    try:
        file = json.loads(path.read_text())
        records = file["cases"] if "cases" in file else [b["extra_info"] for b in file["benchmarks"]]
        found = {record["name"]: record["seconds"] for record in records}
        quartiles = [each for seconds in found.values() for each in seconds.values()]
        if not all(0 < each[q] < math.inf for each in quartiles for q in ("low", "median", "high")):
            raise ValueError("no times")
        return found, flat(file.get("machine_info", {}))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a file that make bench-cpu or fastcnn bench writes") from None


def flat(info: dict[str, Any]) -> dict[str, Any]:
    """Returns what is in a dict within, as the versions are, beside the rest."""
    found: dict[str, Any] = {}
    for name, value in info.items():
        found |= value if isinstance(value, dict) else {name: value}
    return found


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name in old | new:
        was, now = (machine.get(name, "none") for machine in (old, new))
        if was != now:
            yield f"differs: {name} {was}, now {now}"
    if not any(name in machine for name in EXACTLY for machine in (old, new)):
        yield "unknown: whether the processors are the same, since neither file names family and model"


def drift(old: Benchmarks, new: Benchmarks) -> float:
    """Returns eager's new time over its old one, the median over the benchmarks that both have.

    Raises:
        ValueError: they have none.
    """
    both = [name for name in old if "eager" in old[name] and "eager" in new.get(name, {})]
    if not both:
        raise ValueError("the files have no benchmark of eager torch in common")
    return statistics.median(new[n]["eager"]["median"] / old[n]["eager"]["median"] for n in both)


def ours(found: Benchmarks) -> dict[str, Quartiles]:
    """Returns fastcnn's times, by benchmark and contender."""
    named = ((f"{name} {who}", who, each) for name, of in found.items() for who, each in of.items())
    return {key: each for key, who, each in named if who.startswith("fastcnn") and who != AGAIN}


def became_slower(old: Quartiles, new: Quartiles, drift: float) -> bool:
    longer = new["median"] / old["median"] / drift > 1 + SLOWER
    return longer and new["low"] / drift > old["high"]


def only(one: Benchmarks, other: Benchmarks) -> Iterator[str]:
    """Yields benchmarks that the other lacks, and fastcnn's contenders that it lacks in the rest."""
    yield from (name for name in one if name not in other)
    yield from ours({name: of for name, of in one.items() if name in other}).keys() - ours(other).keys()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    args = parser.parse_args()
    try:
        (old, was), (new, now) = read(args.old), read(args.new)
        moved = drift(old, new)
    except ValueError as error:
        parser.error(str(error))
    before, after = ours(old), ours(new)
    both = [name for name in before if name in after]
    if not both:
        parser.error("no time of fastcnn's is in both files")
    for line in differences(was, now):
        print(line)
    print(f"eager torch takes {moved:.2f} times as long as it did; fastcnn's times over that:")
    print(f"{'old, ms':>10} {'new, ms':>10} {'times':>6}")
    slower = 0
    for name in both:
        a, b, is_slower = before[name], after[name], became_slower(before[name], after[name], moved)
        slower += is_slower
        times = b["median"] / a["median"] / moved
        told = "SLOWER  " * is_slower + name
        print(f"{1e3 * a['median']:10.3f} {1e3 * b['median']:10.3f} {times:6.2f}  {told}")
    for where, names in (("old", only(old, new)), ("new", only(new, old))):
        for name in names:
            print(f"only in the {where} file: {name}")
    print(f"{slower} of {len(both)} slower")
    return int(slower > 0)


if __name__ == "__main__":
    sys.exit(main())
