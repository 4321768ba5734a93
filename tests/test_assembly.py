"""The hot loops are vector code, as the compiler left it: no calls, no division, whole registers."""

import platform
import re
import shutil
import subprocess

import pytest

from fastcnn import _native

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 instructions are looked for"),
    pytest.mark.skipif(not shutil.which("objdump"), reason="objdump is not on the PATH"),
    pytest.mark.skipif(_native.missing_reason() is not None, reason="no native extension"),
]

REGISTER = {"avx2": "ymm", "avx512": "zmm"}
FUNCTIONS = {  # the innermost loop's least arithmetic, in whole registers
    "normalise<float, 5, (fastcnn::Beta)0>": {"vf[n]?madd": 11, "vmulps": 2},
    "normalise_pixels<fastcnn::{isa}::F32, (fastcnn::Beta)0>": {"vf[n]?madd": 6, "vaddps": 3, "vmulps": 3},
    "gradient_terms<float, 5, (fastcnn::Beta)0>": {"vf[n]?madd": 17, "vmulps": 4},
    "gradient<float, 5>": {"vaddps": 4, "vf[n]?madd": 1},
}


@pytest.fixture(scope="module")
def disassembly():
    """Each function's instructions, as (address, text)."""
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", _native.load().__file__]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions, current = {}, None
    for line in text.splitlines():
        if header := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            current = functions.setdefault(header[1], [])
        elif current is not None and (row := re.match(r" *([0-9a-f]+):\t(.*)", line)):
            current.append((int(row[1], 16), row[2]))
    return functions


def loops(instructions):
    """Returns what lies between a backward jump's target and the jump."""
    place = {address: i for i, (address, _) in enumerate(instructions)}
    for i, (address, text) in enumerate(instructions):
        jump = re.match(r"j\w+ +([0-9a-f]+)", text)
        if jump and int(jump[1], 16) <= address and int(jump[1], 16) in place:
            yield [text for _, text in instructions[place[int(jump[1], 16)] : i]]


@pytest.mark.parametrize("isa", REGISTER)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_hot_loop_is_vector_code(disassembly, isa, function):
    name = f"fastcnn::{isa}::{function.format(isa=isa)}("
    bodies = [body for n, code in disassembly.items() if name in n for body in loops(code)]

    def has_it_all(body):
        whole = [i for i in body if REGISTER[isa] in i]
        counts = {op: sum(bool(re.match(op, i)) for i in whole) for op in FUNCTIONS[function]}
        return all(counts[op] >= least for op, least in FUNCTIONS[function].items())

    # The innermost, and of those the one with the near formula, which runs nearly always.
    hot = [body for body in bodies if has_it_all(body)]
    assert hot, f"no loop of {name} has {FUNCTIONS[function]} in {REGISTER[isa]}"
    shortest = min(hot, key=len)
    assert not [i for i in shortest if re.match(r"call|v(div|sqrt)", i)]
