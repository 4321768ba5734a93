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
        "| float32 | plain, ms | fastcnn, ms | times faster | kept for backward, MB: plain | fastcnn |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for case in result["cases"]:
        plain, fused = (case["seconds"][name]["median"] for name in ("eager", "fastcnn"))
        kept = [case["bytes_kept"][name] / 1e6 for name in ("eager", "fastcnn")]
        lines.append(
            f"| {case['name']} | {plain * 1e3:.0f} | {fused * 1e3:.1f} | **{plain / fused:.1f}** "
            f"| {kept[0]:.0f} | {kept[1]:.0f} |"
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
    """How many times faster than plain PyTorch, a bar for each case."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fastcnn"
    names = [case["name"] for case in result["cases"]]
    seconds = [case["seconds"] for case in result["cases"]]
    gains = [s["eager"]["median"] / s["fastcnn"]["median"] for s in seconds]
    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(names) + 0.9))
    bars = axes.barh(names, gains, 0.62, color="#1f6f8b")
    axes.bar_label(bars, fmt="%.1f×", padding=4)
    axes.invert_yaxis()
    axes.axvline(1, color="#888888", linewidth=0.8)
    axes.set_xlabel("times faster than plain PyTorch (the grey line)")
    axes.spines[["top", "right"]].set_visible(False)
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
