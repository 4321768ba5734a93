"""What `fastcnn.fuse` does to models that people have: the blocks in them, its time, and how fast they run.

    python bench/public_models.py [-k WORD ...] [--batches 1 8 32] [--quick] [--no-compile] [--minutes 9]
    python bench/public_models.py --find [--why] [-k WORD ...]

Each model runs plain, fused, fused with fold_bn, with batch norms folded once by torch.fx, by torch.compile,
and by torch.compile after fuse with fold_bn: in turns, in inference, outputs compared with plain's first. All
goes to bench/results/public_models.json, from which bench/report.py writes docs/public_models.md. With
--find nothing but fuse itself is timed, and blocks and folds are counted.

The models are those of bench/public_zoo, and torchvision's and timm's where these are installed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import io
import json
import re
import signal
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from public_zoo import Entry, entries
from torch import Tensor, nn
from torch.fx.experimental import optimization

import fastcnn
from fastcnn._commands import quiet
from fastcnn.bench.contenders import Builders, Run, compiled, inferring
from fastcnn.bench.machine import facts
from fastcnn.bench.race import TOLERANCES, Budget, check, reason, take_turns
from fastcnn.measure import quartiles, seconds

RESULTS = Path(__file__).parent / "results" / "public_models.json"
BATCHES = (1, 8, 32)
THOROUGH, QUICK = Budget(7, 3, 30), Budget(3, 0, 0)


class Models(NamedTuple):
    """A model as it is written, fused, and fused with fold_bn."""

    plain: nn.Module
    fused: nn.Module
    folded: nn.Module


def chains(model: nn.Module) -> list[tuple[str, ...]]:
    """Returns the kinds of each chain that fuse found, in evaluation; alone here in knowing fuse's inside."""
    from fastcnn.fusion.fused import Fused, fusions

    forwards = [fusion.forwards.get(False) for fusion in fusions(model)]
    return [kinds for forward in forwards if isinstance(forward, Fused) for kinds, _ in forward.chains]


def fuse(model: nn.Module) -> tuple[Models, dict[str, Any]]:
    """Returns the model with its fused copies; how many blocks and folds these have, and fuse's seconds."""
    models = Models(model, copy.deepcopy(model), copy.deepcopy(model))
    took = {
        "fuse": seconds(lambda: fastcnn.fuse(models.fused)),
        "fold_bn": seconds(lambda: fastcnn.fuse(models.folded, fold_bn=True)),
    }
    folds = sum("bn" in kinds for kinds in chains(models.folded))
    return models, {"blocks": len(chains(models.fused)), "folds": folds, "fuse_seconds": took}


def why(model: nn.Module) -> collections.Counter[str]:
    """Counts the reasons for which `explain` says that calls of a fused model run as written."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        fastcnn.explain(model)
    return collections.Counter(re.findall(r"as written: (.*)", printed.getvalue()))


@contextlib.contextmanager
def limited(end: float) -> Iterator[None]:
    """Raises TimeoutError in the block at that time of the clock, whatever the block makes of it."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(end - time.perf_counter(), 1e-6))
        yield
    except Exception as error:
        if time.perf_counter() < end:
            raise
        raise TimeoutError("the minutes for compiling were over") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def compiled_by(end: float, module: nn.Module, x: Tensor) -> Run:
    """Compiles a copy of the module, if that is done by then."""
    run = inferring(compiled(module), x)
    try:
        with limited(end):
            run()
    except TimeoutError:
        from torch._inductor.async_compile import shutdown_compile_workers

        shutdown_compile_workers()  # which would go on while others are timed
        raise
    return run


def contenders(models: Models, x: Tensor, minutes: float) -> Builders:
    """Returns who computes the model's output for x; plain torch is called "eager", as `check` asks.

    minutes: for compiling; without any, nobody compiles.
    """
    builders: Builders = {
        "eager": partial(inferring, models.plain, x),
        "fuse": partial(inferring, models.fused, x),
        "fold_bn": partial(inferring, models.folded, x),
        "torch.fx": lambda: inferring(optimization.fuse(models.plain), x),
    }
    if minutes:
        end = time.perf_counter() + 60 * minutes
        builders["torch.compile"] = partial(compiled_by, end, models.plain, x)
        builders["fold_bn, torch.compile"] = partial(compiled_by, end, models.folded, x)
    return builders


def timed(builders: Builders, budget: Budget) -> dict[str, Any]:
    """Times the contenders in turns; returns seconds, plain's over each round by round, and who failed."""
    torch._dynamo.reset()
    runs, failed = check(builders, TOLERANCES[torch.float32], lambda _: None)
    rounds = take_turns(runs, failed, budget, seconds, lambda _: None)
    plain = rounds["eager"]
    ratios = {name: [a / b for a, b in zip(plain, took, strict=True)] for name, took in rounds.items()}
    return {
        "seconds": {name: quartiles(took)._asdict() for name, took in rounds.items()},
        "times_faster": {name: quartiles(ratio)._asdict() for name, ratio in ratios.items()},
        # Without the lines of code that a compiler's error quotes, whose paths say nothing elsewhere.
        "failed": {name: re.split(r" from user code| File ", text)[0] for name, text in failed.items()},
    }


def measure(entry: Entry, batches: list[int], budget: Budget, minutes: float, slow: float) -> dict[str, Any]:
    """Returns what the results say of a model.

    minutes: for compiling it, shared by the batches; slow: seconds of plain torch, beyond which a batch is
    left out.
    """
    models, found = fuse(entry.make())
    rows: list[dict[str, Any]] = []
    image = 0.0  # seconds that plain torch took for an image of the batch before
    for batch in sorted(batches):
        if image * batch > slow:
            row: dict[str, Any] = {"left_out": f"a call would take {image * batch:.1f} s"}
        else:
            row = timed(contenders(models, entry.images(batch), minutes / len(batches)), budget)
            image = row["seconds"]["eager"]["median"] / batch
        rows.append({"batch": batch, **row})
    return {"name": entry.name, "image": entry.image, **found, "batches": rows}


def show(model: dict[str, Any]) -> None:
    took = model["fuse_seconds"]["fold_bn"]
    print(f"{model['name']:32} {model['blocks']:3} blocks {model['folds']:3} folds {took:6.2f} s", flush=True)
    for row in model.get("batches", []):
        ratios = [f"{name} {ratio['median']:.2f}" for name, ratio in row.get("times_faster", {}).items()]
        print(f"  batch {row['batch']:2}: {row.get('left_out') or ', '.join(ratios[1:])}", flush=True)


def machine() -> dict[str, Any]:
    """Returns what the results depend on, versions of the packages of models included."""
    about = facts("cpu")
    for package in ("torchvision", "timm"):
        with contextlib.suppress(PackageNotFoundError):
            about["versions"][package] = version(package)
    return about


def find_all(chosen: list[Entry], with_why: bool) -> None:
    """Prints what fuse finds in each model, and in how many it finds anything."""
    found, left = 0, collections.Counter[str]()
    for entry in chosen:
        models, row = fuse(entry.make())
        show({"name": entry.name, **row})
        found += bool(row["blocks"] or row["folds"])
        if with_why:
            left += why(models.folded)
    print(f"blocks or folds found in {found} of {len(chosen)} models")
    for text, count in left.most_common():
        print(f"{count:5} {text}")


def time_all(chosen: list[Entry], args: argparse.Namespace) -> None:
    """Times each model; the file has all that are done, so that a run may be stopped and resumed."""
    out = args.out or (None if args.quick else RESULTS)
    data: dict[str, Any] = {"machine_info": machine(), "minutes": args.minutes, "models": [], "errors": {}}
    if args.resume and out and out.exists():
        data = json.loads(out.read_text())
    done = [model["name"] for model in data["models"]]
    for entry in chosen:
        if entry.name in done:
            continue
        try:
            budget = QUICK if args.quick else THOROUGH
            model = measure(entry, args.batches, budget, args.minutes, args.slow)
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
    parser.add_argument("-k", "--models", nargs="+", metavar="WORD", help="names that have one of these")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--minutes", type=float, default=9, help="for compiling a model, over all batches")
    parser.add_argument(
        "--quick", action="store_true", help="three rounds, and no file unless --out names one"
    )
    parser.add_argument("--slow", type=float, default=4, help="seconds that plain torch may take for a batch")
    parser.add_argument(
        "--no-compile", dest="minutes", action="store_const", const=0, help="the same as --minutes 0"
    )
    parser.add_argument("--resume", action="store_true", help="keep the models that the file has")
    parser.add_argument("--out", type=Path, help="JSON; without --quick bench/results/public_models.json")
    parser.add_argument("--find", action="store_true", help="count blocks and folds, time nothing else")
    parser.add_argument("--why", action="store_true", help="with --find: count why calls are in no block")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = [e for e in entries() if not args.models or any(word in e.name for word in args.models)]
    with quiet():
        if args.find:
            find_all(chosen, args.why)
        else:
            time_all(chosen, args)


if __name__ == "__main__":
    main()
