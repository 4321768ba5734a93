"""Reads machine code of NVIDIA's GPUs, without a GPU: instructions, loops, accesses to memory."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

# Of an H100 SXM, a second, by its data sheet: warps' instructions, one a cycle on each of 528 schedulers.
INSTRUCTIONS = 132 * 4 * 1.755e9
BYTES = 3.35e12

Code = dict[int, str]  # instructions by address


def run(*command: str, input: str | None = None) -> str:
    return subprocess.run(command, input=input, capture_output=True, text=True, check=True).stdout


def cuobjdump(*arguments: str) -> str:
    """Returns what cuobjdump prints; the one in the PATH, or else Triton's."""
    spec = importlib.util.find_spec("triton")
    packages = spec.submodule_search_locations or () if spec else ()
    places = [str(Path(package) / "backends/nvidia/bin") for package in packages]
    tool = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=":".join(places))
    if tool is None:
        sys.exit("cuobjdump is needed, of CUDA or of triton's package, and neither is installed")
    return run(tool, *arguments)


def instructions(listing: str) -> Code:
    """Returns the instructions of a kernel, without the padding behind its end."""
    rows = ((int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+?)\s*;", listing))
    return {at: text for at, text in rows if text not in ("NOP", f"BRA 0x{at:x}")}


def jumps(code: Code) -> dict[int, int]:
    """Returns the target of each branch, by address; BSYNC's is where BSSY said."""
    found: dict[int, int] = {}
    meeting: dict[str, int] = {}
    for at, text in code.items():
        if match := re.search(r"\bBSSY\S* (B\d+), 0x([0-9a-f]+)", text):
            meeting[match[1]] = int(match[2], 16)
        elif match := re.search(r"\bBSYNC\S* (B\d+)", text):
            found[at] = meeting[match[1]]
        elif match := re.search(r"\bBRA\S* (?:\S+ )?0x([0-9a-f]+)", text):
            found[at] = int(match[1], 16)
    return found


def loops(code: Code) -> list[tuple[int, int]]:
    """Returns the first and the last address of each loop, outer loops before those inside."""
    found = [(target, at) for at, target in jumps(code).items() if target < at]
    return sorted(found, key=lambda loop: (loop[0], -loop[1]))


def turns(code: Code) -> list[list[str]]:
    """Returns the instructions of one turn of each outermost loop.

    They are those of the path with the most accesses to memory, and of such paths the shortest: a window is
    one inside the map, and what few threads do is left out.
    """
    found, end = [], -1
    for first, last in loops(code):
        if first > end:
            found.append(_path(code, first, last))
            end = last
    return found


def _path(code: Code, first: int, last: int) -> list[str]:
    targets, best = jumps(code), {last: (0, -1)}  # accesses, and minus the instructions, to the loop's end
    follow: dict[int, int] = {}
    inside = [at for at in code if first <= at <= last]
    for at, after in reversed(list(pairwise(inside))):
        ends = re.match(r"BRA\b|BSYNC|EXIT", code[at])
        nexts = [n for n in (None if ends else after, targets.get(at)) if n in best]
        if nexts:
            follow[at] = max(nexts, key=lambda n: best[n])
            accesses, others = best[follow[at]]
            best[at] = (accesses + bool(re.search(r"\b(LD|ST)[GS]\b", code[at])), others - 1)
    found = [first]
    while found[-1] != last:
        found.append(follow[found[-1]])
    return [code[at] for at in found]


def width(operation: str) -> int:
    """Returns how many bytes a thread loads or stores by it."""
    bits = re.search(r"\.[US]?(8|16|64|128)\b", operation)
    return int(bits[1]) // 8 if bits else 4


def accesses(turn: list[str], operation: str) -> str:
    """Returns how many loads (LDG) or stores (STG) there are of so many bytes."""
    found = re.findall(rf"\b{operation}\S*", "\n".join(turn))
    counts = sorted(Counter(map(width, found)).items(), reverse=True)
    return " + ".join(f"{n} × {bytes} B" for bytes, n in counts) or "none"


def in_flight(turn: list[str]) -> int:
    """Returns the most global loads that are under way before an instruction uses one's result."""
    waiting: list[set[int]] = []
    most = 0
    for text in turn * 2:  # what the end of a turn asks for, the next turn uses
        load = re.search(r"\b(LDG\S*) R(\d+)", text)
        used = {int(n) for n in re.findall(r"\bR(\d+)", text[load.end() :] if load else text)}
        waiting = [registers for registers in waiting if not registers & used]
        if load:
            waiting.append({int(load[2]) + i for i in range(max(1, width(load[1]) // 4))})
        most = max(most, len(waiting))
    return most
