"""Writes the tables of docs/cuda_resources.md: what the compiled CUDA kernels need, read without a GPU.

python bench/resources.py [--check]
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

from pages import marked, table
from sass import BYTES, INSTRUCTIONS, accesses, cuobjdump, in_flight, instructions, run, turns

from fastcnn import _native

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cuda_resources.md"
READ = 90  # the architecture whose instructions are read
DTYPES = {"__nv_bfloat16": 2, "float": 4}  # bytes
WORDS = {"__nv_bfloat16": "bfloat16", "float": "float32", "Pixels": "channels_last", "Planes": "NCHW"}
WORDS |= {"unsigned short": "2 bytes", "unsigned int": "4 bytes"}
OPTIONS = {  # what a kernel's template arguments say, after the first, which is its dtype
    "each_output": ("{}", "LRN", "pool {}", "training"),
    "normalise_then_pool": ("{}", "training"),
    "each_square": ("{}", "LRN", "pool {}", "pool first"),
    "squares": ("side {}", "channels_last"),
}
INPUTS, OUTPUTS = 128 * 96 * 55 * 55, 128 * 96 * 27 * 27  # values, before and after pooling
COLUMNS = ["stages", "kernel", "MB", "µs to move", "instructions a value", "µs to issue", "of copy rate"]
FLOORS = (  # kernel, its options; what it moves: values as the input has, as the output has, and places
    ("relu; inference", "each_output", "false 0 false", 2, 0, 0),
    ("relu, lrn; inference", "each_output", "true 0 false", 2, 0, 0),
    ("relu, pool 3/2; inference", "each_output", "false 3 false", 1, 1, 0),
    ("relu, pool 3/2; training", "each_output", "false 3 true", 1, 1, 1),
    ("relu, lrn, pool 3/2; inference", "normalise_then_pool", "false", 1, 1, 0),
    ("relu, lrn, pool 3/2; training", "normalise_then_pool", "true", 1, 1, 1),
    ("relu, lrn, pool 3/2; backward", "each_square", "true 3 false", 2, 1, 1),
)


class Kernel(NamedTuple):
    name: str
    arguments: tuple[str, ...]  # of the template

    def __str__(self) -> str:
        dtype, *rest = (WORDS.get(word, word) for word in self.arguments)
        options = zip(OPTIONS.get(self.name, ()), rest, strict=True)
        words = [dtype, *(form.format(word) for form, word in options if word not in ("false", "0"))]
        return f"`{self.name}` {', '.join(words)}"


Needs = dict[int, dict[str, int]]  # by architecture, how much of each resource
Turns = list[list[str]]  # the instructions of one turn of each loop


def usage(library: str) -> list[tuple[str, int, dict[str, int]]]:
    """Returns a symbol, an architecture, and how much its kernel needs there of each resource."""
    return [
        (symbol, int(part.split()[0]), {name: int(n) for name, n in re.findall(r"(\w+):(\d+)", counts)})
        for part in cuobjdump("-res-usage", library).split("arch = sm_")[1:]
        for symbol, counts in re.findall(r"Function (\w+):\s+(.*)", part)
    ]


def kernels(library: str) -> tuple[dict[str, Kernel], dict[Kernel, Needs]]:
    """Returns the kernels by symbol, and what they need. Exits where one uses local memory."""
    used = usage(library)
    symbols = sorted({symbol for symbol, _, _ in used})
    names = dict(zip(symbols, run("c++filt", input="\n".join(symbols)).splitlines(), strict=True))
    if spilling := [f"sm_{a}: {names[symbol]}" for symbol, a, n in used if n["LOCAL"] or n["STACK"]]:
        sys.exit("\n  ".join(["local memory is used by", *spilling]))
    found, needs = {}, {}
    for symbol, name in names.items():
        if match := re.search(r"(general::)?\(anonymous namespace\)::(\w+)<(.*?)>\(", name):
            arguments = (word.split("::")[-1] for word in match[3].split(", "))
            found[symbol] = Kernel((match[1] or "") + match[2], tuple(arguments))
            needs[found[symbol]] = {a: counts for other, a, counts in used if other == symbol}
    return found, needs


def loops(library: str, kernels: dict[str, Kernel]) -> dict[Kernel, Turns]:
    """Returns the loops of the kernels that the page lists."""
    found = {}
    for function in cuobjdump("-sass", "-arch", f"sm_{READ}", library).split("Function : ")[1:]:
        kernel = kernels.get(function.split()[0])
        if kernel and kernel.arguments[0] in WORDS:
            found[kernel] = turns(instructions(function))
    return found


def row(kernel: Kernel, turns: Turns, needs: Needs) -> list[str]:
    body = [text for turn in turns for text in turn]
    counts = [*(needs[a]["REG"] for a in sorted(needs)), needs[READ]["SHARED"], max(map(in_flight, turns))]
    return [str(kernel), accesses(body, "LDG"), accesses(body, "STG"), *map(str, counts)]


def floor(
    found: dict[Kernel, Turns], dtype: str, stages: str, name: str, options: str, *moves: int
) -> list[str]:
    """Returns how long a kernel takes at least; moves: inputs, outputs and places."""
    (inputs, outputs, places), size = moves, DTYPES[dtype]
    kernel = Kernel(name, (dtype, "Pixels", *options.split()))
    tiles = 3 if size == 2 and not places else 4
    runs = {  # of each loop, for a value of the input
        "each_output": [OUTPUTS / INPUTS if outputs else 1],
        "normalise_then_pool": [((2 * 27 + tiles) / 55) ** 2, OUTPUTS / INPUTS],
        "each_square": [1 / 4],
    }[name]
    # Other loops than these run once a block: the sums of the bias's gradient.
    each = sum(len(turn) * times for turn, times in zip(found[kernel], runs, strict=False)) / (16 // size)
    moved = size * (inputs * INPUTS + outputs * OUTPUTS) + places * OUTPUTS
    move, issue = moved / BYTES, each * INPUTS / 32 / INSTRUCTIONS
    counts = (f"{count:.0f}" for count in (moved / 1e6, 1e6 * move, each, 1e6 * issue))
    return [stages, str(kernel), *counts, f"{move / max(move, issue):.2f}"]


def built() -> str:
    """Returns the compiler and the architectures of the extension's CUDA kernels."""
    return ",".join(str(_native.load().build_info()["cuda"]).split(",")[:2])


def page() -> str:
    """Returns the page as it should be."""
    library = _native.load().__file__
    named, needs = kernels(library)
    found = loops(library, named)
    architectures = (f"sm_{a}" for a in sorted(next(iter(needs.values()))))
    header = ["kernel", "loads", "stores", *architectures, "shared", "in flight"]
    return marked(
        PAGE.read_text(),
        compiler=f"By nvcc {built()}.",
        kernels=table(header, [row(k, found[k], needs[k]) for k in sorted(found)], words=3),
        floors=table(COLUMNS, [floor(found, dtype, *case) for dtype in DTYPES for case in FLOORS], words=2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the page differs")
    check = parser.parse_args().check
    if f"sm_{READ}" not in built():
        sys.exit(f"the extension must hold sm_{READ}; its CUDA side is {built()}")
    text = page()
    if not check:
        PAGE.write_text(text)
    elif PAGE.read_text() != text:
        sys.exit(f"{PAGE.name} is out of date: run make resources")


if __name__ == "__main__":
    main()
