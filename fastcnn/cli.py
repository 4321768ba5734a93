"""``python -m fastcnn``: one function for each command."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from . import __version__, _files, _native, available_backends, backends
from . import _trained_cli as use
from ._arguments import count, positive, rate, seed, share
from .backends import cpu
from .backends._fastest import chosen
from .receptive_field import Row
from .stages import DTYPES

_SIZES = {"alexnet": 224, "lenet5": 28}  # of the images that they were published for


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status, 2 for a wrong command line as argparse has it."""
    parser = argparse.ArgumentParser(prog="python -m fastcnn", description="Fused CNN kernels for PyTorch.")
    commands = parser.add_subparsers(metavar="command", required=True)
    _add(commands, info, "versions, backends, hardware")
    checking = _add(commands, check, "try every kernel on a device, each in a process of its own")
    checking.add_argument("--device", default="cpu", help="cpu, or a GPU as cuda:0")
    checking.add_argument("--json", action="store_true", help="rows for a program")
    demonstration = _add(commands, demo, "train LeNet-5 on real digits, then time fused against plain")
    demonstration.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for weights and pictures"
    )
    demonstration.add_argument("--epochs", type=positive, help="passes over the digits")
    demonstration.add_argument("--seed", type=seed, default=0, help="draws split, weights and batches")
    _train_options(_add(commands, train, "train a model on pictures, IDX files or the built-in digits"))
    packing = _add(commands, pack, "decode a folder of pictures once, into an array that train reads")
    packing.add_argument("pictures", type=Path, metavar="SRC", help="folder of pictures, as train's --data")
    packing.add_argument("out", type=Path, metavar="OUT", help="folder for images.npy, labels.npy, pack.json")
    packing.add_argument("--size", type=positive, default=256, help="rows and columns of the packed images")
    packing.add_argument("--workers", type=count, metavar="N", help="processes; default: one a processor")
    packing.add_argument("--skip-bad", action="store_true", help="leave out pictures that can't be read")
    use.evaluate_options(_add(commands, use.evaluate, "how often a trained network is right"))
    use.predict_options(_add(commands, use.predict, "what a trained network answers to pictures"))
    use.export_options(_add(commands, use.export, "write a trained network for other programs"))
    _bench_options(_add(commands, bench, "time fastcnn against what else is installed here"))
    fields = _add(commands, receptive_field, "what part of an image each layer of a model sees")
    fields.add_argument("model", choices=_SIZES, help="the network")
    fields.add_argument("--variant", help="its variant, as in fastcnn.models")
    fields.add_argument("--size", type=positive, help="height and width of the image")
    fields.add_argument("--plot", type=Path, metavar="PNG", help="file to draw the fields into")
    fields.add_argument("--image", type=Path, help="photograph to draw them on")
    args = parser.parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough: head, or a pager that was left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        return 1
    return status


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    run: Callable[[argparse.Namespace], int],
    help: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(run.__name__.replace("_", "-"), help=help, description=help)
    command.set_defaults(run=run)
    return command


def info(args: argparse.Namespace) -> int:
    """Print what a report of a problem should carry."""
    for key, value in _facts():
        print(f"{key}: {value}")
    return 0


def _facts() -> Iterator[tuple[str, str]]:
    yield "fastcnn", __version__
    yield "python", platform.python_version()
    yield "torch", torch.__version__
    yield "triton", _installed("triton")
    for name, reason in available_backends().items():
        yield f"backend {name}", reason or "available"
    if _native.missing_reason() is None:
        for key, value in _native.load().build_info().items():
            yield f"extension {key}", value
    for device in ["cpu", *(f"cuda:{i}" for i in range(len(_gpus())))]:
        yield f"auto on {device}", _taken_by_auto(device)
    for choice in chosen():
        times = ", ".join(f"{way} {time:.3g} ms" for way, time in choice.milliseconds.items())
        yield f"fastest of {', '.join(map(str, choice.key))}", f"{choice.way} ({times})"
    yield "instruction set", torch.backends.cpu.get_cpu_capability()
    last = cpu.prefers_channels_last(torch.bfloat16)
    yield "models in bfloat16", "in channels_last, faster with AMX" if last else "in their input's format"
    yield "threads", str(torch.get_num_threads())
    yield "OpenMP in torch", "yes" if torch.backends.openmp.is_available() else "no"
    yield "GPU", ", ".join(_gpus()) or "none"


def _taken_by_auto(device: str) -> str:
    """The backends that ``auto`` takes on a device, and why not its first choice where that declines."""
    from ._verify import FAMILIES

    taken, lines = set[str](), list[str]()
    formats = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
    kinds = {
        f"{str(dtype)[6:]}, {layout}": (dtype, formats[layout]) for dtype in DTYPES for layout in formats
    }
    for family, stages in FAMILIES.items():
        reasons: dict[str, list[str]] = {}
        for kind, (dtype, format) in kinds.items():
            x = torch.empty(2, 48, 5, 5, dtype=dtype, device=device).contiguous(memory_format=format)
            choice, declined = backends.automatic(x, stages)
            taken.add(backends.name(choice))
            for reason in declined.values():
                reasons.setdefault(reason, []).append(kind)
        for reason, named in reasons.items():
            every = len(named) == len(kinds)
            lines += [f"{family}: {reason}"] if every else [f"{family}, {kind}: {reason}" for kind in named]
    return "\n  ".join([" or ".join(sorted(taken)), *lines])


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _gpus() -> list[str]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_name(i) for i in range(count)]


def check(args: argparse.Namespace) -> int:
    """Try every kernel; 0 if all are right, 1 if one is not, 2 where there is no such device."""
    from .check import run

    return run(args.device, args.json)


def demo(args: argparse.Namespace) -> int:
    """Run the demo; 1 where something is missing or can't be written, 130 on Ctrl-C."""
    from . import demo as demonstration

    try:
        demonstration.run(args.out, args.epochs, args.seed)
    except KeyboardInterrupt:
        print("demo: interrupted; no file is half-written", file=sys.stderr)
        return 130
    except (OSError, ModuleNotFoundError) as error:
        print(f"demo: {_files.message(error)}", file=sys.stderr)
        return 1
    return 0


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


def _train_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--data", required=True, help="folder of class folders, or of IDX files (gzip or not); or: digits")
    add("--out", type=Path, default=Path("run"), help="folder for checkpoint.pt, log.csv, model.safetensors")
    add("--model", choices=_SIZES, help="default: alexnet for pictures, lenet5 for the others")
    add("--variant", help="its variant, as in fastcnn.models")
    add("--norm", choices=("published", "lrn", "batch", "none"), help="alexnet's normalisation")
    add("--towers", type=positive, choices=(1, 2), help="alexnet in one tower of half the width, or in two")
    add(
        "--no-overlap",
        dest="overlap",
        action="store_false",
        default=None,
        help="alexnet's pools side by side",
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
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add(
        "--workers",
        type=count,
        metavar="N",
        help="processes that decode pictures; default: one a processor",
    )
    add(
        "--weights",
        type=Path,
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
    """Train; 1 where that can't be done or go on, 130 on Ctrl-C, 143 on SIGTERM."""
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


def pack(args: argparse.Namespace) -> int:
    """Pack; 1 where that can't be done or go on, 130 on Ctrl-C. The same command goes on after a stop."""
    needs = [name for name in ("numpy", "PIL", "rich") if importlib.util.find_spec(name) is None]
    if needs:
        install = " ".join(needs).replace("PIL", "pillow")
        print(f"pack: needs {install}; install with: pip install {install}", file=sys.stderr)
        return 1
    from .data import pack as packing

    try:
        packing.run(args.pictures, args.out, args.size, args.workers, args.skip_bad)
    except KeyboardInterrupt:
        print("pack: interrupted; the same command goes on", file=sys.stderr)
        return 130
    except (OSError, RuntimeError, ValueError) as error:
        print(f"pack: {_files.message(error)}", file=sys.stderr)
        return 1
    return 0


def _bench_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--quick", action="store_true", help="six cases in minutes, instead of all of them")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--save", type=Path, metavar="JSON", help="file for all of the results")


def bench(args: argparse.Namespace) -> int:
    """Run the benchmark; 1 where something is missing or can't be written, 130 on Ctrl-C."""
    from . import bench as benchmark

    try:
        benchmark.run(args.quick, args.device, args.dtype, args.save)
    except KeyboardInterrupt:
        print("bench: interrupted; what the table has is complete, and saved if asked for", file=sys.stderr)
        return 130
    except (OSError, ModuleNotFoundError, RuntimeError) as error:
        print(f"bench: {_files.message(error)}", file=sys.stderr)
        return 1
    return 0


def receptive_field(args: argparse.Namespace) -> int:
    """Print the table of an untrained model, then draw it if asked to; 1 where that can't be done."""
    from . import models
    from .receptive_field import receptive_field as table_of

    if args.image and not args.plot:
        print("receptive-field: --image needs --plot", file=sys.stderr)
        return 2
    size, variant = args.size or _SIZES[args.model], [args.variant] if args.variant else []
    torch.manual_seed(0)
    try:
        table = table_of(getattr(models, args.model)(*variant), size, measure=args.plot is not None)
        print(table)
        if args.plot:
            _plot(args.plot, args.image, size, " ".join(["an untrained", args.model, *variant]), table)
    except (OSError, ModuleNotFoundError, RuntimeError, ValueError) as error:
        print(f"receptive-field: {_files.message(error)}", file=sys.stderr)
        return 1
    return 0


def _plot(path: Path, photograph: Path | None, size: int, title: str, rows: Sequence[Row]) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("--plot needs matplotlib; install with: pip install matplotlib")
    from . import _field_picture as pictures
    from .demo.pictures import png

    image = pictures.read(photograph, size) if photograph else pictures.leaves(size)
    _files.replace(path, png(pictures.picture(title, rows, image)))
