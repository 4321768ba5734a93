"""Measures what `fastcnn.fuse` does to public models: blocks found, time to fuse, speed.

    python bench/public_models.py [-k WORD ...] [--batches 1 8 32] [--compile] [--quick] [--resume]
    python bench/public_models.py --find [-k WORD ...]

Each model runs plain, fused, fused with fold_bn and with batch norms folded once by torch.fx; with --compile,
which takes minutes a model, by torch.compile too, plain and after fuse with fold_bn. They take turns, in
inference, outputs compared with plain's first. All goes to bench/results/public_models.json, from which
bench/report.py writes docs/public_models.md. With --find nothing but fuse itself is timed, and blocks and
folds are counted.

The models are those of bench/public_zoo, and torchvision's and timm's where these are installed.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from public_zoo import Entry, entries
from torch import nn
from torch.fx.experimental import optimization

import fastcnn
from fastcnn._commands import quiet
from fastcnn.bench.contenders import Builders, compiled, inferring
from fastcnn.bench.machine import facts
from fastcnn.bench.race import TOLERANCES, check
from fastcnn.measure import Budget, in_turns, quartiles, ratio, reason, seconds

RESULTS = Path(__file__).parent / "results" / "public_models.json"
BATCHES = (1, 8, 32)
SLOW = 4  # seconds; larger batches are left out
THOROUGH, QUICK = Budget(7, 3, 30, rest=0.01), Budget(3)
Row = dict[str, Any]


def chains(model: nn.Module) -> list[tuple[str, ...]]:
    """Returns the kinds of each chain that fuse found, in evaluation; alone here in knowing fuse's inside."""
    from fastcnn.fusion.fused import Fused, fusions

    forwards = [fusion.forwards.get(False) for fusion in fusions(model)]
    return [kinds for forward in forwards if isinstance(forward, Fused) for kinds, _ in forward.chains]


def fuse(plain: nn.Module) -> tuple[nn.Module, nn.Module, Row]:
    """Returns fused copies, without and with fold_bn; their blocks and folds, and fuse's seconds."""
    fused, folded = copy.deepcopy(plain), copy.deepcopy(plain)
    took = {
        "fuse": seconds(lambda: fastcnn.fuse(fused), least=0),
        "fold_bn": seconds(lambda: fastcnn.fuse(folded, fold_bn=True), least=0),
    }
    folds = sum("bn" in kinds for kinds in chains(folded))
    return fused, folded, {"blocks": len(chains(fused)), "folds": folds, "fuse_seconds": took}


def timed(builders: Builders, budget: Budget) -> Row:
    """Times the contenders in turns; returns seconds, plain's over each round by round, and who failed."""
    torch.compiler.reset()
    runs, failed = check(builders, TOLERANCES[torch.float32])
    taken = in_turns(runs, budget, failed=failed)
    return {
        "seconds": {name: quartiles(each)._asdict() for name, each in taken.items()},
        "times_faster": {name: ratio(taken["eager"], each)._asdict() for name, each in taken.items()},
        # Without the lines of code that a compiler's error quotes, whose paths say nothing elsewhere.
        "failed": {name: re.split(r" from user code| File ", text)[0] for name, text in failed.items()},
    }


def measure(entry: Entry, batches: list[int], budget: Budget, compile: bool, slow: float = SLOW) -> Row:
    """Returns what the results say of a model; slow: seconds that plain torch may take for a batch."""
    plain = entry.make()
    fused, folded, found = fuse(plain)
    rows: list[Row] = []
    image = 0.0  # seconds that plain torch took for an image of the batch before
    for batch in sorted(batches):
        if image * batch > slow:
            rows.append({"batch": batch, "left_out": f"a call would take {image * batch:.1f} s"})
            continue
        x = entry.images(batch)
        builders: Builders = {
            "eager": partial(inferring, plain, x),
            "fuse": partial(inferring, fused, x),
            "fold_bn": partial(inferring, folded, x),
            "torch.fx": lambda x=x: inferring(optimization.fuse(plain), x),
        }
        if compile:
            builders["torch.compile"] = lambda x=x: inferring(compiled(plain), x)
            builders["fold_bn, torch.compile"] = lambda x=x: inferring(compiled(folded), x)
        rows.append({"batch": batch, **timed(builders, budget)})
        image = rows[-1]["seconds"]["eager"]["median"] / batch
    return {"name": entry.name, "image": entry.image, **found, "batches": rows}


def show(model: Row) -> None:
    took = model["fuse_seconds"]["fold_bn"]
    print(f"{model['name']:32} {model['blocks']:3} blocks {model['folds']:3} folds {took:6.2f} s", flush=True)
    for row in model.get("batches", []):
        ratios = [f"{name} {each['median']:.2f}" for name, each in row.get("times_faster", {}).items()]
        print(f"  batch {row['batch']:2}: {row.get('left_out') or ', '.join(ratios[1:])}", flush=True)


def find_all(chosen: list[Entry]) -> None:
    """Prints what fuse finds in each model, and in how many it finds anything."""
    found = 0
    for entry in chosen:
        *_, row = fuse(entry.make())
        show({"name": entry.name, **row})
        found += bool(row["blocks"] or row["folds"])
    print(f"blocks or folds found in {found} of {len(chosen)} models")


def time_all(chosen: list[Entry], args: argparse.Namespace) -> None:
    """Times each model; the file has all that are done, so that a run may be stopped and resumed."""
    out = args.out or (None if args.quick else RESULTS)
    about = facts("cpu", "torchvision", "timm")
    data: Row = {"machine_info": about, "models": [], "errors": {}}
    if args.resume and out and out.exists():
        data = json.loads(out.read_text())
    done = [model["name"] for model in data["models"]]
    for entry in chosen:
        if entry.name in done:
            continue
        try:
            model = measure(entry, args.batches, QUICK if args.quick else THOROUGH, args.compile)
        except Exception as error:
            data["errors"][entry.name] = reason(error)
            print(f"{entry.name}: {reason(error)}")
        else:
            data["models"].append(model)
            data["errors"].pop(entry.name, None)
            show(model)
        if out:
            out.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("-k", "--models", nargs="+", metavar="WORD", help="names that have one of these")
    add("--batches", nargs="+", type=int, default=list(BATCHES))
    add("--compile", action="store_true", help="time torch.compile, too")
    add("--quick", action="store_true", help="three rounds, and no file unless --out names one")
    add("--resume", action="store_true", help="keep the models that the file has")
    add("--out", type=Path, help="JSON; without --quick bench/results/public_models.json")
    add("--find", action="store_true", help="count blocks and folds, time nothing else")
    args = parser.parse_args()
    chosen = [e for e in entries() if not args.models or any(word in e.name for word in args.models)]
    with quiet():
        find_all(chosen) if args.find else time_all(chosen, args)


if __name__ == "__main__":
    main()
