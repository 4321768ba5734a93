"""The options of training's command line, and the network and recipe that they make."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from .. import models
from ..data import Data
from ..models.lenet1998 import LeNet1998
from ..models.weights import load_with_new_last_layer
from ..nn import ConvBlock2d
from .recipe import RECIPES, Recipe

_RECIPES_OWN = ("epochs", "batch", "rate", "warm_up", "weight_decay", "smoothing", "dtype")


@dataclass(frozen=True)
class Options:
    """See ``python -m fastcnn train --help``; None is the default of the recipe or of the data."""

    data: str
    out: Path = Path("run")
    model: str | None = None
    variant: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    size: int | None = None
    recipe: str = "modern"
    epochs: int | None = None
    batch: int | None = None
    rate: float | None = None
    scale_rate: bool = False
    warm_up: float | None = None
    weight_decay: float | None = None
    smoothing: float | None = None
    dtype: str | None = None
    accumulate: int = 1
    fused: bool = True
    backend: str = "auto"
    device: str = "cpu"
    workers: int | None = None
    weights: Path | None = None
    freeze: str | None = None
    keep: str = "best"
    resume: bool = False
    save_every: int | None = None
    skip_bad: bool = False
    tensorboard: bool = False
    seed: int = 0

    def completed_recipe(self) -> Recipe:
        """Returns the recipe with the command line's changes."""
        given = {name: getattr(self, name) for name in _RECIPES_OWN}
        recipe = replace(RECIPES[self.recipe], **{k: v for k, v in given.items() if v is not None})
        scale = recipe.batch / RECIPES[self.recipe].batch if self.scale_rate else 1
        return replace(recipe, rate=recipe.rate * scale)

    def kind(self, data: Data) -> str:
        """Returns the name of the model's function in :mod:`..models`."""
        return self.model or ("alexnet" if data.channels == 3 else "lenet5")


def network(options: Options, recipe: Recipe, data: Data) -> tuple[torch.nn.Module, list[str]]:
    """Builds the network with its initial weights; returns it with notes to print.

    Raises:
        ValueError: an option that it does not have.
        RuntimeError: images that it does not take; weights that don't fit.
    """
    torch.manual_seed(options.seed)
    name = options.kind(data)
    make = getattr(models, name)
    variant = [options.variant] if options.variant else []
    settings = {"num_classes": len(data.classes), "in_channels": data.channels, "fused": options.fused}
    for option in options.model_options:
        if option not in inspect.signature(make).parameters:
            raise ValueError(f"--{'no-' * (option == 'overlap')}{option}: {name} has no such option")
    model: torch.nn.Module = make(*variant, **settings, **options.model_options)
    if recipe.default_weights and not isinstance(model, LeNet1998):
        for layer in model.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear, ConvBlock2d)):
                layer.reset_parameters()
    if options.freeze and not isinstance(getattr(model, options.freeze, None), torch.nn.Module):
        raise ValueError(f"--freeze {options.freeze}: {name} has no such part")
    if options.weights and (replaced := load_with_new_last_layer(model, options.weights)):
        last, classes = replaced
        return model, [f"{options.weights}: of {classes} classes; {last} is new, for {len(data.classes)}"]
    return model, []


def deciding(options: Options, recipe: Recipe, data: Data, model: torch.nn.Module) -> dict[str, Any]:
    """Returns the settings that decide the weights, by option: a training resumes with the same ones only.

    Left out is what changes their rounding alone: ``--plain`` and ``--backend``. The device, the number of
    processes and ``--accumulate`` are left out, too: they change more where dropout draws other masks, or
    batch norms see other parts of a batch. So is ``--epochs``, by which a training may be extended.
    """
    return {
        "--data": f"{len(data.train)} + {len(data.test)} images of {len(data.classes)} classes",
        "names or values in --data": f"{data.train.fingerprint()[:16]}, {data.test.fingerprint()[:16]}",
        "--size": data.size,
        "--model": f"{getattr(model, 'name', '')} {options.model_options or ''}".strip(),
        "--recipe": options.recipe,
        "--batch": recipe.batch,
        "--rate": recipe.rate,
        "--warm-up": recipe.warm_up,
        "--weight-decay": recipe.weight_decay,
        "--smoothing": recipe.smoothing,
        "--dtype": recipe.dtype,
        "--seed": options.seed,
        "--freeze": options.freeze,
    }
