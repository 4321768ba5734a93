"""``python -m fastcnn``: one function for each command."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from . import __version__, _factory, _files, _native, _torch_private, available_backends, backends
from . import _train_cli as fit
from . import _trained_cli as use
from ._commands import SIZES, path, positive, seed, shape, told
from .backends import cpu
from .backends._fastest import chosen
from .receptive_field import Row
from .stages import DTYPES


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="python -m fastcnn", description="Fused CNN kernels for PyTorch.")
    parser.add_argument("--version", action="version", version=f"fastcnn {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    facts = _add(commands, info, "versions, backends, hardware")
    facts.add_argument("--json", action="store_true", help="print JSON")
    checking = _add(commands, check, "try every kernel on a device, each in a process of its own")
    checking.add_argument("--device", default="cpu", help="cpu, or a GPU as cuda:0")
    checking.add_argument("--json", action="store_true", help="print JSON")
    demonstration = _add(commands, demo, "train LeNet-5 on real digits, then time fused against plain")
    demonstration.add_argument(
        "--out", type=path, default=Path("demo"), help="folder for weights and pictures"
    )
    demonstration.add_argument("--epochs", type=positive, help="passes over the digits")
    demonstration.add_argument("--seed", type=seed, default=0, help="draws split, weights and batches")
    fit.pack_options(
        _add(commands, fit.pack, "decode a folder of pictures once, into an array that train reads")
    )
    fit.train_options(
        _add(commands, fit.train, "train a model on pictures, IDX files or the built-in digits")
    )
    use.evaluate_options(_add(commands, use.evaluate, "test a trained network: top-1 and top-5 error"))
    use.predict_options(_add(commands, use.predict, "classify pictures by a trained network"))
    use.export_options(
        _add(commands, use.export, "export a trained network: ONNX, torch.export or safetensors")
    )
    _bench_options(_add(commands, bench, "time fastcnn against PyTorch and other installed runtimes"))
    _receptive_field_options(
        _add(commands, receptive_field, "print and draw the receptive fields of a model's layers")
    )
    args = parser.parse_args(argv)
    try:
        with _any_terminal():
            status: int = args.run(args)
            print(end="", flush=True)
    except BrokenPipeError:  # whoever read the output has seen enough: head, or a pager that was left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        return 1
    return status


@contextlib.contextmanager
def _any_terminal() -> Iterator[None]:
    """Prints "?" for characters that the terminal's encoding lacks, instead of failing: × in ASCII."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    run: Callable[[argparse.Namespace], int],
    help: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(run.__name__.replace("_", "-"), help=help, description=help)
    command.set_defaults(run=run)
    return command


def info(args: argparse.Namespace) -> int:
    """Prints what a bug report should contain."""
    facts = dict(_facts())
    print(json.dumps(facts, indent=1) if args.json else "\n".join(f"{k}: {v}" for k, v in facts.items()))
    return 0


def _facts() -> Iterator[tuple[str, str]]:
    yield "fastcnn", __version__
    yield "python", platform.python_version()
    yield "torch", torch.__version__
    if _torch_private.missing:
        yield "missing in torch", f"{', '.join(_torch_private.missing)}: some calls take longer"
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
    """Returns which backends ``auto`` uses on a device, and why its first choice declines."""
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
    """Tries every kernel; returns 0 if all are right, 1 if one is not, 2 without such a device."""
    from .check import run

    return run(args.device, args.json)


def demo(args: argparse.Namespace) -> int:
    """Runs the demo; returns 1 if it fails, 130 on Ctrl-C."""
    from . import demo as demonstration

    run = partial(demonstration.run, args.out, args.epochs, args.seed)
    return told("demo", run, interrupted="no file is half-written")


_FACTORY = "package.module:function that makes a model of yours, found from this folder"


def _bench_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("model", nargs="?", help=f"{_FACTORY}; without, fastcnn's own layers and models")
    add("--shape", type=shape, metavar="N,C,H,W", help="of the model's input")
    add("--quick", action="store_true", help="six cases in minutes, instead of all of them")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--save", type=path, metavar="JSON", help="JSON file for the results")


def bench(args: argparse.Namespace) -> int:
    """Runs the benchmark; returns 1 if it fails, 130 on Ctrl-C."""
    from . import bench as benchmark

    if (args.model is None) != (args.shape is None):
        print("bench: a model and --shape go together", file=sys.stderr)
        return 2
    options = benchmark.Options(args.quick, args.device, args.dtype, args.model, args.shape or ())
    run = partial(benchmark.run, options, args.save)
    return told("bench", run, interrupted="what the table has is complete, and saved if asked for")


def _receptive_field_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("model", help=f"{' or '.join(SIZES)}, or {_FACTORY}")
    add("--variant", help="of alexnet or lenet5, as in fastcnn.models")
    add("--size", type=positive, help="height and width of the image")
    add("--shape", type=shape, metavar="1,C,H,W", help="of the image, instead of --size")
    add("--plot", type=path, metavar="PNG", help="picture file for the fields")
    add("--image", type=path, help="photograph to draw them on")


def receptive_field(args: argparse.Namespace) -> int:
    """Prints the table of an untrained model, then draws it if asked to; returns 1 if it fails."""
    if problem := _problem(args):
        print(f"receptive-field: {problem}", file=sys.stderr)
        return 2
    return told("receptive-field", lambda: _receptive_field(args))


def _problem(args: argparse.Namespace) -> str | None:
    if args.image and not args.plot:
        return "--image needs --plot"
    if args.size and args.shape:
        return "--size and --shape exclude each other"
    if args.shape and (len(args.shape) != 4 or args.shape[0] != 1):
        return f"--shape must be 1,C,H,W, but got {','.join(map(str, args.shape))}"
    if args.shape and args.plot and args.shape[2] != args.shape[3]:
        return "--plot needs a square image"
    if args.model in SIZES:
        return None
    if args.variant:
        return f"--variant is for {' and '.join(SIZES)}"
    return None if args.size or args.shape else f"{args.model} needs --shape"


def _receptive_field(args: argparse.Namespace) -> None:
    from . import models
    from .receptive_field import receptive_field as table_of

    torch.manual_seed(0)
    if args.model in SIZES:
        variant = [args.variant] if args.variant else []
        model = getattr(models, args.model)(*variant)
        title = " ".join(["an untrained", args.model, *variant])
    else:
        model, title = _factory.load(args.model), args.model
    shape = args.shape[1:] if args.shape else 2 * [args.size or SIZES[args.model]]
    table = table_of(model, shape, measure=args.plot is not None)
    print(table)
    if args.plot:
        _plot(args.plot, args.image, shape[-1], title, table)


def _plot(path: Path, photograph: Path | None, size: int, title: str, rows: Sequence[Row]) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("--plot needs matplotlib; install with: pip install matplotlib")
    from .demo.pictures import png
    from .receptive_field import plot

    image = plot.read(photograph, size) if photograph else plot.leaves(size)
    _files.replace(path, png(plot.picture(title, rows, image)))
