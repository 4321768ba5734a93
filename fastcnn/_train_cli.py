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
    add("--workers", type=count, metavar="N", help="number of processes; default: one per processor")
    add("--skip-bad", action="store_true", help="skip pictures that can't be read")


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
    "accumulate a step's gradients over N parts, in less memory. Without dropout and batch norms, N and the "
    "number of processes change the weights by rounding only. With them by more: dropout draws other masks, "
    "and batch norms see each part alone"
)


def train_options(command: argparse.ArgumentParser) -> None:
    """Adds the options of ``train``."""
    add = command.add_argument
    add(
        "--data",
        required=True,
        help="folder of class folders, of IDX files, of ImageNet, or by pack; or: digits",
    )
    add("--out", type=path, default=Path("run"), help="folder for weights, checkpoint and logs")
    add("--model", choices=SIZES, help="default: alexnet for pictures, lenet5 for IDX files and digits")
    add("--variant", help="alexnet: 2012, 2014, caffenet, bvlc; lenet5: relu, caffe, 1998")
    add("--norm", choices=("published", "lrn", "batch", "none"), help="alexnet's normalisation")
    add("--towers", type=positive, choices=(1, 2), help="alexnet: one tower of half the width, or two")
    add(
        "--no-overlap",
        dest="overlap",
        action="store_false",
        default=None,
        help="alexnet: non-overlapping 2x2 pooling",
    )
    add("--adaptive", action="store_true", default=None, help="adaptive average pooling: images of any size")
    add("--dropout", type=float, help="dropout probability before dense layers; alexnet: 0.5")
    add("--size", type=positive, help="height and width of the crops; for pictures 224, as in the paper")
    add("--recipe", choices=("alexnet2012", "modern"), default="modern", help=_RECIPES)
    add(
        "--epochs",
        type=positive,
        help="passes over the training set; default, as of the options down to --dtype: the recipe's",
    )
    add("--batch", type=positive, help="images per step, over all processes")
    add("--rate", type=rate, help="learning rate")
    add("--scale-rate", action="store_true", help="scale the learning rate with --batch (Goyal et al. 2017)")
    add("--warm-up", type=share, metavar="SHARE", help="share of the steps with a rising learning rate")
    add("--weight-decay", type=share, metavar="SHARE", help="weight decay of the recipe's optimizer")
    add("--smoothing", type=share, metavar="SHARE", help="label smoothing")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the arithmetic; weights stay float32")
    add("--accumulate", type=positive, default=1, metavar="N", help=_ACCUMULATE)
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--fused", action="store_true", default=True, help="fastcnn's blocks (default)")
    kind.add_argument("--plain", dest="fused", action="store_false", help="torch's own layers, to compare")
    add(
        "--backend",
        choices=("auto", *backends.BACKENDS),
        default="auto",
        help="backend of fused blocks; auto: the fastest",
    )
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: cuda where there is a GPU",
    )
    add(
        "--workers",
        type=count,
        metavar="N",
        help="processes that decode pictures; default: one per processor",
    )
    add(
        "--weights",
        type=path,
        metavar="FILE",
        help="initial weights; of other classes: all but the last layer",
    )
    add("--freeze", choices=("features",), help="don't train the convolutions")
    add(
        "--keep",
        choices=("best", "last", "all"),
        default="best",
        help="weights to keep besides the last epoch's: the best, none, or all epochs'",
    )
    add("--resume", action="store_true", help="continue from the checkpoint in --out")
    add("--save-every", type=positive, metavar="N", help="steps between checkpoints, besides each epoch's")
    add("--skip-bad", action="store_true", help="skip images that can't be read, and name them")
    add("--tensorboard", action="store_true", help="also write TensorBoard's files")
    add("--seed", type=seed, default=0, help="of the random weights, batches, crops and dropout")


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
