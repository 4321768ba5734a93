"""Recipes to train a network: the paper's, and a modern one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from .eager import AdamW
from .momentum import Momentum


@dataclass(frozen=True)
class Recipe:
    """Numbers and choices; ``rate`` is lr."""

    batch: int
    epochs: int
    rate: float
    optimizer: Callable[..., torch.optim.Optimizer]
    plateau: bool  # lr over 10 when the error stops falling; else one rise and fall over all steps
    weight_decay: float
    dtype: str
    warm_up: float = 0.0  # share of all steps in which the rate rises
    smoothing: float = 0.0  # of labels
    colour: bool = False  # shifts along the principal components of the training set's colours
    crops: int = 1  # averaged in testing: 1, or the paper's 10; 5 where a mirror image is another thing
    scaled: bool = True  # pixels over their standard deviation, not as they are, 0 to 255
    default_weights: bool = True  # torch's initial ones, whatever the network's paper says


RECIPES = {
    # Krizhevsky, Sutskever & Hinton 2012, §4.1 and §5; the mean by channel, where the paper has it by pixel.
    "alexnet2012": Recipe(
        batch=128,
        epochs=90,
        rate=0.01,
        optimizer=Momentum,
        plateau=True,
        weight_decay=5e-4,
        dtype="float32",
        colour=True,
        crops=10,
        scaled=False,
        default_weights=False,
    ),
    "modern": Recipe(
        batch=128,
        epochs=30,
        rate=1e-3,
        optimizer=partial(AdamW, fused=True, capturable=True),
        plateau=False,
        weight_decay=0.05,
        warm_up=0.05,
        dtype="bfloat16",
        smoothing=0.1,
    ),
}

_PATIENCE = 3  # epochs without a lower error; the paper watched by eye
_DROPS = 3


def rate(recipe: Recipe, step: int, steps: int, errors: Sequence[float]) -> float:
    """Returns the learning rate at a step of ``steps`` in all, after epochs that ended with these errors."""
    warm = round(recipe.warm_up * steps)
    if step < warm:
        return recipe.rate * (step + 1) / warm
    if recipe.plateau:
        return recipe.rate / 10 ** _drops(errors)
    return recipe.rate * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2


def _drops(errors: Sequence[float]) -> int:
    """Returns how many times the error has stopped falling, which is no lower value for some epochs."""
    drops, best, since = 0, math.inf, 0
    for error in errors:
        best, since = (error, 0) if error < best else (best, since + 1)
        if since == _PATIENCE:
            drops, since = drops + 1, 0
    return min(drops, _DROPS)
