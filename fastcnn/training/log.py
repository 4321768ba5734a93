"""What a training says: a table and a bar in the terminal, log.csv, and TensorBoard's files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import _files
from .loop import Epoch, Training

if TYPE_CHECKING:
    from rich.console import Console

HEADER = "epoch   lr        loss     test loss   top-1 error   top-5 error   images/s   seconds"


def row(epoch: Epoch) -> str:
    """A line under :data:`HEADER`."""
    error5 = "" if epoch.error5 is None else f"{epoch.error5:.2%}"
    return (
        f"{epoch.epoch:5}   {epoch.rate:<8.2g} {epoch.loss:6.4f}   {epoch.test_loss:9.4f}   "
        f"{epoch.error:11.2%}   {error5:>11}   {epoch.images_per_second:8.0f}   {epoch.seconds:7.1f}"
    )


def write_csv(path: Path, history: Sequence[Epoch]) -> None:
    """The whole history, a line for each epoch; whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Epoch._fields)
    writer.writerows(history)
    _files.replace(path, text.getvalue().encode())


def follow(training: Training, out: Path, console: Console, tensorboard: bool) -> None:
    """Run a training to its end, saying how far it is; every process must, and the first one speaks."""
    if training.processes.rank:
        for _ in training.run():
            pass
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    board = _board(out / "tensorboard", training) if tensorboard else None
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(compact=True))
    console.print(HEADER)
    for past in training.history:
        console.print(row(past))
    write_csv(out / "log.csv", training.history)  # now, so that a folder that can't be written to is found
    # Redirected, what the forked workers write would wait for a lock that nobody there lets go of.
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
    with bar as progress:
        task = progress.add_task("", total=training.stop, completed=training.step)
        for epoch in training.run():
            at = f"epoch {len(training.history) + 1}, step {training.step} of {training.stop}"
            progress.update(task, completed=training.step, description=at)
            if epoch:
                console.print(row(epoch))
                write_csv(out / "log.csv", training.history)
                if board:
                    _add(board, epoch)
    if board:
        board.close()


def _board(folder: Path, training: Training):  # type: ignore[no-untyped-def]
    """TensorBoard's writer; what was written after the checkpoint is hidden."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=len(training.history) + 1)


def _add(board, epoch: Epoch) -> None:  # type: ignore[no-untyped-def]
    for name, value in epoch._asdict().items():
        if name != "epoch" and value is not None:
            board.add_scalar(name, value, epoch.epoch)
    board.flush()
