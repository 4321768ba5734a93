"""``evaluate``, ``predict``, ``export``: what is done with a trained network."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import _files
from ._commands import count, positive, told
from ._commands import path as a_path

if TYPE_CHECKING:
    from .training.evaluate import Evaluation
    from .training.trained import Trained


def evaluate_options(command: argparse.ArgumentParser) -> None:
    """Adds the options of ``evaluate``."""
    add = command.add_argument
    add(
        "trained",
        type=a_path,
        metavar="RUN",
        help="the --out folder of a training, or a weights file; or: imagenet",
    )
    add("--data", required=True, help="as for train; its test images are used")
    add(
        "--crops",
        type=int,
        choices=(1, 10),
        default=1,
        help="the centre crop, or the average over the paper's ten crops",
    )
    add("--confusion", type=a_path, metavar="PNG", help="PNG file for the confusion matrix")
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add(
        "--workers",
        type=count,
        metavar="N",
        help="processes that decode pictures; default: one per processor",
    )
    add("--skip-bad", action="store_true", help="skip images that can't be read")
    add("--json", action="store_true", help="print JSON")


def evaluate(args: argparse.Namespace) -> int:
    """Prints errors and loss on the test images; returns 1 if it fails."""
    return told("evaluate", lambda: _evaluate(args), ["safetensors", *["matplotlib"] * bool(args.confusion)])


def _evaluate(args: argparse.Namespace) -> int:
    from .data import find
    from .data.pictures import workers
    from .training import evaluate as evaluation
    from .training import weights

    if args.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("--device cuda: torch sees no GPU")
    if args.confusion:
        _files.check_not_an_input("--confusion", args.confusion, [weights.usable(args.trained)])
        if args.confusion.resolve().is_relative_to(Path(args.data).resolve()):
            raise ValueError(f"--confusion must not be in --data, but got {args.confusion} in {args.data}")
    network = _network(args.trained)
    data = find(args.data, network.size, network.side)
    processes = workers(data.test) if args.workers is None else args.workers
    device = torch.device(args.device)
    found = evaluation.evaluate(network, data, device, processes, args.crops == 10, args.skip_bad)
    if args.confusion:
        from .demo.pictures import png
        from .training._figures import confusion

        title = f"{found.scores.error:.2%} of {found.images:,} images are taken for another class"
        _files.replace(args.confusion, png(confusion(title, found, network.classes)))
    if args.json:
        told = {"images": found.images, **found.scores._asdict(), "classes": network.classes}
        print(json.dumps({**told, "confusion": found.confusion.tolist(), "unread": found.unread}))
    else:
        print("\n".join([*map(_files.shown, data.notes), *_lines(network, found)]))
    return 0


def _lines(network: Trained, found: Evaluation) -> list[str]:
    error5 = "" if found.scores.error5 is None else f", top-5 error {found.scores.error5:.2%}"
    lines = [
        f"{network.name}: {found.images:,} images, {len(network.classes)} classes",
        f"top-1 error {found.scores.error:.2%}{error5}, loss {found.scores.loss:.4f}",
    ]
    lines += [f"left out: {_files.shown(path)}: {_files.shown(why)}" for path, why in found.unread.items()]
    for i, j, times in found.mistakes()[:3]:
        of = int(found.confusion[i].sum())
        names = (_files.shown(network.classes[k]) for k in (i, j))
        lines.append("{} is taken for {}: {} of {}".format(*names, times, of))
    return lines


def predict_options(command: argparse.ArgumentParser) -> None:
    """Adds the options of ``predict``."""
    command.usage = "%(prog)s [-h] [--top N] [--json] [--sheet PNG] [RUN] PICTURE ..."
    add = command.add_argument
    add(
        "paths",
        type=a_path,
        nargs="+",
        metavar="PICTURE",
        help="files of pictures, after RUN: a training's --out, or a file of its weights. Without RUN it is "
        "torchvision's AlexNet of ImageNet, which is downloaded once",
    )
    add("--top", type=positive, default=5, metavar="N", help="number of answers")
    add("--json", action="store_true", help="print JSON")
    add("--sheet", type=a_path, metavar="PNG", help="PNG file of the pictures and their answers")


def predict(args: argparse.Namespace) -> int:
    """Prints the best answers to each picture; returns 1 if the network or a picture can't be read."""
    return told(
        "predict", lambda: _predict(args), ["safetensors", "pillow", *["matplotlib"] * bool(args.sheet)]
    )


def _predict(args: argparse.Namespace) -> int:
    from .data.folders import is_picture
    from .training import trained, weights

    first = args.paths[0]
    given = first.is_dir() or not is_picture(first.name)
    pictures = args.paths[1:] if given else args.paths
    if not pictures:
        raise ValueError(f"needs a picture, but got {first} alone")
    if not given and not any(path.is_file() for path in pictures):  # before a download
        raise FileNotFoundError(f"{first}: there is no such file")
    if args.sheet:
        _files.check_not_an_input("--sheet", args.sheet, [*pictures, weights.usable(first)])
    network = trained.load(first) if given else trained.published()
    answered = list[tuple[Path, list[tuple[str, float]]]]()
    for path in pictures:
        try:
            answers = trained.best(network.classes, network.answers(path), args.top)
        except Exception as error:  # decoders fail on damaged files in as many ways as there are formats
            print(f"predict: can't read {_files.shown(path)}: {_files.message(error)}", file=sys.stderr)
            continue
        answered.append((path, answers))
        if not args.json:
            print(trained.table(path, answers), flush=True)
    if args.json:
        rows = [
            {"picture": str(path), "answers": [{"class": name, "probability": p} for name, p in answers]}
            for path, answers in answered
        ]
        print(json.dumps(rows, indent=1))
    if args.sheet and answered:
        from .demo.pictures import png
        from .training._figures import sheet

        _files.replace(args.sheet, png(sheet(f"What {network.name} answers", answered)))
    return 0 if len(answered) == len(pictures) else 1


def export_options(command: argparse.ArgumentParser) -> None:
    """Adds the options of ``export``."""
    add = command.add_argument
    add("trained", type=a_path, metavar="RUN", help="the --out folder of a training, or a weights file")
    add("--to", choices=("onnx", "pt2", "safetensors"), required=True, help="pt2: torch.export's")
    add("--out", type=a_path, metavar="FILE", help="default: model.onnx or model.pt2, in RUN's folder")


def export(args: argparse.Namespace) -> int:
    """Writes the file, and says how it was checked; returns 1 if it fails."""
    return told("export", lambda: _export(args), ["safetensors", *["onnxscript"] * (args.to == "onnx")])


def _export(args: argparse.Namespace) -> int:
    from .training import weights
    from .training.export import export

    out = args.out or (args.trained if args.trained.is_dir() else args.trained.parent) / f"model.{args.to}"
    if args.to == "safetensors" and args.out is None:
        raise ValueError("--to safetensors needs --out: a run has such files already")
    _files.check_not_an_input("--out", out, [weights.usable(args.trained)])
    checked = export(args.trained, args.to, out)
    print(f"{out}: from pixels, 0 to 255, to probabilities; {checked}")
    return 0


def _network(run: Path) -> Trained:
    from .training import trained

    return trained.published() if str(run) == "imagenet" and not run.exists() else trained.load(run)
