"""The demo: trains LeNet-5 on real digits, draws what it learned, times fused against plain."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from rich.console import Console

    from ..models._blocks import ConvNet
    from .data import Split
    from .train import Epoch

NEEDS = ("numpy", "matplotlib", "rich", "safetensors")


def check_needs() -> None:
    """Raises ModuleNotFoundError, with the command that installs them, where packages are missing."""
    missing = " ".join(name for name in NEEDS if importlib.util.find_spec(name) is None)
    if missing:
        raise ModuleNotFoundError(f"the demo needs {missing}; install with: pip install {missing}")


def run(out: Path, epochs: int | None = None, seed: int = 0) -> None:
    """Weights and pictures go to the folder ``out``, the table to the terminal.

    Raises:
        ModuleNotFoundError, FileNotFoundError: something to install is missing.
        OSError: ``out`` can't be written to.
    """
    check_needs()
    from rich.console import Console

    from .. import models
    from . import data, train

    console = Console()
    images, labels = data.read(data.find_file())
    out.mkdir(parents=True, exist_ok=True)
    digits = data.split(images, labels, seed)
    torch.manual_seed(seed)
    model = cast("ConvNet", models.lenet5(dropout=train.DROPOUT))
    history = _fit(console, model, digits, epochs or train.EPOCHS, seed)
    train.save(model, out / "lenet5.safetensors")
    _draw(model, digits, history, seed, out)
    console.print(f"Weights and pictures are in {out}", markup=False, soft_wrap=True)
    _compare(console)


def _fit(console: Console, model: ConvNet, digits: Split, epochs: int, seed: int) -> list[Epoch]:
    """Trains, with a progress bar."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from . import train

    columns = (
        "{task.description}",
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("LeNet-5 on MNIST", total=epochs, state="")

        def after(epoch: Epoch) -> None:
            state = f"loss {epoch.loss:.3f}, test accuracy {epoch.accuracy:.1%}"
            progress.update(task, advance=1, state=state)

        return train.fit(model, digits, epochs, seed, after)


def _draw(model: ConvNet, digits: Split, history: list[Epoch], seed: int, out: Path) -> None:
    """Draws digits.png, filters.png and training.png."""
    from .. import _files
    from . import pictures, train

    images, labels = digits.test_images, digits.test_labels
    probabilities = train.predict(model, images)
    first, sample = model.features[0], images[labels == 4][0]
    with torch.no_grad():
        maps = first(sample)
    figures = {
        "digits": pictures.digits(images, labels, probabilities, seed),
        "filters": pictures.filters(first.get_parameter("weight").detach(), sample, maps),
        "training": pictures.training(history),
    }
    for name, figure in figures.items():
        _files.replace(out / f"{name}.png", pictures.png(figure))


def _compare(console: Console) -> None:
    from . import table

    batch, rows = 32, []
    for case in table.cases(batch):
        with console.status(f"timing: {case.name}", refresh_per_second=1):
            rows.append(table.measure(case))
    threads = torch.get_num_threads()
    title = f"AlexNet-2012, batch {batch}, float32, {threads} threads, torch {torch.__version__}"
    console.print(table.render(rows, title))
