"""What the compiled CUDA kernels need, read from the extension without a GPU: docs/cuda_resources.md.

    python bench/resources.py [--check]

Registers and local memory for every architecture; global loads and stores from sm_90's instructions.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from fastcnn import _native

TABLE = Path(__file__).resolve().parents[1] / "docs" / "cuda_resources.md"
ARCHITECTURES = (75, 80, 90, 100, 120)
READ = 90  # the architecture whose instructions are counted
BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}  # by an instruction's suffix, else 4

INTRODUCTION = """\
# What the CUDA kernels need

From the compiled code, by `make resources`; CI compares. By nvcc {built}.

- **Registers**, for each of those: a multiprocessor has 65,536; a block has 256 threads, of `add_parts` 128.
- **Local memory**: none anywhere, or the command fails: nothing spills.
- **In flight**: the most global loads under way, on sm_{read}, before an instruction uses the result of one.
- **Loads and stores** are those of a thread's loop on sm_{read}, by their bytes, and how many there are for a
  value: of the output, in backward of the input's gradient, in `normalise_then_pool` of the input. Those that
  are there only for a window's overlap or an LRN's neighbours find their bytes in L1.

`Pixels` is channels_last, `Planes` NCHW. K: width of the pooling window, 0 for none. `squares` copies
elements of so many bytes; side 0 is any. The general kernels, one value a thread, are below.

"""


INPUTS, WINDOWS = 128 * 96 * 55 * 55, 128 * 96 * 27 * 27  # of FLOORS' maps
H100 = {"bytes": 3.35e12, "instructions": 132 * 4 * 32 * 1.755e9}  # a second: SXM's data sheet

FLOORS = """
## What an H100 needs at least, on paper

[128, 96, 55, 55], channels_last; LRN of 5, pooling 3/2: the time to move what must be moved at 3.35 TB/s,
and the time to issue the instructions, one a cycle on each of 528 schedulers at 1.755 GHz. A kernel takes at
least the larger, and the share of copy rate is at most the first over it; **none of it has been measured**.
Instructions are those of the loop, or of both loops of `normalise_then_pool`, for a value of the input, with
the overlap of its tiles: 27 rows of outputs are three, or four where the inputs of nine rows and columns
don't fit in shared memory. Forward for training writes no r, as in a block.
[Triton's kernels by a like count](triton_resources.md).

| kernel | MB | µs to move | instructions a value | µs to issue | share of copy rate |
|---|--:|--:|--:|--:|--:|
"""

HEAD = """\
| kernel | registers | static shared bytes | in flight | loads (a value) | stores (a value) |
|---|---|--:|--:|---|---|
"""


class Kernel(NamedTuple):
    name: str
    arguments: tuple[str, ...]

    @property
    def special(self) -> bool:
        return len(self.arguments) > 1

    def values(self) -> int:
        """That a thread makes in one turn of its loop."""
        if not self.special:
            return 1
        dtype, layout, *rest = self.arguments
        if self.name == "squares":  # as csrc/cuda/space_to_depth.cu's Part has it
            side, size = int(layout), 2 * 2 ** ("short", "int", "long").index(dtype.split()[-1])
            return side * min(side, max(1, 16 // (side * size))) if side else 1
        lanes = 4 if (dtype, layout) == ("float", "Pixels") else 8
        return 4 * lanes if self.name == "each_square" and int(rest[1]) > 0 else lanes

    def __str__(self) -> str:
        dtype, *rest = self.arguments
        known = {"__half": "float16", "__nv_bfloat16": "bfloat16", "float": "float32"}
        known |= {"unsigned short": "2 bytes", "unsigned int": "4 bytes", "unsigned long": "8 bytes"}
        words = [known.get(dtype, dtype)]
        names = {
            "each_output": ("{}", "lrn: {}", "K: {}", "for training: {}"),
            "normalise_then_pool": ("{}", "for training: {}"),
            "each_square": ("{}", "lrn: {}", "K: {}", "pool first: {}"),
            "squares": ("side: {}", "channels_last: {}"),
        }.get(self.name, ())
        words += [form.format(word) for form, word in zip(names, rest, strict=False)]
        return f"`{self.name}` {', '.join(words)}"


def cuobjdump(*arguments: str, file: str | None = None) -> str:
    """What cuobjdump, from the PATH or else triton's own, says of a file, or of the extension."""
    spec = importlib.util.find_spec("triton")
    places = spec.submodule_search_locations or () if spec else ()
    brought = [Path(p) / "backends/nvidia/bin/cuobjdump" for p in places]
    tool = shutil.which("cuobjdump") or next((str(p) for p in brought if p.exists()), None)
    if tool is None:
        sys.exit("bench/resources.py needs cuobjdump, of CUDA or of triton's package, and found neither")
    return run(tool, *arguments, file or _native.load().__file__)


def run(*command: str, input: str | None = None) -> str:
    return subprocess.run(command, input=input, capture_output=True, text=True, check=True).stdout


def kernels(mangled: list[str]) -> dict[str, Kernel]:
    names = run("c++filt", input="\n".join(mangled)).splitlines()
    found = {}
    for symbol, name in zip(mangled, names, strict=True):
        match = re.search(r"\(anonymous namespace\)::(\w+)<(.*?)>\(", name)
        if match:
            words = match[2].replace("fastcnn::cuda::special::", "").split(", ")
            found[symbol] = Kernel(match[1], tuple(w.split("::")[-1] for w in words))
    return found


def usage() -> Iterator[tuple[int, str, dict[str, int]]]:
    """Architecture, symbol, and how much of each resource."""
    architecture = 0
    symbol = ""
    for line in cuobjdump("-res-usage").splitlines():
        if match := re.match(r"arch = sm_(\d+)", line.strip()):
            architecture = int(match[1])
        elif match := re.match(r"Function (\w+):", line.strip()):
            symbol = match[1]
        elif "REG:" in line:
            yield architecture, symbol, {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", line)}


def loops(code: str) -> list[list[str]]:
    """For each outermost loop, the instructions of the path with the most accesses, by the fewest.

    So a window is one inside the map, and what few threads do is left out.
    """
    rows = {int(at, 16): text for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", code)}
    jumps: dict[int, int] = {}
    meeting: dict[str, int] = {}
    for at, text in rows.items():
        if match := re.search(r"\bBSSY\S* (B\d+), 0x([0-9a-f]+)", text):
            meeting[match[1]] = int(match[2], 16)
        elif match := re.search(r"\bBSYNC\S* (B\d+)", text):
            jumps[at] = meeting[match[1]]
        elif match := re.search(r"\bBRA\S* (?:\S+ )?0x([0-9a-f]+)", text):
            jumps[at] = int(match[1], 16)
    spans = [(target, at) for at, target in jumps.items() if target < at]
    outer = (s for s in spans if not any(o != s and o[0] <= s[0] and s[1] <= o[1] for o in spans))
    return [path(rows, jumps, *span) for span in outer]


def path(rows: dict[int, str], jumps: dict[int, int], first: int, last: int) -> list[str]:
    best = {last: (0, -1)}  # accesses to memory, and minus the instructions, from here to the jump back
    follow: dict[int, int] = {}
    inside = [at for at in rows if first <= at <= last]
    for at, after in reversed(list(pairwise(inside))):
        nexts = [n for n in (after, jumps.get(at, 0)) if n > at and n in best]
        if after in nexts and re.match(r"BRA\b|BSYNC|EXIT", rows[at]):
            nexts.remove(after)
        if nexts:
            follow[at] = max(nexts, key=lambda n: best[n])
            accesses, others = best[follow[at]]
            best[at] = (accesses + bool(re.search(r"\b(LD|ST)[GS]\b", rows[at])), others - 1)
    at, found = first, [rows[first]]
    while at != last:
        at = follow[at]
        found.append(rows[at])
    return found


def in_flight(loop: list[str]) -> int:
    """The most global loads that are under way before an instruction uses one's result."""
    waiting: list[set[int]] = []
    most = 0
    for text in loop * 2:  # what the end of a turn asks for, the next turn uses
        load = re.search(r"\bLDG((?:\.\w+)*) R(\d+)", text)
        used = {int(n) for n in re.findall(r"\bR(\d+)", text[load.end() :] if load else text)}
        waiting = [registers for registers in waiting if not registers & used]
        if load:
            count = next((n for word, n in ((".128", 4), (".64", 2)) if word in load[1]), 1)
            waiting.append(set(range(int(load[2]), int(load[2]) + count)))
        most = max(most, len(waiting))
    return most


def accesses(instructions: list[str], operation: str) -> Counter[int]:
    """How many global loads or stores there are of so many bytes."""
    counts: Counter[int] = Counter()
    for text in instructions:
        if match := re.search(rf"\b{operation}((?:\.\w+)*)", text):
            widths = [BYTES[word] for word in match[1].split(".") if word in BYTES]
            counts[widths[0] if widths else 4] += 1
    return counts


def words(counts: Counter[int], values: int) -> str:
    if not counts:
        return "none"
    each = " + ".join(f"{n} × {width} B" for width, n in sorted(counts.items(), reverse=True))
    return f"{each} ({counts.total() / values:.2g})"


def table() -> str:
    used = list(usage())
    spilling = [(a, s) for a, s, u in used if u.get("LOCAL", 0) or u.get("STACK", 0)]
    named = kernels(sorted({symbol for _, symbol, _ in used}))
    if spilling:
        lines = [f"sm_{a}: {named.get(s, s)}" for a, s in spilling]
        sys.exit("local memory is used by\n  " + "\n  ".join(lines))
    functions = re.split(r"\n\s+Function : ", cuobjdump("-sass", "-arch", f"sm_{READ}"))[1:]
    code = {named[symbol]: body for symbol, body in (f.split("\n", 1) for f in functions) if symbol in named}
    registers = {(named[s], a): u["REG"] for a, s, u in used if s in named}
    shared = {named[s]: u["SHARED"] for a, s, u in used if s in named and a == READ}

    def row(kernel: Kernel) -> str:
        turns = loops(code[kernel])
        body = [text for loop in turns for text in loop]
        cells = [
            str(kernel),
            " ".join(str(registers[kernel, a]) for a in ARCHITECTURES),
            str(shared[kernel]),
            str(max(map(in_flight, turns))),
            words(accesses(body, "LDG"), kernel.values()),
            words(accesses(body, "STG"), kernel.values()),
        ]
        return f"| {' | '.join(cells)} |"

    order = sorted(code, key=lambda k: (k.name, k.arguments))
    text = INTRODUCTION.format(built=built(), read=READ) + HEAD

    def floor(kernel: Kernel, moved: float, overlap: float) -> str:
        first, *rest = map(len, loops(code[kernel]))
        pooling = rest[0] * WINDOWS / INPUTS if kernel.name == "normalise_then_pool" else 0
        each = (first * overlap + pooling) / kernel.values()
        move, issue = moved / H100["bytes"], each * INPUTS / H100["instructions"]
        cells = f"{moved / 1e6:.0f} | {1e6 * move:.0f} | {each:.0f} | {1e6 * issue:.0f}"
        return f"| {kernel} | {cells} | {move / max(move, issue):.2f} |\n"

    for special in (True, False):
        text += "\n".join(row(k) for k in order if k.special == special) + "\n"
        text += f"\n{HEAD}" if special else ""
    text += FLOORS
    for dtype, size in (("__nv_bfloat16", 2), ("float", 4)):
        for lrn in ("false", "true"):
            flat = Kernel("each_output", (dtype, "Pixels", lrn, "0", "false"))
            text += floor(flat, 2 * size * INPUTS, 1)
        for training in (False, True):
            moved = size * (INPUTS + WINDOWS) + training * WINDOWS  # offsets are of a byte
            pooling = Kernel("each_output", (dtype, "Pixels", "false", "3", str(training).lower()))
            text += floor(pooling, moved, WINDOWS / INPUTS)
            tiled = Kernel("normalise_then_pool", (dtype, "Pixels", str(training).lower()))
            text += floor(tiled, moved, overlap(3 if size == 2 and not training else 4))
        backward = Kernel("each_square", (dtype, "Pixels", "true", "3", "false"))
        text += floor(backward, size * (2 * INPUTS + WINDOWS) + WINDOWS, 1)
    return text


def overlap(tiles: int) -> float:
    """Inputs that so many tiles down and across read, over those of FLOORS' maps."""
    return ((2 * 27 + tiles) / 55) ** 2


def built() -> str:
    """The CUDA side's compiler and architectures, in the extension's own words."""
    return ",".join(str(_native.load().build_info()["cuda"]).split(",")[:2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the table is another")
    check = parser.parse_args().check
    wanted = " ".join(f"sm_{a}" for a in ARCHITECTURES)
    if wanted not in built():
        sys.exit(f"the extension must hold {wanted}; its CUDA side is {built()}")
    text = table()
    if not check:
        TABLE.write_text(text)
    elif TABLE.read_text() != text:
        print("docs/cuda_resources.md is out of date: run make resources", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
