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
- **Loads and stores** are those of a thread's loop on sm_{read}, by their bytes, and how many there are for a
  value: of the output, in backward of the input's gradient, in `normalise_then_pool` of the input. Those that
  are there only for a window's overlap or an LRN's neighbours find their bytes in L1.

`Pixels` is channels_last, `Planes` NCHW. K: width of the pooling window, 0 for none. `squares` copies
elements of so many bytes; side 0 is any. The general kernels, one value a thread, are below.

"""


H100 = {"bytes": 3.35e12, "instructions": 132 * 4 * 32 * 1.755e9}  # a second: SXM's data sheet

FLOORS = """
## What an H100 needs at least, on paper

[128, 96, 55, 55], ReLU, LRN, 3/2 pooling, channels_last: the time to move what must be moved at 3.35 TB/s,
and the time to issue the loop's instructions, one a cycle on each of 528 schedulers at 1.755 GHz. A kernel
takes at least the larger; **none of it has been measured**. Instructions are those of `normalise_then_pool`'s
first loop, its tiles' overlap included, or of `each_square`'s. 27 rows of outputs are three tiles, or four
where the inputs of nine rows and columns don't fit in shared memory.

| kernel | MB | µs to move | instructions a value | µs to issue |
|---|--:|--:|--:|--:|
"""

HEAD = """\
| kernel | registers | static shared bytes | loads (a value) | stores (a value) |
|---|---|--:|---|---|
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
    """The instructions between each backward jump's target and the jump."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", code)
    rows = [(int(address, 16), text) for address, text in found]
    jumps = (
        (int(m[1], 16), at) for at, text in rows if (m := re.search(r"BRA\S* (?:\S+ )?0x([0-9a-f]+)", text))
    )
    spans = [(target, at) for target, at in jumps if target < at]
    return [[text for at, text in rows if first <= at <= last] for first, last in spans]


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
        body = [text for loop in loops(code[kernel]) for text in loop]
        cells = [
            str(kernel),
            " ".join(str(registers[kernel, a]) for a in ARCHITECTURES),
            str(shared[kernel]),
            words(accesses(body, "LDG"), kernel.values()),
            words(accesses(body, "STG"), kernel.values()),
        ]
        return f"| {' | '.join(cells)} |"

    order = sorted(code, key=lambda k: (k.name, k.arguments))
    text = INTRODUCTION.format(built=built(), read=READ) + HEAD

    def floor(kernel: Kernel, training: bool, overlap: float) -> str:
        size = 4 if kernel.arguments[0] == "float" else 2
        inputs, windows = 128 * 96 * 55 * 55, 128 * 96 * 27 * 27
        moved = size * (inputs + windows) + training * (size * inputs + windows)  # r, and offsets of a byte
        each = max(map(len, loops(code[kernel])[:1])) / kernel.values() * overlap
        times = moved / H100["bytes"], each * inputs / H100["instructions"]
        return f"| {kernel} | {moved / 1e6:.0f} | {1e6 * times[0]:.0f} | {each:.0f} | {1e6 * times[1]:.0f} |"

    for special in (True, False):
        text += "\n".join(row(k) for k in order if k.special == special) + "\n"
        text += f"\n{HEAD}" if special else ""
    text += FLOORS
    for dtype in ("__nv_bfloat16", "float"):
        for training in (False, True):
            tiled = Kernel("normalise_then_pool", (dtype, "Pixels", str(training).lower()))
            text += floor(tiled, training, overlap(3 if dtype != "float" and not training else 4)) + "\n"
        backward = Kernel("each_square", (dtype, "Pixels", "true", "3", "false"))
        text += floor(backward, True, 1) + "\n"
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
