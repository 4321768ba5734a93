"""Write README's table, and the picture docs/speed.svg, from a file of bench/results.

    python bench/report.py NAME [--check]

With --check nothing is written; the exit status is 1 where README differs from the results.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- begin results -->", "<!-- end results -->"


def table(result: dict) -> str:
    """README's table, in Markdown."""
    lines = [
        "| AlexNet-2012, float32 | eager, ms | torch.compile, ms | fastcnn, ms | eager / fastcnn "
        "| kept for backward, MB: eager | fastcnn |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for case in result["cases"]:
        eager, compiled, fused = (case["seconds"][name]["median"] for name in ("eager", "compile", "fastcnn"))
        kept = case["bytes_kept"]
        lines.append(
            f"| {case['name']} | {eager * 1e3:.0f} | {compiled * 1e3:.0f} | {fused * 1e3:.1f} "
            f"| **{eager / fused:.1f}×** | {kept['eager'] / 1e6:.0f} | {kept['fastcnn'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


def caption(name: str, result: dict) -> str:
    versions = result["versions"]
    return (
        f"Medians of one run in turns: {result['processor']}, {result['threads']} threads, batch "
        f"{result['batch']}, torch {versions['torch']}; from `bench/results/{name}.json`, by `make bench`."
    )


def readme(name: str, result: dict) -> str:
    """README with the results between its two marks."""
    text = (ROOT / "README.md").read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(result)}\n\n{caption(name, result)}\n{END}{after}"


def picture(result: dict, path: Path) -> None:
    """How many times faster than eager, a pair of bars for each case."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fastcnn"
    names = [case["name"] for case in result["cases"]]
    figure, axes = pyplot.subplots(figsize=(8, 0.62 * len(names) + 1))
    for i, (other, colour) in enumerate((("compile", "#b8c4d0"), ("fastcnn", "#1f6f8b"))):
        gains = [
            case["seconds"]["eager"]["median"] / case["seconds"][other]["median"] for case in result["cases"]
        ]
        label = "torch.compile" if other == "compile" else other
        bars = axes.barh([y + 0.38 * i for y in range(len(names))], gains, 0.36, color=colour, label=label)
        axes.bar_label(bars, fmt="%.1f×", padding=3, fontsize=9)
    axes.set_yticks([y + 0.19 for y in range(len(names))], names)
    axes.invert_yaxis()
    axes.axvline(1, color="#888888", linewidth=0.8)
    axes.set_xlabel("times faster than eager PyTorch")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    result = json.loads((ROOT / "bench" / "results" / f"{args.name}.json").read_text())
    text = readme(args.name, result)
    if args.check:
        return int(text != (ROOT / "README.md").read_text())
    (ROOT / "README.md").write_text(text)
    picture(result, ROOT / "docs" / "speed.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
