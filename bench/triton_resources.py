"""Writes the tables of docs/triton_resources.md: what Triton makes of its kernels, compiled without a GPU.

python bench/triton_resources.py [--check]
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from pages import marked, table
from sass import BYTES, INSTRUCTIONS
from torch import Tensor
from triton_launches import TARGETS, issued, launches

from fastcnn import LRN, MaxPool
from fastcnn.backends._convolution import conv_output_size
from fastcnn.backends.triton import conv, epilogue
from fastcnn.stages import Stages

PAGE = Path(__file__).resolve().parents[1] / "docs" / "triton_resources.md"
COUNTED, *OTHERS = sorted(TARGETS, key=lambda target: target != "sm_90")  # whose instructions are counted
CHECKED = ["gfx942"]  # of the others, by --check: CI's time is short
IMAGES, PROGRAMS = 128, 2 * 132  # programs of a block's kernel at once on an H100
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
FORMATS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}
NORM, POOL = LRN(5, k=2.0), MaxPool(3, 2)
LRN_AND_POOL = {"inference": 1.15, "training": 1.3, "backward": 1.1}
EPILOGUES = {  # stages; for each phase, the most that its ratio of time to issue to time to move may be
    "relu": (Stages(), {"inference": 0.2}),
    "relu, lrn": (Stages(lrn=NORM), {"inference": 0.65, "backward": 1.1}),
    "relu, pool 3/2": (Stages(pool=POOL), {"inference": 0.5, "training": 1.2, "backward": 1.1}),
    "relu, pool 3/2, lrn": (Stages(lrn=NORM, pool=POOL, order="pool_lrn"), LRN_AND_POOL),
    "relu, lrn, pool 3/2": (Stages(lrn=NORM, pool=POOL), LRN_AND_POOL),
}
FORMS = (  # others of AlexNet's epilogue: dtype, format, channels, and how many times the bounds
    ("bf16", "channels_last", 100, 1.3),  # no multiple of 8, so that vectors are loaded in parts
    ("bf16", "NCHW", 96, 1.5),
    ("fp32", "channels_last", 96, 0.8),
)
BLOCKS = {  # input, weight; stride, padding, dilation, groups; the epilogue; the bound
    "AlexNet 1": ((3, 224, 224), (96, 3, 11, 11), ((4, 4), (2, 2), (1, 1), 1), "relu, lrn, pool 3/2", 7.6),
    "AlexNet 2": ((96, 27, 27), (256, 48, 5, 5), ((1, 1), (2, 2), (1, 1), 2), "relu, lrn, pool 3/2", 14),
    "CaffeNet 2": ((96, 27, 27), (256, 96, 5, 5), ((1, 1), (2, 2), (1, 1), 1), "relu, pool 3/2, lrn", 22),
}


class Case(NamedTuple):
    """A kernel that is compiled for a target."""

    name: str  # of EPILOGUES or BLOCKS
    phase: str  # inference, training or backward of an epilogue; or block
    most: float  # of the time to issue over the time to move
    dtype: str = "bf16"
    format: str = "channels_last"
    channels: int = 96

    def form(self) -> list[str]:
        """Returns what is not as usual: bfloat16, channels_last, 96 channels."""
        usual = ("bf16", "channels_last", "96 channels")
        form = (self.dtype, self.format, f"{self.channels} channels")
        return [word for word, other in zip(form, usual, strict=True) if word != other]

    def __str__(self) -> str:
        return "; ".join([self.name, self.phase, *self.form()])

    def empty(self, size: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or DTYPES[self.dtype]
        return torch.empty(size, dtype=dtype, device="meta", memory_format=FORMATS[self.format])


SINGLE = [Case(name, phase, most) for name, (_, mosts) in EPILOGUES.items() for phase, most in mosts.items()]
ALEXNET = SINGLE[-3:]
FORMED = [
    case._replace(dtype=dtype, format=format, channels=channels, most=factor * case.most)
    for dtype, format, channels, factor in FORMS
    for case in ALEXNET
]
FUSED = [Case(name, "block", block[-1], dtype) for dtype in DTYPES for name, block in BLOCKS.items()]
ROWS = SINGLE + FORMED + FUSED  # of the first table
COLUMNS = [*ALEXNET, ALEXNET[1]._replace(format="NCHW"), *FUSED]  # of the second


def call(case: Case) -> tuple[Callable[[], Any], list[Tensor | None]]:
    """Returns what launches a case, and the tensors that it reads and writes, apart from the bias."""
    format = FORMATS[case.format]
    if case.phase == "block":
        image, filters, how, name, _ = BLOCKS[case.name]
        x, weight, stages = case.empty((IMAGES, *image)), case.empty(filters), EPILOGUES[name][0]
        y = case.empty(stages.output_shape((IMAGES, filters[0], *conv_output_size(x, weight, how))))
        rest = weight.new_empty(filters[0]), how, stages, False, format
        return lambda: conv.block_forward(x, weight, *rest), [x, weight, y]
    stages, size, save = EPILOGUES[case.name][0], (IMAGES, case.channels, 55, 55), case.phase != "inference"
    x, y = case.empty(size), case.empty(stages.output_shape(size))
    bias, kept = x.new_empty(case.channels), stages.saved_name_in_block("cuda")
    places = case.empty(y.shape, torch.uint8) if stages.pool and save else None
    if case.phase == "backward":
        r = {"r": y, "input": x, None: None}[kept]
        again = bias if kept == "input" else None
        return lambda: epilogue.backward(y, r, places, stages, size, format, True, again), [x, y, places, r]
    r = y if save and kept == "r" else None
    return lambda: epilogue.forward(x, bias, stages, save, kept == "r"), [x, y, places, r]


def compiled(target: str, case: Case) -> list[str]:
    """Returns a row of the first table; for other targets than sm_90, a cell of the second.

    Raises:
        RuntimeError: a register is spilled, matrix instructions are missing, or instructions are too many.
    """
    run, tensors = call(case)
    with mock.patch.object(conv, "_programs", lambda x: PROGRAMS):
        found = launches(target, run)
    registers, matrix = max(launch.registers for launch in found), sum(launch.matrix for launch in found)
    if any(launch.spills for launch in found):
        raise RuntimeError(f"{case} spills on {target}")
    if case.phase == "block" and case.dtype == "bf16" and not matrix:
        raise RuntimeError(f"{case} has no matrix instruction on {target}")
    if target != COUNTED:
        return [f"{registers}; {matrix}" if case.phase == "block" else str(registers)]
    counts = sum(map(issued, found), Counter())
    issue = counts.total() / INSTRUCTIONS
    roots = 8 * counts["MUFU"] / INSTRUCTIONS  # four lanes a cycle
    move = sum(t.numel() * t.itemsize for t in tensors if t is not None) / BYTES
    ratio = issue / move
    if ratio > case.most:
        raise RuntimeError(f"{case} takes {ratio:.2f} times as long to issue as to move, not {case.most}")
    times = (f"{1e6 * time:.1f}" for time in (issue, roots, move))
    return [str(case), str(registers), *times, f"{ratio:.2f}", f"{case.most:.2f}"]


def compile_all(cases: list[Case], targets: list[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Returns the rows of both tables: of these cases, and of these targets."""
    tasks = [(COUNTED, case) for case in cases] + [(target, case) for target in targets for case in COLUMNS]
    with multiprocessing.Pool() as pool:
        found = pool.starmap(compiled, tasks, chunksize=1)
    cells = iter(found[len(cases) :])
    return found[: len(cases)], [[target, *(next(cells)[0] for _ in COLUMNS)] for target in targets]


def check() -> None:
    """Compiles part of the page again, and exits with 1 where the page has something else."""
    page = PAGE.read_text()
    if f"Triton {triton.__version__}." not in page:
        compile_all(SINGLE, [])
        print(f"{PAGE.name} is another Triton's; with {triton.__version__} the epilogues are within bounds")
        return
    lines = (f"| {' | '.join(row)} |" for rows in compile_all(ROWS, CHECKED) for row in rows)
    if missing := [line for line in lines if line not in page]:
        sys.exit("\n".join([f"{PAGE.name} is out of date: run make resources. It lacks", *missing]))


def write() -> None:
    rows, others = compile_all(ROWS, OTHERS)
    header = ["kernel", "registers", "issue", "roots", "move", "ratio", "most"]
    names = ["; ".join([c.name if c.phase == "block" else c.phase, *c.form()]) for c in COLUMNS]
    text = marked(
        PAGE.read_text(),
        compiler=f"Triton {triton.__version__}.",
        counted=table(header, rows),
        registers=table(["target", *names], others),
    )
    PAGE.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compile some again; 1 if the page differs")
    (check if parser.parse_args().check else write)()


if __name__ == "__main__":
    main()
