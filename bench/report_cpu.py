"""Writes the tables of what bench/test_cpu.py measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from pages import machine, milliseconds, processor, span, table, times

from fastcnn.bench.cases import LARGE, PIXELS, SMALL
from fastcnn.bench.contenders import ALONE

# README's rows, by the benchmark's name.
ROWS = {
    "ReLU, LRN, pool of map 1, float32": "ReLU, LRN, pool of [32, 96, 55, 55]",
    "ReLU, LRN, pool of map 1, large values, float32": "the same, values ten times as large",
    "ReLU, LRN, pool of map 1, bfloat16": "the same in bfloat16",
    "ReLU, LRN, pool of map 1 with backward, float32": "the same with backward",
    "AlexNet's block 1, batch 32": "AlexNet's first block, 32 images",
    "AlexNet, batch 1, float32": "AlexNet, one image",
    "AlexNet, batch 32, float32": "AlexNet, 32 images",
    "AlexNet, batch 32, bfloat16": "AlexNet, 32 images, bfloat16",
    "AlexNet, training step, batch 32": "AlexNet, a training step on 32",
    "LeNet-5, batch 1, float32": "LeNet-5, one image",
    "LeNet-5, batch 32, float32": "LeNet-5, 32 images",
    "LeNet-5, training step, batch 64": "LeNet-5, a training step on 64",
}
SUMMARY = {  # those of its first table
    "ReLU, LRN, pool of map 1, float32": "ReLU, LRN, max pooling alone",
    "AlexNet, batch 32, float32": "AlexNet, 32 images",
    "AlexNet, training step, batch 32": "AlexNet, training on 32 images",
    "LeNet-5, batch 1, float32": "LeNet-5, one image",
}


class Result:
    """One benchmark; times in seconds, everyone's in the memory format that suits them better."""

    def __init__(self, record: dict[str, Any], rates: dict[str, float]) -> None:
        self.record, self.name, self.dtype = record, record["name"], record["dtype"]
        self.moved, self.operations = record["moved"], record["operations"]
        self.seconds = {name: timing["median"] for name, timing in record["seconds"].items()}
        self.ours, self.eager = self.best("fastcnn"), self.best("eager")
        others = {n: s for n, s in self.seconds.items() if not n.startswith("fastcnn") and n != ALONE}
        self.peer = min(others, key=others.__getitem__)
        self.best_peer = others[self.peer]
        self.gains = times(self.eager / self.ours), times(self.best_peer / self.ours)
        self.floor = self.moved / rates["copy"] + record["flops"] / rates[self.dtype]

    def best(self, name: str) -> float:
        return min(self.seconds[name], self.seconds[f"{name} channels_last"])

    def cells(self) -> list[str]:
        """How many times as fast as eager torch, and as the best peer."""
        return [f"**{self.gains[0]}**", self.gains[1]]


def rates(data: dict) -> dict[str, float]:
    """Returns what the machine can do: medians, as the times are, of what was measured before each benchmark.

    Its host takes some of it away at times, and then a benchmark would beat what was measured just before it.
    """
    measured = [benchmark["extra_info"]["rates"] for benchmark in data["benchmarks"]]
    return {name: statistics.median(each[name] for each in measured) for name in measured[0]}


def results(data: dict) -> dict[str, Result]:
    typical = rates(data)
    found = (Result(benchmark["extra_info"], typical) for benchmark in data["benchmarks"])
    return {result.name: result for result in found}


def everyone(data: dict) -> str:
    return machine(data, "onnxruntime", "openvino", "jax")


def summary(data: dict, results: dict[str, Result], gpu: list[str]) -> str:
    """Returns README's first table; gpu: its last row."""
    info = data["machine_info"]
    cpu = f"fastcnn's speed (CPU: {processor(info)}, {info['threads']} threads)"
    rows = [[f"{row}, CPU", *results[name].cells()] for name, row in SUMMARY.items()]
    return table([cpu, "× eager PyTorch", "× the fastest other library"], [*rows, gpu])


def readme(data: dict, results: dict[str, Result]) -> str:
    def cells(row: str, r: Result) -> list[str]:
        eager, peer, ours = map(milliseconds, (r.eager, r.best_peer, r.ours))
        return [row, eager, peer, r.peer, ours, *r.cells()]

    columns = ["", "eager", "best peer", "", "fastcnn", "× eager", "× best peer"]
    return f"""{table(columns, [cells(row, results[name]) for name, row in ROWS.items()])}

Milliseconds by `make bench-cpu`: {everyone(data)}.
Medians; contenders take turns, each in the memory format that suits it.
[All benchmarks](docs/benchmarks.md)."""


def floors(results: dict[str, Result]) -> str:
    """Returns how far the layers are from the time that their bytes take."""

    def cells(r: Result) -> Iterator[str]:
        yield from (r.name, f"{r.moved / 1e6:.1f}", milliseconds(r.floor))
        for name in ("fastcnn", "fastcnn channels_last"):
            yield from (milliseconds(r.seconds[name]), f"{r.seconds[name] / r.floor:.1f}")

    columns = ["", "MB that must move", "floor, ms", "NCHW, ms", "× floor", "channels_last, ms", "× floor"]
    return table(columns, [list(cells(r)) for r in results.values() if " of map " in r.name])


def why(results: dict[str, Result]) -> str:
    """Returns which share of a forward pass is neither convolution nor dense layer."""
    seconds = [results[f"AlexNet, batch {batch}, float32"].seconds for batch in (1, 8, 32)]
    one, eight, many = (f"{1 - each[ALONE] / each['eager']:.0%}" for each in seconds)
    return f"""In plain PyTorch, ReLU, LRN and pooling take {many} of AlexNet's forward pass on 32 images,
{eight} on 8 and {one} on one. They compute little, but each reads and writes whole activation maps. fastcnn
reads them once."""


def notes(data: dict) -> str:
    rate = {name: f"{each / 1e9:.0f}" for name, each in rates(data).items()}
    return f"""By `make bench-cpu` on {everyone(data)}.

- Contenders take turns. A ratio is the median over the rounds of a contender's time divided by that of
  "fastcnn", which is fastcnn in NCHW.
- "fastcnn again" is a second timing of fastcnn in each round: its distance from 1 is noise. A ratio is
  marked ≈ if it is no farther from 1 than that, or if its quartiles are on both sides of 1.
- "Floor" is the least time that the machine needs: the bytes that must move divided by the rate of a large
  copy ({rate["copy"]} GB/s, read and written), plus the FLOPs of convolutions and dense layers divided by
  the rate of a matmul or a convolution, whichever is faster ({rate["float32"]} GFLOP/s in float32,
  {rate["bfloat16"]} in bfloat16). The rates are measured before each benchmark; these are their medians.
- "Map 1" is [32, 96, 55, 55], "map 2" [32, 256, 27, 27]: the outputs of AlexNet's first two convolutions.
  Values are normal with a standard deviation of {SMALL}, large values of {LARGE}, an image's of {PIXELS}.
- "Alone" is no contender, but the convolutions and dense layers of a plain model without the rest.
- Contenders with wrong outputs are excluded and listed. torch.compile loses gradients between dense layers
  and a max pooling behind a convolution (pytorch/pytorch#185509; torch 2.13 has it).
- ONNX Runtime's threads don't spin while they wait, since that would slow the next contender. OpenVINO
  computes in bfloat16 where the row says so, but reads and writes float32."""


def details(r: Result) -> str:
    """Returns a benchmark's own section."""

    def cells(name: str) -> list[str]:
        taken, ratio = r.record["seconds"][name], r.record["times_faster"][name]
        close = "≈ " * (name in r.record["too_close"])
        ours = [f"{close}{ratio['median']:.2f}", span(ratio, lambda value: f"{value:.2f}")]
        return [name, milliseconds(taken["median"]), span(taken, milliseconds), *ours]

    lines = [
        f"### {r.name}\n",
        f"Floor {milliseconds(r.floor)} ms; fastcnn takes {r.ours / r.floor:.1f} times that.\n",
        table(["", "ms", "quartiles", "times fastcnn's", "quartiles"], map(cells, r.record["seconds"])),
        *(f"\n{name} is left out: {reason}." for name, reason in r.record["failed"].items()),
    ]
    return "\n".join([*lines, ""])
