"""Measures the memory of a training step, fused and plain: AlexNet's blocks and whole models.

    python bench/memory.py [--batch 32]

From what torch's profiler sees of its allocator on the CPU. Writes bench/results/memory.json: bytes at the
peak beyond what was there before, bytes kept for backward, and how it goes over the step.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pages import machine, table, times
from torch import nn
from torch.nn import functional as TF
from torch.profiler import ProfilerActivity, profile

from fastcnn.bench.machine import facts
from fastcnn.measure import bytes_kept
from fastcnn.models import alexnet, lenet5

RESULTS = Path(__file__).parent / "results" / "memory.json"
POINTS = 400  # of a timeline, at most
STAGES = 4  # plain layers of a block: convolution, ReLU, LRN, pooling
EXPLANATION = """
"Peak" is beyond parameters and input, gradients included; "kept" is what backward needs once forward is done,
the input too where a convolution keeps it. Both are what goes through torch's allocator: scratch of our
kernels' threads ([cpu.md](cpu.md) says how much) and oneDNN's is not seen. A block alone has its peak in
backward, where recomputing has made everything again; it pays in a network, in which the other blocks' maps
would be kept meanwhile. Plain layers give back what they kept one by one; a block holds its own until its
convolution's gradients are done: where little is kept, its peak may be higher.
"""


COLUMNS = ["", "", "peak, MB", "eager's over it", "kept, MB", "eager's over it"]


class Case(NamedTuple):
    name: str
    size: tuple[int, int, int]
    sides: dict[str, nn.Module]
    classes: bool  # whether the output is classes, of which a loss is taken


def cases() -> Iterator[Case]:
    fused, plain = alexnet(), alexnet(fused=False)
    for i, (name, size) in enumerate({"first": (3, 227, 227), "second": (96, 27, 27)}.items()):
        block = fused.features[i]
        again = copy.deepcopy(block)
        again.recompute = True
        layers = plain.features[i * STAGES : (i + 1) * STAGES]
        sides = {"fastcnn": block, "fastcnn, recompute": again, "eager": layers}
        yield Case(f"AlexNet's {name} block", size, sides, False)
    for name, make, size in (
        ("AlexNet, 2012", partial(alexnet, "2012"), (3, 224, 224)),
        ("AlexNet, 2014", partial(alexnet, "2014"), (3, 224, 224)),
        ("LeNet-5", lenet5, (1, 28, 28)),
    ):
        yield Case(name, size, {"fastcnn": make(), "eager": make(fused=False)}, True)


def step(module: nn.Module, x: torch.Tensor, classes: bool) -> Callable[[], None]:
    """A step of SGD that leaves no gradients; of a block, given the gradient of its output."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)
    with torch.no_grad():
        grad = torch.ones_like(module(x))
    labels = torch.arange(len(x)) % 10

    def run() -> None:
        y = module(x)
        if classes:
            TF.cross_entropy(y, labels).backward()
        else:
            y.backward(grad)
        del y
        optimizer.step()
        optimizer.zero_grad()
        x.grad = None

    return run


def timeline(fn: Callable[[], None]) -> list[tuple[float, int]]:
    """Bytes allocated beyond those at the start, each time they change; times as shares of the step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        fn()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    start, end = changes[0][0], changes[-1][0]
    points, held = [], 0
    for at, change in changes:
        held += change
        points.append((round((at - start) / (end - start), 4), held))
    return points


def thinned(points: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Of every few points the highest, so that at most POINTS are left."""
    run = -(-len(points) // POINTS)
    return [max(points[i : i + run], key=lambda p: p[1]) for i in range(0, len(points), run)]


def measured(case: Case, module: nn.Module, batch: int) -> dict[str, Any]:
    x = torch.randn(batch, *case.size)
    x.requires_grad_(case.size[0] > 3)  # where it isn't an image
    fn = step(module.train(), x, case.classes)
    for _ in range(2):
        fn()
    points = timeline(fn)
    kept = bytes_kept(partial(module, x), module.parameters())
    return {"peak": max(held for _, held in points), "kept": kept, "timeline": thinned(points)}


def rows(found: dict[str, Any]) -> Iterator[list[str]]:
    for name, sides in found.items():
        for side, row in sides.items():
            cells = (
                (f"{row[what] / 1e6:.1f}", times(sides["eager"][what] / row[what]))
                for what in ("peak", "kept")
            )
            yield [name, side, *chain(*cells)]


def section(data: dict[str, Any]) -> str:
    """Returns the part of docs/benchmarks.md."""
    return f"""## Memory of a training step

![Bytes held over a training step](memory.svg)

By `make memory` on {machine(data)}; {data["batch"]} images in float32, a step of SGD.

{table(COLUMNS, rows(data["cpu"]))}
{EXPLANATION}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    batch = parser.parse_args().batch
    torch.manual_seed(0)
    found = {
        case.name: {side: measured(case, module, batch) for side, module in case.sides.items()}
        for case in cases()
    }
    RESULTS.write_text(json.dumps({"machine_info": facts("cpu"), "batch": batch, "cpu": found}) + "\n")


if __name__ == "__main__":
    main()
