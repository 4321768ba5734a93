"""A trained network from its file, with what its images are made of: what it answers to pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _files, models
from ..data.pictures import picture
from ..models import imagenet
from . import weights
from .augment import middle

_LARGEST = 8192  # rows and columns of a picture
_OPTIONS = {"norm", "towers", "overlap", "adaptive", "dropout"}  # of a network, as train has them


class Trained(NamedTuple):
    """A network in evaluation, the names of its classes, and how its images are made.

    name: what it is called in messages.
    side: of the square that a picture's middle is scaled to, of whose middle ``size`` pixels are taken.
    mean and std: of pixels from 0 to 255, by channel: the one to be taken off, the other to divide by.
    """

    name: str
    model: torch.nn.Module
    classes: tuple[str, ...]
    side: int
    size: int
    mean: Tensor
    std: Tensor

    @property
    def channels(self) -> int:
        """Of its images."""
        return len(self.mean)

    @torch.no_grad()
    def scores(self, pixels: Tensor) -> Tensor:
        """Returns the classes' scores (N, classes) for pixels (N, size, size, C), 0 to 255."""
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        return self.model(((pixels.float() - mean) / std).permute(0, 3, 1, 2))

    def answers(self, path: Path) -> Tensor:
        """Returns the classes' probabilities (classes,) for a file's picture.

        Raises:
            OSError, ValueError: it can't be read as a picture.
        """
        pixels = middle(picture(path, self.side)[None], self.size).float()
        pixels = pixels.mean(-1, keepdim=True) if self.channels == 1 else pixels
        return self.scores(pixels)[0].double().softmax(0)


def published(fused: bool = True) -> Trained:
    """Returns torchvision's AlexNet, trained on ImageNet; its weights are downloaded once, 244 MB.

    Raises:
        OSError, RuntimeError: as of :func:`fastcnn.models.alexnet`.
    """
    model = models.alexnet("2014", weights="IMAGENET1K_V1", fused=fused).eval()
    mean, std = (255 * torch.tensor(values) for values in (imagenet.MEAN, imagenet.STD))
    return Trained(
        "torchvision's AlexNet", model, imagenet.classes(), imagenet.RESIZE, imagenet.CROP, mean, std
    )


def load(path: Path, fused: bool = True) -> Trained:
    """Loads what ``python -m fastcnn train`` made: the best weights of a run's folder, or a weight file.

    Raises:
        OSError: the file is missing or can't be read.
        RuntimeError: it is damaged, or no such file; the message names it and what is wrong.
    """
    from safetensors import SafetensorError, safe_open

    path = weights.usable(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
    except SafetensorError as error:
        raise RuntimeError(f"{path}: damaged, or no safetensors file: {error}") from error
    try:
        told = {
            name: json.loads(about[name]) for name in ("network", "classes", "side", "size", "mean", "std")
        }
        trained = _network(str(path), told, fused)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, RuntimeError) as error:
        raise RuntimeError(
            f"{path}: does not say what network it is of: {type(error).__name__}: {error}"
        ) from error
    models.load_weights(trained.model, path)
    return trained


def _network(name: str, told: Mapping[str, Any], fused: bool) -> Trained:
    network, classes = told["network"], tuple(told["classes"])
    if not isinstance(told["classes"], list) or not classes or len(set(classes)) < len(classes):
        raise ValueError(f"classes are {told['classes']}")
    if not set(network["options"]) <= _OPTIONS or not isinstance(network["variant"], (str, NoneType)):
        raise ValueError(f"variant and options are {network['variant']} and {network['options']}")
    make = {"alexnet": models.alexnet, "lenet5": models.lenet5}[network["model"]]
    mean, std = (torch.tensor(told[key], dtype=torch.float32) for key in ("mean", "std"))
    size, side = (told[key] for key in ("size", "side"))
    if not (type(size) is type(side) is int and 0 < size <= side <= _LARGEST):
        raise ValueError(f"size and side are {size} and {side}")
    if (
        mean.dim() != 1
        or not mean.isfinite().all()
        or std.shape not in (mean.shape, (1,))
        or not ((std > 0) & std.isfinite()).all()
    ):
        raise ValueError(f"mean and std are {told['mean']} and {told['std']}")
    if not all(isinstance(class_, str) for class_ in classes):
        raise ValueError(f"classes are {classes[:3]}")
    variant: list[Any] = [network["variant"]] if network["variant"] else []
    settings: dict[str, Any] = {"num_classes": len(classes), "in_channels": len(mean), "fused": fused}
    model = make(*variant, **settings | network["options"]).eval()
    with torch.no_grad():
        model(torch.zeros(1, len(mean), size, size))
    return Trained(name, model, classes, side, size, mean, std)


def best(classes: tuple[str, ...], probabilities: Tensor, top: int) -> list[tuple[str, float]]:
    """Returns the most probable classes and their probabilities, the first one first."""
    found = probabilities.topk(min(top, len(classes)))
    return [
        (classes[i], share) for i, share in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def table(path: Path, answers: Iterable[tuple[str, float]]) -> str:
    """Returns a picture's name, and a line with a bar for each answer."""
    answers = [(_files.shown(name), share) for name, share in answers]
    width = max(len(name) for name, _ in answers)
    bars = [f"  {share:6.1%}  {name:{width}}  {'#' * round(30 * share)}" for name, share in answers]
    return "\n".join([_files.shown(path), *(bar.rstrip() for bar in bars)])
