"""Write README's table, docs/speed.svg and docs/benchmarks.md from bench/results/cpu.json.

    python bench/report.py [--check]

With --check nothing is written; the exit status is 1 where README or docs differ from the results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = "bench/results/cpu.json"
BEGIN, END = "<!-- begin results -->", "<!-- end results -->"

# README's rows, by the benchmark's name.
ROWS = {
    "test_epilogue[epilogue 1-relu, lrn, pool-NCHW-float32]": "ReLU, LRN, pool of [32, 96, 55, 55]",
    "test_epilogue[epilogue 1-relu, lrn, pool-channels_last-bfloat16]": "ReLU, LRN, pool in bfloat16",
    "test_epilogue_with_backward[NCHW-float32]": "ReLU, LRN, pool with backward",
    "test_block[1-32]": "AlexNet's first block, 32 images",
    "test_inference[1-float32-AlexNet]": "AlexNet, one image",
    "test_inference[32-float32-AlexNet]": "AlexNet, 32 images",
    "test_inference[32-bfloat16-AlexNet]": "AlexNet, 32 images, bfloat16",
    "test_training_step[AlexNet-32]": "AlexNet, a training step on 32",
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


def milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def times(value: float) -> str:
    return f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def table(results: dict[str, Result]) -> str:
    """README's table, in Markdown."""
    lines = ["| | eager | best peer | | fastcnn | × eager | × best peer |", "|---|--:|--:|---|--:|--:|--:|"]
    for name, label in ROWS.items():
        r = results[name]
        best = r.ms[r.peer]
        lines.append(
            f"| {label} | {milliseconds(r.eager)} | {milliseconds(best)} | {r.peer} | {milliseconds(r.ours)} "
            f"| **{times(r.eager / r.ours)}** | {times(best / r.ours)} |"
        )
    return "\n".join(lines)


def machine(data: dict) -> str:
    info = data["machine_info"]
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    return f"{info['processor']}, {info['threads']} threads, {versions}"


def readme(data: dict, results: dict[str, Result]) -> str:
    """README with the results between its two marks."""
    before, rest = (ROOT / "README.md").read_text().split(BEGIN)
    after = rest.split(END)[1]
    caption = (
        f"Milliseconds, medians, contenders in turns, by `make bench-cpu`: {machine(data)}. Each side in the "
        "memory format that suits it better; the best peer is the fastest of eager, torch.compile, ONNX "
        "Runtime and OpenVINO. All of it, with the spread: [docs/benchmarks.md](docs/benchmarks.md)."
    )
    return f"{before}{BEGIN}\n{table(results)}\n\n{caption}\n{END}{after}"


def details(r: Result) -> Iterator[str]:
    """A benchmark's own table."""
    kept = r.info.get("bytes_kept")
    floor = 1e3 * r.info["floor"]
    yield f"## {r.name.removeprefix('test_')}\n"
    yield f"Floor {milliseconds(floor)} ms; fastcnn takes {r.ours / floor:.1f} times that."
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


def document(data: dict, results: dict[str, Result]) -> str:
    rates = [r.info["rates"] for r in results.values()]

    def between(name: str) -> str:
        values = [rate[name] / 1e9 for rate in rates]
        return f"{min(values):.0f}–{max(values):.0f}"

    lines = [
        "# CPU benchmarks\n",
        f"By `make bench-cpu` on {machine(data)}. Contenders run in turns; ratios are taken round by round, "
        'against "fastcnn" in the default format. "Floor": the bytes that must move over the rate of a large '
        f"copy ({between('copy')} GB/s, read and written), plus the convolutions' and dense layers' "
        f"arithmetic over a matmul's rate ({between('float32')} GFLOP/s in float32, {between('bfloat16')} in "
        'bfloat16), taken anew whenever some of these are run. "Peak": memory resident during one run '
        "beyond what was before.\n",
    ]
    for r in results.values():
        lines += details(r)
    return "\n".join(lines).rstrip() + "\n"


def picture(results: dict[str, Result], path: Path) -> None:
    """How many times faster than plain PyTorch and than the best peer, a pair of bars for each row."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fastcnn"
    rows = [results[name] for name in ROWS]
    figure, axes = pyplot.subplots(figsize=(8, 0.55 * len(rows) + 0.9))
    for offset, label, color, gains in (
        (-0.19, "than eager PyTorch", "#1f6f8b", [r.eager / r.ours for r in rows]),
        (0.19, "than the best peer", "#e6a23c", [r.ms[r.peer] / r.ours for r in rows]),
    ):
        places = [i + offset for i in range(len(rows))]
        bars = axes.barh(places, gains, 0.36, color=color, label=label)
        axes.bar_label(bars, [f"{times(gain)}×" for gain in gains], padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), ROWS.values())
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50], ["1×", "2×", "5×", "10×", "20×", "50×"])
    axes.minorticks_off()
    axes.axvline(1, color="#888888", linewidth=0.8)
    axes.set_xlabel("times faster")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    data = json.loads((ROOT / RESULTS).read_text())
    results = {b["name"]: Result(b) for b in data["benchmarks"]}
    texts = {"README.md": readme(data, results), "docs/benchmarks.md": document(data, results)}
    if args.check:
        return int(any(text != (ROOT / name).read_text() for name, text in texts.items()))
    for name, text in texts.items():
        (ROOT / name).write_text(text)
    picture(results, ROOT / "docs" / "speed.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
