"""``pack`` and ``train``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import torch

from . import _files, backends
from ._commands import SIZES, count, path, positive, rate, seed, share, told


def pack_options(command: argparse.ArgumentParser) -> None:
    """Adds the options of ``pack``."""
    add = command.add_argument
    add("pictures", type=path, metavar="SRC", help="folder of pictures, as train's --data")
    add("out", type=path, metavar="OUT", help="folder for images.npy, labels.npy, pack.json")
    add("--size", type=positive, default=256, help="rows and columns of the packed images")
    add("--workers", type=count, metavar="N", help="processes; default: one a processor")
    add("--skip-bad", action="store_true", help="leave out pictures that can't be read")


def pack(args: argparse.Namespace) -> int:
    """Runs ``pack``; returns 1 if it fails, 130 on Ctrl-C. The same command continues after a stop."""
    return told("pack", lambda: _pack(args), ["numpy", "pillow", "rich"], "the same command goes on")


def _pack(args: argparse.Namespace) -> None:
    from .data.pack import run

    run(args.pictures, args.out, args.size, args.workers, args.skip_bad)


_RECIPES = (
    "alexnet2012: the paper's: batch 128, 90 epochs, rate 0.01 (divided by 10 after 3 epochs without a lower "
    "test error, at most 3 times), momentum 0.9, weight decay 0.0005, float32; pixels less their mean; "
    "random crops, mirror images, colour noise; the model's own initial weights; tests average 10 crops. "
    "modern: batch 128, 30 epochs, AdamW, rate 0.001 (5 %% warm-up, then a cosine to 0), weight decay 0.05, "
    "label smoothing 0.1, bfloat16; pixels over their standard deviation, too; random crops, mirror images; "
    "torch's initial weights; tests take the middle crop. IDX files and digits are never mirrored, so "
    "alexnet2012 tests them with 5 crops. default: modern"
)
_ACCUMULATE = (
    "compute a step's gradients in N parts, in less memory. Without dropout and batch norms, another N or "
    "another number of processes changes the weights by rounding only; with them, by more: dropout draws "
    "other masks, batch norms see each part, and each process's share, by itself"
)


def train_options(command: argparse.ArgumentParser) -> None:
    """Adds the options of ``train``."""
    add = command.add_argument
    add(
        "--data",
        required=True,
        help="folder of class folders, of IDX files, of ImageNet, or packed; or: digits",
    )
    add("--out", type=path, default=Path("run"), help="folder for weights, checkpoint and logs")
    add("--model", choices=SIZES, help="default: alexnet for pictures, lenet5 for the others")
    add("--variant", help="alexnet: 2012, 2014, caffenet, bvlc; lenet5: relu, caffe, 1998")
    add("--norm", choices=("published", "lrn", "batch", "none"), help="alexnet's normalisation")
    add("--towers", type=positive, choices=(1, 2), help="alexnet in one tower of half the width, or in two")
    add(
        "--no-overlap",
        dest="overlap",
        action="store_false",
        default=None,
        help="alexnet: non-overlapping 2x2 pooling",
    )
    add("--adaptive", action="store_true", default=None, help="average the last maps: images of any size")
    add("--dropout", type=float, help="share that is dropped before dense layers; alexnet's is 0.5")
    add("--size", type=positive, help="height and width of the model's images; the paper's 224 for pictures")
    add(
        "--recipe",
        choices=("alexnet2012", "modern"),
        default="modern",
        help=_RECIPES,
    )
    add(
        "--epochs",
        type=positive,
        help="passes over the images; this and what follows, to --dtype: the recipe's",
    )
    add("--batch", type=positive, help="images in a step, of all processes together")
    add("--rate", type=rate, help="learning rate")
    add("--scale-rate", action="store_true", help="times --batch over the recipe's (Goyal et al. 2017)")
    add("--warm-up", type=share, metavar="SHARE", help="of all steps, in which the rate rises from 0")
    add(
        "--weight-decay", type=share, metavar="SHARE", help="of the weights, as the recipe's optimizer has it"
    )
    add("--smoothing", type=share, metavar="SHARE", help="of the labels, spread over all classes")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the products; weights stay float32")
    add("--accumulate", type=positive, default=1, metavar="N", help=_ACCUMULATE)
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--fused", action="store_true", default=True, help="fastcnn's blocks (default)")
    kind.add_argument("--plain", dest="fused", action="store_false", help="torch's own layers, to compare")
    add(
        "--backend",
        choices=("auto", *backends.BACKENDS),
        default="auto",
        help="what runs fused blocks; auto: the fastest",
    )
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: cuda where there is a GPU; of several processes each has its own",
    )
    add(
        "--workers",
        type=count,
        metavar="N",
        help="processes that decode pictures; default: one a processor",
    )
    add(
        "--weights",
        type=path,
        metavar="FILE",
        help="start from these; if they have other classes, with all but the last layer of them",
    )
    add("--freeze", choices=("features",), help="leave the convolutions' weights as they are")
    add(
        "--keep",
        choices=("best", "last", "all"),
        default="best",
        help="weights beside the last ones, model.safetensors: best.safetensors, none, or all epochs'",
    )
    add("--resume", action="store_true", help="go on from the checkpoint in --out; more --epochs extend it")
    add("--save-every", type=positive, metavar="N", help="steps between checkpoints; one ends each epoch")
    add("--skip-bad", action="store_true", help="leave out images that can't be read, and name them")
    add("--tensorboard", action="store_true", help="write TensorBoard's files, too")
    add("--seed", type=seed, default=0, help="draws weights, batches, crops and dropout")


_MODEL_OPTIONS = ("norm", "towers", "overlap", "adaptive", "dropout")


def train(args: argparse.Namespace) -> int:
    """Runs ``train``; returns 1 if it fails, 130 on Ctrl-C, 143 on SIGTERM."""
    from . import training

    first = os.environ.get("RANK", "0") == "0"  # of several processes, one says that they were stopped
    options = {name: value for name, value in vars(args).items() if name != "run"}
    changes = {name: options.pop(name) for name in _MODEL_OPTIONS}
    options["model_options"] = {
        name: None if value == "none" else value for name, value in changes.items() if value is not None
    }
    try:
        training.run(training.Options(**options))
    except training.Stopped as stopped:
        if first:
            print(f"train: {stopped}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        if first:
            print(
                "train: interrupted; --resume goes on from the last checkpoint, or else anew", file=sys.stderr
            )
        return 130
    except (OSError, ModuleNotFoundError, RuntimeError, ValueError) as error:
        from .training.processes import report

        said = f"train: {_files.message(error)}"
        if report(said):
            print(said, file=sys.stderr)
        return 1
    return 0
