"""What bench/public_models.py measured, as docs/public_models.md: fuse on models that people have."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from report_cpu import machine, milliseconds, times

COLUMNS = ("fuse", "fold_bn", "torch.fx", "torch.compile", "fold_bn, torch.compile")
SLOWER = 0.97  # plain's time over fuse's, below which a row is listed

Row = dict  # of a model and a batch


def rows(data: dict) -> list[Row]:
    """Returns what was timed, each with its model's name."""
    timed = [{"name": model["name"], **row} for model in data["models"] for row in model["batches"]]
    return [row for row in timed if "seconds" in row]


def gain(row: Row, name: str) -> float:
    return row["times_faster"][name]["median"]


def cell(row: Row, name: str) -> str:
    """Returns how many times as fast as plain; empty for who failed, marked where that may be chance."""
    if name not in row["times_faster"]:
        return ""
    ratio = row["times_faster"][name]
    return "≈ " * (ratio["low"] <= 1 <= ratio["high"]) + times(ratio["median"])


def columns(found: list[Row]) -> list[str]:
    """Returns who has times anywhere; torch.compile may not have been asked for."""
    return [name for name in COLUMNS if any(name in row["times_faster"] for row in found)]


def table(found: list[Row]) -> Iterator[str]:
    names = columns(found)
    yield f"| | batch | plain, ms | {' | '.join(names)} |"
    yield f"|---|--:|--:|{'--:|' * len(names)}"
    for row in found:
        plain = milliseconds(1e3 * row["seconds"]["eager"]["median"])
        cells = " | ".join(cell(row, name) for name in names)
        yield f"| {row['name']} | {row['batch']} | {plain} | {cells} |"
    for batch in sorted({row["batch"] for row in found}):
        cells = " | ".join(mean(found, batch, name) for name in names)
        yield f"| **geometric mean** (of models) | {batch} | | {cells} |"


def mean(found: list[Row], batch: int, name: str) -> str:
    """Returns the geometric mean for a batch size, and of how many models it is."""
    gains = [gain(row, name) for row in found if row["batch"] == batch and name in row["times_faster"]]
    return f"{times(statistics.geometric_mean(gains))} ({len(gains)})" if gains else ""


def slower(row: Row) -> bool:
    return any(name in row["times_faster"] and gain(row, name) < SLOWER for name in ("fuse", "fold_bn"))


def behind_fx(row: Row) -> bool:
    """Returns whether fold_bn is behind torch.fx's fold, its quartiles apart."""
    ratios = row["times_faster"]
    both = "fold_bn" in ratios and "torch.fx" in ratios
    return both and ratios["fold_bn"]["high"] < ratios["torch.fx"]["low"]


def listed(found: list[Row], picks: Callable[[Row], bool]) -> str:
    """Returns how many rows it picks, and a table of them."""
    picked = [row for row in found if picks(row)]
    lines = [f"{len(picked)} of {len(found)}.\n"]
    if picked:
        lines += ["| | batch | fuse | fold_bn | torch.fx |", "|---|--:|--:|--:|--:|"]
    for row in picked:
        cells = " | ".join(cell(row, name) for name in ("fuse", "fold_bn", "torch.fx"))
        lines.append(f"| {row['name']} | {row['batch']} | {cells} |")
    return "\n".join(lines)


def left_out(data: dict) -> Iterator[str]:
    """Yields who has no times, and why: models, batches, contenders."""
    for name, reason in data["errors"].items():
        yield f"- {name}: {reason}"
    for model in data["models"]:
        batches: dict[tuple[str, str], list[str]] = {}
        for row in model["batches"]:
            whole = {"": row["left_out"]} if "left_out" in row else row["failed"]
            for contender, reason in whole.items():
                batches.setdefault((contender, reason), []).append(str(row["batch"]))
        for (contender, reason), sizes in batches.items():
            where = f"{model['name']}, batch {', '.join(sizes)}"
            yield f"- {where}: {contender}{': ' * bool(contender)}{reason}"


def found_in(data: dict) -> Iterator[str]:
    yield "| | blocks | folds | fuse, s | with fold_bn, s |"
    yield "|---|--:|--:|--:|--:|"
    for model in data["models"]:
        took = " | ".join(f"{model['fuse_seconds'][name]:.2f}" for name in ("fuse", "fold_bn"))
        yield f"| {model['name']} | {model['blocks']} | {model['folds']} | {took} |"


def nothing_found(data: dict) -> str:
    names = [model["name"] for model in data["models"] if not (model["blocks"] or model["folds"])]
    return f"{len(names)} of {len(data['models'])}" + (f": {', '.join(names)}." if names else ".")


def packages(data: dict) -> str:
    names = [name for name in ("torchvision", "timm") if name in data["machine_info"]["versions"]]
    return machine(data, *names)


def compiled(found: list[Row]) -> str:
    """Returns of how many models torch.compile was asked, which takes minutes of each."""
    asked = {row["name"] for row in found if "torch.compile" in {*row["times_faster"], *row["failed"]}}
    return f"{len(asked)} of {len({row['name'] for row in found})}"


def page(data: dict) -> str:
    found = rows(data)
    sections = [
        f"""# Models that people have, before and after `fuse`

By `make public` on {packages(data)},
in float32, NCHW, in inference. Images have the models' usual sizes; batch norms have random statistics. The
models named cifar, cifar100, kernelbench and caffe are written in the style of public code
(`bench/public_zoo`).

Plain is the model in eager mode. Each other column is how many times as fast as plain it is, the median of
rounds in which all take turns: `fastcnn.fuse(model)`; `fastcnn.fuse(model, fold_bn=True)`; batch norms folded
once by `torch.fx.experimental.optimization.fuse`; `torch.compile`; `torch.compile` of the model after `fuse`
with fold_bn, of {compiled(found)} models, since it takes minutes of each. ≈ marks ratios whose quartiles are
on both sides of 1. Other empty cells are explained [below](#without-times).
""",
        *table(found),
        f"\n## Slower than {SLOWER} of plain's speed, fused or with fold_bn\n",
        listed(found, slower),
        "\n## fold_bn behind torch.fx's fold\n\nWith quartiles that don't overlap:",
        listed(found, behind_fx),
        "\n## Without blocks and folds\n",
        nothing_found(data),
        "\n## What fuse finds, and its own time\n",
        *found_in(data),
        "\n## Without times\n",
        *(list(left_out(data)) or ["None."]),
    ]
    return "\n".join(sections) + "\n"
