"""Changes one expression of the CPU kernels at a time, and runs their tests: the rest of ``make mutants``.

All mutants are in one build, which is told by FASTCNN_MUTANT which of them to be.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mutants
import pybind11
import pytest

CPU = "csrc/cpu"
TESTS = ("epilogue", "strides", "written_outputs", "direct")
# By header: what stands there, the first time, and what it becomes.
EXPRESSIONS = {
    "maxima": {
        "COUNT ? COUNT : from.count": "(COUNT ? COUNT : from.count) - 1",
        "from.count == 9": "from.count >= 9",
        "from.count == 4": "from.count >= 4",
        "IntVec<A>{} + from.places[0]": "IntVec<A>{}",
        "beats<NANS>(v, best)": "v >= best",
        "std::min<int64_t>(lanes<A>, n)": "n",
        "COUNT ? COUNT : axis.count": "(COUNT ? COUNT : axis.count) - 1",
        "axis.stride == 2 && axis.count == 3": "axis.stride == 2",
        "Int<A>(top * width)": "Int<A>(0)",
        "(top + j) * width": "j * width",
        "p.relu && (p.pool.first || !p.lrn.size)": "p.pool.first || !p.lrn.size",
        "(p.pool.first || !p.lrn.size)": "true",
        "load<Vec<A>>(value + i) <= cut": "load<Vec<A>>(value + i) < cut",
        "cut == cut": "true",
        "place[i * stride]": "place[i]",
        "p.argmax_bytes == 1": "p.argmax_bytes == 4",
        "column % stride != 0": "false",
        "holders[i].place + Int<A>(j)": "holders[i].place",
        "axis.count == 3 && axis.step == 1": "axis.count == 3",
        "of(column + i + 1)": "of(column + i)",
        "std::min(i + axis.stride, n)": "std::min(i + axis.stride, n - 1)",
        "m + l * axis.stride < n": "m + l * axis.stride < n - 1",
    },
    "lanes": {
        "(v > m) | (v != v)": "v > m",
        "zero > v ? zero : v": "v > zero ? v : zero",
        "(u + 0x7fff + ((u >> 16) & 1)) >> 16": "(u + 0x8000) >> 16",
        "v != v ? nan : round(load<Bits>(&v))": "round(load<Bits>(&v))",
        "a != a ? 0x7fc0 : round(u)": "round(u)",
    },
    "norms": {
        "window.size() - 1": "window.size() - 2",
        "low > v ? low : v": "v > low ? v : low",
        "least > r ? least : r": "r > least ? r : least",
        "left <= 0": "left < 0",
        "load<V>(row.bias + g * channels + c)": "load<V>(row.bias + c)",
        "left >= L ? r : first_lanes<A>(r, left)": "r",
        "lanes_from<A, 1>(V{}, square)": "V{}",
        "lanes_from<A, 1>(square, square_after)": "lanes_from<A, 1>(square, V{})",
        "pairs_before = pairs": "pairs_before = V{}",
        "lrn.size != 5": "lrn.size > 5",
        "SIZE ? SIZE : norm.size": "(SIZE ? SIZE : norm.size) - 1",
    },
}
SWITCH = """
#include <cstdlib>
namespace fastcnn {
inline const int mutant = std::atoi(std::getenv("FASTCNN_MUTANT"));
}
"""


def build(into):
    """Builds the extension in a folder, from copied sources that hold all mutants."""
    shutil.copytree(mutants.ROOT / "csrc", into / "csrc", dirs_exist_ok=True)
    shutil.copy(mutants.ROOT / "CMakeLists.txt", into)
    number = 0
    for header, expressions in EXPRESSIONS.items():
        path = into / CPU / f"{header}.h"
        text = path.read_text()
        for old, new in expressions.items():
            number += 1
            before, found, after = text.partition(old)
            assert found, f"{header}.h has no {old}"
            text = f"{before}(mutant != {number} ? ({old}) : ({new})){after}"
        path.write_text(text.replace("#pragma once\n", "#pragma once\n" + SWITCH * (header == "lanes"), 1))
    bin = Path(sys.executable).parent
    given = {
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "FASTCNN_CUDA": "OFF",
    }
    given |= {"CMAKE_CXX_COMPILER": "g++", "CMAKE_MAKE_PROGRAM": bin / "ninja"}
    options = [f"-D{name}={value}" for name, value in given.items()]
    subprocess.run([bin / "cmake", "-G", "Ninja", "-S", into, "-B", into, *options], check=True)
    subprocess.run([bin / "cmake", "--build", into], check=True)


def passes(number, folder):
    """Returns whether the tests pass with a mutant; 0 is none."""

    def run():
        os.environ["FASTCNN_MUTANT"] = str(number)
        import fastcnn

        fastcnn.__path__.insert(0, str(folder))
        files = [str(mutants.ROOT / f"tests/test_{name}.py") for name in TESTS]
        return pytest.main(
            ["-q", "-x", "-p", "no:cacheprovider", "-k", "not triton and not reference and not plain", *files]
        )

    return mutants.forked(run, 3600) == pytest.ExitCode.OK


def main():
    folder = mutants.BUILD / "kernels"
    build(folder)
    assert passes(0, folder), "a test fails without any mutant"
    made = [f"{CPU}/{header}.h {a} -> {b}" for header in EXPRESSIONS for a, b in EXPRESSIONS[header].items()]
    mutants.report(made, lambda name: passes(made.index(name) + 1, folder))


if __name__ == "__main__":
    main()
