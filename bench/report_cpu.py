"""What bench/test_cpu.py measured, as tables: README's, that of docs/cpu.md, and one for each benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from contenders import ALONE

from fastcnn.bench.cases import LARGE, PIXELS, SMALL

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

# The roofline's points.
ROOF = {
    "pool of map 1, float32": "pool",
    "LRN of map 1, float32": "LRN",
    "ReLU, LRN, pool of map 1, float32": "ReLU, LRN, pool",
    "AlexNet's block 1, batch 32": "block 1",
    "AlexNet's block 2, batch 32": "block 2",
    "AlexNet, batch 1, float32": "AlexNet, 1",
    "AlexNet, batch 32, float32": "AlexNet, 32",
    "pool of map 1, bfloat16": "pool",
    "LRN of map 1, bfloat16": "LRN",
    "ReLU, LRN, pool of map 1, bfloat16": "ReLU, LRN, pool",
    "AlexNet, batch 1, bfloat16": "AlexNet, 1",
    "AlexNet, batch 32, bfloat16": "AlexNet, 32",
}


def results(data: dict) -> dict[str, Result]:
    typical = rates(data)
    return {r.name: r for r in (Result(benchmark, typical) for benchmark in data["benchmarks"])}


def rates(data: dict) -> dict[str, float]:
    """What the machine can do: medians, as the times are, of what was measured before each benchmark.

    Its host takes some of it away at times, and then a benchmark would beat what was measured just before it.
    """
    measured = [benchmark["extra_info"]["rates"] for benchmark in data["benchmarks"]]
    return {name: statistics.median(rates[name] for rates in measured) for name in measured[0]}


class Result:
    """One benchmark; times in milliseconds, everyone's in the memory format that suits them better."""

    def __init__(self, benchmark: dict, rates: dict[str, float]) -> None:
        self.info = benchmark["extra_info"]
        self.name = self.info["name"]
        self.ms = {name: 1e3 * s["median"] for name, s in self.info["seconds"].items()}
        self.ours = self.best("fastcnn", "fastcnn channels_last")
        self.eager = self.best("eager", "eager channels_last")
        peers = [name for name in self.ms if not name.startswith("fastcnn") and name != ALONE]
        self.peer = min(peers, key=self.ms.__getitem__)
        moved, flops = self.info["moved"], self.info["flops"]
        self.floor = 1e3 * (moved / rates["copy"] + flops / rates[self.info["dtype"]])

    def best(self, *names: str) -> float:
        return min(self.ms[name] for name in names)


def milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def times(value: float) -> str:
    return f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def machine(data: dict, *peers: str) -> str:
    """Processor, threads, and the versions of fastcnn, torch and some peers."""
    info = data["machine_info"]
    names = [name for name in ("fastcnn", "torch", *peers) if name in info["versions"]]
    versions = ", ".join(f"{name} {info['versions'][name]}" for name in names)
    threads = f"{info['threads']} thread{'s' * (info['threads'] != 1)}"
    return f"{info['processor']}, {threads}, {versions}"


def everyone(data: dict) -> str:
    return machine(data, "onnxruntime", "openvino", "jax")


def readme(data: dict, results: dict[str, Result]) -> str:
    lines = ["| | eager | best peer | | fastcnn | × eager | × best peer |", "|---|--:|--:|---|--:|--:|--:|"]
    for name, row in ROWS.items():
        r = results[name]
        best = r.ms[r.peer]
        lines.append(
            f"| {row} | {milliseconds(r.eager)} | {milliseconds(best)} | {r.peer} | {milliseconds(r.ours)} "
            f"| **{times(r.eager / r.ours)}** | {times(best / r.ours)} |"
        )
    return "\n".join([*lines, caption(data)])


SUMMARY = {  # README's first table, by the benchmark's name
    "ReLU, LRN, pool of map 1, float32": "ReLU, LRN, max pooling alone",
    "AlexNet, batch 32, float32": "AlexNet, 32 images",
    "AlexNet, training step, batch 32": "AlexNet, training on 32 images",
    "LeNet-5, batch 1, float32": "LeNet-5, one image",
}


def summary(data: dict, results: dict[str, Result]) -> Iterator[str]:
    """Yields the table's head, and its rows of the CPU."""
    info = data["machine_info"]
    cpu = f"{info['processor']}, {info['threads']} threads"
    yield f"| fastcnn's speed (CPU: {cpu}) | × eager PyTorch | × the fastest other library |"
    yield "|---|--:|--:|"
    for name, row in SUMMARY.items():
        r = results[name]
        yield f"| {row}, CPU | **{times(r.eager / r.ours)}** | {times(r.ms[r.peer] / r.ours)} |"


def caption(data: dict) -> str:
    return f"""
Milliseconds by `make bench-cpu`: {everyone(data)}.
Medians; contenders take turns, each in the memory format that suits it.
[All benchmarks](docs/benchmarks.md)."""


def why(results: dict[str, Result]) -> str:
    """Returns which share of a forward pass is neither convolution nor dense layer."""
    names = [f"AlexNet, batch {batch}, float32" for batch in (1, 8, 32)]
    rest = [f"{1 - results[name].ms[ALONE] / results[name].ms['eager']:.0%}" for name in names]
    return f"""In plain PyTorch, ReLU, LRN and pooling take {rest[2]} of AlexNet's forward pass on 32 images,
{rest[1]} on 8 and {rest[0]} on one. They compute little, but each reads and writes whole activation maps.
fastcnn reads them once."""


def floors(results: dict[str, Result]) -> str:
    """How far the layers are from the time that their bytes take."""
    lines = [
        "| | MB that must move | floor, ms | NCHW, ms | × floor | channels_last, ms | × floor |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in results.values():
        if " of map " in r.name:
            formats = [r.ms["fastcnn"], r.ms["fastcnn channels_last"]]
            cells = " | ".join(f"{milliseconds(ms)} | {ms / r.floor:.1f}" for ms in formats)
            lines.append(f"| {r.name} | {r.info['moved'] / 1e6:.1f} | {milliseconds(r.floor)} | {cells} |")
    return "\n".join(lines)


def introduction(data: dict) -> str:
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


def details(r: Result) -> Iterator[str]:
    """A benchmark's own table."""
    yield f"### {r.name}\n"
    yield f"Floor {milliseconds(r.floor)} ms; fastcnn takes {r.ours / r.floor:.1f} times that."
    yield "\n| | ms | quartiles | times fastcnn's | quartiles |"
    yield "|---|--:|--:|--:|--:|"
    for name, seconds in r.info["seconds"].items():
        low, high = (milliseconds(1e3 * seconds[q]) for q in ("low", "high"))
        ratio = r.info["times_faster"][name]
        close = "≈ " * (name in r.info["too_close"])
        yield (
            f"| {name} | {milliseconds(r.ms[name])} | {low}–{high} | {close}{ratio['median']:.2f} "
            f"| {ratio['low']:.2f}–{ratio['high']:.2f} |"
        )
    for name, reason in r.info["failed"].items():
        yield f"\n{name} is left out: {reason}."
    yield ""
