"""Writes docs/public_models.md, from what bench/public_models.py measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from pages import machine, milliseconds, table, times, unsure

COLUMNS = ("fuse", "fold_bn", "torch.fx", "torch.compile", "fold_bn, torch.compile")
OURS = COLUMNS[:3]
SLOWER = 0.97  # plain's time over fuse's, below which a row is listed

Row = dict[str, Any]  # of a model and a batch


def cells(row: Row, names: tuple[str, ...]) -> list[str]:
    """Returns how many times as fast as plain each is; empty for who failed."""
    ratios = row["times_faster"]
    return [unsure(ratios[name]) if name in ratios else "" for name in names]


def all_rows(found: list[Row]) -> Iterator[list[str]]:
    for row in found:
        yield [
            row["name"],
            str(row["batch"]),
            milliseconds(row["seconds"]["eager"]["median"]),
            *cells(row, COLUMNS),
        ]
    for batch in sorted({row["batch"] for row in found}):
        ratios = [row["times_faster"] for row in found if row["batch"] == batch]
        means = [mean([r[name]["median"] for r in ratios if name in r]) for name in COLUMNS]
        yield ["**geometric mean** (of models)", str(batch), "", *means]


def mean(gains: list[float]) -> str:
    return f"{times(statistics.geometric_mean(gains))} ({len(gains)})" if gains else ""


def slower(row: Row) -> bool:
    gains = [row["times_faster"][name]["median"] for name in OURS[:2] if name in row["times_faster"]]
    return min(gains, default=1) < SLOWER


def behind_fx(row: Row) -> bool:
    """Returns whether fold_bn is behind torch.fx's fold, its quartiles apart."""
    ours, fx = (row["times_faster"].get(name) for name in ("fold_bn", "torch.fx"))
    return bool(ours and fx) and ours["high"] < fx["low"]


def listed(found: list[Row], picks: Callable[[Row], bool]) -> str:
    """Returns how many rows it picks, and a table of them."""
    picked = [[row["name"], str(row["batch"]), *cells(row, OURS)] for row in found if picks(row)]
    count = f"{len(picked)} of {len(found)}.\n"
    return "\n".join([count, table(["", "batch", *OURS], picked)] if picked else [count])


def left_out(data: dict) -> Iterator[str]:
    """Yields who has no times, and why: models, batches, contenders."""
    for name, reason in data["errors"].items():
        yield f"- {name}: {reason}"
    for model in data["models"]:
        batches: dict[str, list[str]] = {}
        for row in model["batches"]:
            failed = [f"{name}: {reason}" for name, reason in row.get("failed", {}).items()]
            for told in [row["left_out"]] if "left_out" in row else failed:
                batches.setdefault(told, []).append(str(row["batch"]))
        yield from (f"- {model['name']}, batch {', '.join(of)}: {told}" for told, of in batches.items())


def found_in(data: dict) -> Iterator[list[str]]:
    for model in data["models"]:
        took = [f"{model['fuse_seconds'][name]:.2f}" for name in ("fuse", "fold_bn")]
        yield [model["name"], str(model["blocks"]), str(model["folds"]), *took]


def page(data: dict) -> str:
    """Returns docs/public_models.md."""
    timed = [{"name": model["name"], **row} for model in data["models"] for row in model["batches"]]
    found = [row for row in timed if "seconds" in row]
    asked = {row["name"] for row in found if "torch.compile" in {*row["times_faster"], *row["failed"]}}
    nothing = [model["name"] for model in data["models"] if not (model["blocks"] or model["folds"])]
    sections = [
        f"""# Models that people have, before and after `fuse`

By `make public` on {machine(data, "torchvision", "timm")},
in float32, NCHW, in inference. Images have the models' usual sizes; batch norms have random statistics. The
models named cifar, cifar100, kernelbench and caffe are written in the style of public code
(`bench/public_zoo`).

Plain is the model in eager mode. Each other column is how many times as fast as plain it is, the median of
rounds in which all take turns: `fastcnn.fuse(model)`; `fastcnn.fuse(model, fold_bn=True)`; batch norms folded
once by `torch.fx.experimental.optimization.fuse`; `torch.compile`; `torch.compile` of the model after `fuse`
with fold_bn, of {len(asked)} of {len({row["name"] for row in found})} models, since it takes minutes of each.
≈ marks ratios whose quartiles are on both sides of 1. Other empty cells are explained
[below](#without-times).
""",
        table(["", "batch", "plain, ms", *COLUMNS], all_rows(found)),
        f"\n## Slower than {SLOWER} of plain's speed, fused or with fold_bn\n",
        listed(found, slower),
        "\n## fold_bn behind torch.fx's fold\n\nWith quartiles that don't overlap:",
        listed(found, behind_fx),
        "\n## Without blocks and folds\n",
        f"{len(nothing)} of {len(data['models'])}" + (f": {', '.join(nothing)}." if nothing else "."),
        "\n## What fuse finds, and its own time\n",
        table(["", "blocks", "folds", "fuse, s", "with fold_bn, s"], found_in(data)),
        "\n## Without times\n",
        *(list(left_out(data)) or ["None."]),
    ]
    return "\n".join(sections) + "\n"
