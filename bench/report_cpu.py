"""What bench/test_cpu.py measured, as tables: README's, that of docs/cpu.md, and one for each benchmark."""

from __future__ import annotations

import re
from collections.abc import Iterator

# README's rows, by the benchmark's name.
ROWS = {
    "test_epilogue[epilogue 1-relu, lrn, pool-NCHW-float32]": "ReLU, LRN, pool of [32, 96, 55, 55]",
    "test_epilogue[epilogue 1-relu, lrn, pool-channels_last-bfloat16]": "ReLU, LRN, pool, bf16 channels_last",
    "test_epilogue_with_backward[NCHW-float32]": "ReLU, LRN, pool with backward",
    "test_block[1-32]": "AlexNet's first block, 32 images",
    "test_inference[1-float32-AlexNet]": "AlexNet, one image",
    "test_inference[32-float32-AlexNet]": "AlexNet, 32 images",
    "test_inference[32-bfloat16-AlexNet]": "AlexNet, 32 images, bfloat16",
    "test_training_step[AlexNet-32]": "AlexNet, a training step on 32",
}

# The roofline's points.
ROOF = {
    "test_epilogue[epilogue 1-pool-NCHW-float32]": "pool",
    "test_epilogue[epilogue 1-lrn-NCHW-float32]": "LRN",
    "test_epilogue[epilogue 1-relu, lrn, pool-NCHW-float32]": "ReLU, LRN, pool",
    "test_block[1-32]": "block 1",
    "test_block[2-32]": "block 2",
    "test_inference[1-float32-AlexNet]": "AlexNet, 1",
    "test_inference[32-float32-AlexNet]": "AlexNet, 32",
    "test_epilogue[epilogue 1-pool-NCHW-bfloat16]": "pool",
    "test_epilogue[epilogue 1-lrn-NCHW-bfloat16]": "LRN",
    "test_epilogue[epilogue 1-relu, lrn, pool-NCHW-bfloat16]": "ReLU, LRN, pool",
    "test_inference[1-bfloat16-AlexNet]": "AlexNet, 1",
    "test_inference[32-bfloat16-AlexNet]": "AlexNet, 32",
}

FORMS = {
    r"epilogue\[epilogue (.)-(.*)-(NCHW|channels_last)-(.*)\]": r"\2 of map \1, \3, \4",
    r"epilogue_with_backward\[(.*)-(.*)\]": r"relu, lrn, pool with backward, \1, \2",
    r"block\[(.)-(.*)\]": r"AlexNet's block \1, batch \2",
    r"inference\[(\d+)-(\w+)-(.*)\]": r"\3, batch \1, \2",
    r"training_step\[(.*)-(\d+)\]": r"\1, training step, batch \2",
}


class Result:
    """One benchmark; times in milliseconds."""

    def __init__(self, benchmark: dict) -> None:
        self.name = benchmark["name"]
        self.info = benchmark["extra_info"]
        self.ms = {name: 1e3 * s["median"] for name, s in self.info["seconds"].items()}
        ours = {name: ms for name, ms in self.ms.items() if name.startswith("fastcnn")}
        peers = {n: ms for n, ms in self.ms.items() if n not in ours and not n.endswith("alone")}
        self.ours, self.peer = min(ours.values()), min(peers, key=peers.__getitem__)
        self.eager = self.ms["eager"]
        self.floor = 1e3 * self.info["floor"]


def label(name: str) -> str:
    """A benchmark's name in words."""
    name = name.removeprefix("test_")
    for form, words in FORMS.items():
        name = re.sub(form, words, name)
    return name


def milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def times(value: float) -> str:
    return f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def machine(data: dict) -> str:
    info = data["machine_info"]
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    return f"{info['processor']}, {info['threads']} threads, {versions}"


def readme(data: dict, results: dict[str, Result]) -> str:
    lines = ["| | eager | best peer | | fastcnn | × eager | × best peer |", "|---|--:|--:|---|--:|--:|--:|"]
    for name, row in ROWS.items():
        r = results[name]
        best = r.ms[r.peer]
        lines.append(
            f"| {row} | {milliseconds(r.eager)} | {milliseconds(best)} | {r.peer} | {milliseconds(r.ours)} "
            f"| **{times(r.eager / r.ours)}** | {times(best / r.ours)} |"
        )
    caption = (
        f"\nMilliseconds, medians, contenders in turns, by `make bench-cpu`: {machine(data)}. Layers are "
        "in one memory format for all, NCHW unless the row names another. Of blocks and models, eager is in "
        "NCHW, fastcnn and the best peer in the format that suits each better. The best peer is the "
        "fastest of eager, torch.compile, ONNX Runtime and OpenVINO. All of it, with the spread: "
        "[docs/benchmarks.md](docs/benchmarks.md)."
    )
    return "\n".join([*lines, caption])


def floors(results: dict[str, Result]) -> str:
    """How far the epilogues are from the time that their bytes take."""
    lines = ["| | MB that must move | floor, ms | takes, ms | times the floor |", "|---|--:|--:|--:|--:|"]
    for r in results.values():
        if "epilogue" in r.name:
            lines.append(
                f"| {label(r.name)} | {r.info['moved'] / 1e6:.1f} | {milliseconds(r.floor)} "
                f"| {milliseconds(r.ours)} | {r.ours / r.floor:.1f} |"
            )
    return "\n".join(lines)


def introduction(data: dict, results: dict[str, Result]) -> str:
    rates = [r.info["rates"] for r in results.values()]

    def between(name: str) -> str:
        values = [rate[name] / 1e9 for rate in rates]
        return f"{min(values):.0f}–{max(values):.0f}"

    return (
        f"By `make bench-cpu` on {machine(data)}. Contenders run in turns; ratios are taken round by round, "
        'against "fastcnn" in the default format. "Floor": the bytes that must move over the rate of a large '
        f"copy ({between('copy')} GB/s, read and written), plus the convolutions' and dense layers' "
        f"arithmetic over a matmul's rate ({between('float32')} GFLOP/s in float32, {between('bfloat16')} in "
        'bfloat16), taken anew whenever some of these are run. "Peak": memory resident during one run '
        "beyond what was before. Map 1 is [32, 96, 55, 55], map 2 [32, 256, 27, 27]."
    )


def details(r: Result) -> Iterator[str]:
    """A benchmark's own table."""
    kept = r.info.get("bytes_kept")
    yield f"### {label(r.name)}\n"
    yield f"Floor {milliseconds(r.floor)} ms; fastcnn takes {r.ours / r.floor:.1f} times that."
    if kept:
        eager, ours = (f"{kept[name] / 1e6:.0f} MB" for name in ("eager", "fastcnn"))
        yield f"Kept for backward: eager {eager}, fastcnn {ours}."
    yield "\n| | ms | quartiles | times fastcnn's | quartiles | peak, MB |"
    yield "|---|--:|--:|--:|--:|--:|"
    for name, seconds in r.info["seconds"].items():
        low, high = (milliseconds(1e3 * seconds[q]) for q in ("low", "high"))
        ratio = r.info["times_faster"][name]
        yield (
            f"| {name} | {milliseconds(r.ms[name])} | {low}–{high} | {ratio['median']:.2f} "
            f"| {ratio['low']:.2f}–{ratio['high']:.2f} | {r.info['peak_bytes'][name] / 1e6:.0f} |"
        )
    yield ""
