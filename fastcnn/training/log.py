"""Writes a training's table, its numbers while it runs, log.csv, log.jsonl, and TensorBoard's files."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .. import _files
from .live import Watch
from .loop import Training
from .plan import Epoch

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

EVERY = 10.0  # seconds between moments in log.jsonl, and between lines where there is no terminal
_REFRESH = 2.0  # seconds, in a terminal
_WIDE = 140  # columns that have room for a bar
HEADER = "epoch   lr        loss     test loss   top-1 error   top-5 error   images/s   seconds"


def row(epoch: Epoch) -> str:
    """Returns an epoch as a line under :data:`HEADER`."""
    error5 = "" if epoch.error5 is None else f"{epoch.error5:.2%}"
    return (
        f"{epoch.epoch:5}   {epoch.rate:<8.2g} {epoch.loss:6.4f}   {epoch.test_loss:9.4f}   "
        f"{epoch.error:11.2%}   {error5:>11}   {epoch.images_per_second:8.0f}   {epoch.seconds:7.1f}"
    )


def write_csv(path: Path, history: Sequence[Epoch]) -> None:
    """Writes the whole history, a line for each epoch; whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Epoch._fields)
    writer.writerows(history)
    _files.replace(path, text.getvalue().encode())


def _json(values: Mapping[str, Any]) -> str:
    """Returns a line; null for a number that JSON does not have."""
    infinite = {name: None for name, v in values.items() if isinstance(v, float) and not math.isfinite(v)}
    return json.dumps({**values, **infinite}) + "\n"


def _past(path: Path, training: Training) -> Iterator[dict[str, Any]]:
    """Yields the file's records up to the checkpoint, without a torn line."""
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            values = json.loads(line)
            if values["step"] <= training.step and "test_loss" not in values:
                yield values
        except (ValueError, TypeError, KeyError):
            continue


def _epoch(epoch: Epoch, training: Training) -> dict[str, Any]:
    return {"step": epoch.epoch * training.steps.per_epoch, **epoch._asdict()}


def _opened(path: Path, training: Training) -> IO[str]:
    """Opens log.jsonl to append, each line written at once, cut to the checkpoint's epochs."""
    past = [*_past(path, training), *(_epoch(epoch, training) for epoch in training.history)]
    _files.replace(path, "".join(map(_json, sorted(past, key=lambda values: values["step"]))).encode())
    return path.open("a", buffering=1)


def _bar(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    step = TextColumn("{task.description}")
    numbers = TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=False))
    columns = (step, BarColumn(20), numbers) if console.width >= _WIDE else (step, numbers)
    return Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        # Redirected, what the forked workers write would wait for a lock that nobody there lets go of.
        redirect_stdout=False,
        redirect_stderr=False,
    )


@contextlib.contextmanager
def written(
    training: Training, out: Path, console: Console, tensorboard: bool
) -> Iterator[Callable[[Epoch | None], None]]:
    """Yields a function that writes what ``training.run()`` yields; only the first process writes."""
    if training.processes.rank:
        yield lambda epoch: None
        return
    board = _board(out / "tensorboard", training) if tensorboard else contextlib.nullcontext()
    console.print(HEADER)
    for past in training.history:
        console.print(row(past))
    write_csv(out / "log.csv", training.history)  # now, so that a folder that can't be written to is found
    lines, live = Watch(training, EVERY), Watch(training, _REFRESH)
    with board, _opened(out / "log.jsonl", training) as file, _bar(console) as progress:
        task = progress.add_task("", total=training.stop, completed=training.step, numbers="")

        def write(epoch: Epoch | None) -> None:
            at = f"epoch {len(training.history) + (not epoch)}, step {training.step} of {training.stop}"
            progress.update(task, completed=training.step, description=at)
            if moment := live.look(epoch):
                progress.update(task, numbers=live.text(moment))
            if moment := lines.look(epoch):
                file.write(_json(moment._asdict()))
                if not console.is_terminal:
                    console.print(": ".join(filter(None, (at, lines.text(moment)))))
            if epoch:
                console.print(row(epoch))
                write_csv(out / "log.csv", training.history)
                file.write(_json(_epoch(epoch, training)))
                if tensorboard:
                    _add(board, epoch)

        yield write


def _board(folder: Path, training: Training):  # type: ignore[no-untyped-def]
    """Returns TensorBoard's writer; what was written after the checkpoint is hidden."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=len(training.history) + 1)


def _add(board, epoch: Epoch) -> None:  # type: ignore[no-untyped-def]
    for name, value in epoch._asdict().items():
        if name != "epoch" and value is not None:
            board.add_scalar(name, value, epoch.epoch)
    board.flush()
