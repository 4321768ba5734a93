"""Training of the models, by one process or by several, see ``python -m fastcnn train --help``."""

from __future__ import annotations

import contextlib
import importlib.util
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _files, backends, models
from ..data import Data, find
from ..data.held import Held
from ..data.pictures import workers
from ..models.lenet1998 import LeNet1998
from . import weights
from .augment import Statistics
from .options import Options, deciding, network
from .stop import Stopped, asked_to_stop

if TYPE_CHECKING:
    from .loop import Training
    from .plan import Plan
    from .processes import Processes

__all__ = ["Options", "Stopped", "run"]

_CHECKPOINT = "checkpoint.pt"


def run(options: Options) -> None:
    """Trains, and writes weights, checkpoint.pt, log.csv and log.jsonl into the folder ``options.out``.

    Meant for a process of its own: it seeds torch's generators, and on a GPU sets
    ``torch.backends.cudnn.benchmark`` until it returns.

    On SIGTERM it writes a checkpoint and raises :class:`Stopped`.

    Raises:
        ModuleNotFoundError, FileNotFoundError: something to install, or the data, is missing.
        OSError: a file can't be written; the checkpoint before stays.
        RuntimeError: damaged data, checkpoint or weights; images that the model or the backend does not take;
            a loss that is no number; another process that writes to ``out``.
        ValueError: an option that the model does not have; a checkpoint in ``out`` without ``resume``.
    """
    _check_needs(options)
    from .graph import tuned
    from .processes import joined

    with joined(options.device) as processes, tuned(processes.device), backends.use_backend(options.backend):
        plan = _plan(options, processes.device)
        alone = _files.held(options.out) if processes.rank == 0 else contextlib.nullcontext()
        with alone, asked_to_stop() as asked:
            _refuse_to_overwrite(options)
            _run(options, plan, processes, asked)


def _run(options: Options, plan: Plan, processes: Processes, asked: Callable[[], bool]) -> None:
    from rich.console import Console

    from .graph import capture
    from .log import written
    from .loop import Training

    console = Console(quiet=processes.rank > 0, soft_wrap=True, highlight=False, markup=False, emoji=False)

    def say(line: str) -> None:
        console.print(_files.shown(line))

    graphs = capture if processes.device.type == "cuda" else None
    training = Training(plan, processes, say, graphs, asked)
    for line in _head(options, training):
        say(line)
    with written(training, options.out, console, options.tensorboard) as write:
        for epoch in training.run():
            write(epoch)
    bad = len(training.unread.reasons)
    if bad:
        say(f"{bad} image{'s' if bad > 1 else ''} could not be read")
    say(f"Weights, log and checkpoint are in {options.out}")
    run, data = shlex.quote(str(options.out)), shlex.quote(options.data)
    command = "python -m fastcnn"
    say(f"Next: {command} evaluate {run} --data {data}, or {command} predict {run} PICTURE...")


def _check_needs(options: Options) -> None:
    needs = ["rich", "safetensors"] + ["tensorboard"] * options.tensorboard
    missing = " ".join(name for name in needs if importlib.util.find_spec(name) is None)
    if missing:
        raise ModuleNotFoundError(f"training needs {missing}; install with: pip install {missing}")


def _plan(options: Options, device: torch.device) -> Plan:
    from .augment import UNIT
    from .plan import Plan

    recipe = options.completed_recipe()
    _refuse_to_overwrite(options)
    if options.out.resolve().is_relative_to(Path(options.data).resolve()) and options.data != "digits":
        raise ValueError(f"--out must not be in --data, but got {options.out} in {options.data}")
    data = find(options.data, options.size)
    if options.backend != "auto" and not options.fused:
        raise ValueError(f"--backend {options.backend} is for fused blocks: --plain has none")
    model, notes = network(options, recipe, data)
    data = data._replace(notes=(*data.notes, *notes))
    try:
        with torch.no_grad():
            model.to(device).eval()(torch.zeros(1, data.channels, data.size, data.size, device=device))
    except RuntimeError as error:
        raise RuntimeError(f"the model does not take {data.size} x {data.size} images: {error}") from error
    if options.out.exists() and not options.out.is_dir():
        raise NotADirectoryError(f"--out must be a folder, but got {options.out}")
    options.out.mkdir(parents=True, exist_ok=True)
    published = isinstance(model, LeNet1998)
    if published:  # takes pixels from 0 to 1, scales them itself, and has a loss of its own
        recipe = replace(recipe, scaled=True, smoothing=0.0)
    return Plan(
        model=model,
        loss=models.map_loss if published else partial(F.cross_entropy, label_smoothing=recipe.smoothing),
        data=data,
        known=UNIT if published else None,
        recipe=recipe,
        settings=deciding(options, recipe, data, model),
        path=options.out / _CHECKPOINT,
        seed=options.seed,
        accumulate=options.accumulate,
        workers=workers(data.train) if options.workers is None else options.workers,
        save_every=options.save_every,
        skip_bad=options.skip_bad,
        frozen=(options.freeze,) if options.freeze else (),
        keep=options.keep,
        write=_weights_writer(options, data, recipe.scaled),
    )


def _refuse_to_overwrite(options: Options) -> None:
    path = options.out / _CHECKPOINT
    if path.exists() and not options.resume:
        raise ValueError(f"{path} is there: --resume goes on from it, another --out starts anew")


def _head(options: Options, training: Training) -> Iterator[str]:
    """Yields lines on what the training will do."""
    data, recipe, count = training.plan.data, training.plan.recipe, training.processes.number
    weights = sum(p.numel() for p in training.model.parameters())
    kind = "fused" if options.fused else "plain"
    yield f"{training.plan.settings['--model']}, {kind}, {weights:,} parameters, {recipe.dtype}"
    yield (
        f"{options.data}: {len(data.train):,} images to train on, {len(data.test):,} to test with, "
        f"{len(data.classes)} classes, {data.size} x {data.size} pixels"
    )
    yield (
        f"recipe {options.recipe}: {recipe.epochs} epochs of {training.steps.per_epoch} steps, "
        f"batch {recipe.batch}{f' shared by {count} processes' if count > 1 else ''}, "
        f"on {training.processes.device}"
    )
    yield from data.notes
    if options.accumulate > 1 and any(isinstance(m, nn.BatchNorm2d) for m in training.model.modules()):
        yield f"batch norms see each of the {options.accumulate} parts of a batch by itself"
    if training.step:
        unused = ", so --weights is not used" if options.weights else ""
        yield f"going on from step {training.step} of {training.stop}{unused}"
    elif options.resume:
        yield f"no checkpoint in {options.out} yet: starting from the beginning"


def _weights_writer(options: Options, data: Data, scaled: bool) -> Callable[..., None]:
    """Writes the model's weights, and with them what its images must be made of."""
    network = {"model": options.kind(data), "variant": options.variant, "options": options.model_options}
    side = data.size if isinstance(data.train, Held) else data.side  # those have zeros around them

    def write(name: str, state: Mapping[str, Tensor], known: Statistics) -> None:
        std = known.std if scaled else torch.ones(1)
        images = {"side": side, "size": data.size, "mean": known.mean.tolist(), "std": std.tolist()}
        weights.save(options.out / name, state, network, data.classes, **images)

    return write
