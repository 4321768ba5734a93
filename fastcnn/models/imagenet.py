"""torchvision's AlexNet weights, trained on ImageNet-1k: where they are, their classes and their images."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ._hub import cached
from .weights import load_weights

URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
NAMES = ("IMAGENET1K_V1", "DEFAULT")  # torchvision's; both are the same weights
FITS: dict[str, tuple[object, ...]] = {  # alexnet's arguments that build the network which was trained
    "variant": ("2014",),
    "num_classes": (1000,),
    "towers": (None, 1),
    "norm": ("published", None),
    "overlap": (True,),
    "adaptive": (None, True),
    "in_channels": (3,),
}

# torchvision's transforms.ImageClassification(crop_size=224), for (3, H, W) images: red, green, blue, 0 to 1.
RESIZE = 256  # pixels of the shorter side; bilinear, antialiased
CROP = 224  # rows and columns, from the centre
MEAN = (0.485, 0.456, 0.406)  # subtracted from each channel
STD = (0.229, 0.224, 0.225)  # divides each channel, after that


def check(weights: str, arguments: Mapping[str, object]) -> None:
    """Checks that the weights are known and fit a network built with alexnet's ``arguments``.

    Raises:
        ValueError: unknown weights, or an argument that changes the network; the message names it.
    """
    if weights not in NAMES:
        raise ValueError(f"alexnet: weights must be one of {NAMES} or None, but got {weights!r}")
    for name, fitting in FITS.items():
        if arguments[name] not in fitting:
            needed = " or ".join(map(repr, fitting))
            raise ValueError(
                f"alexnet: weights={weights!r} need {name}={needed}, but got {name}={arguments[name]!r}"
            )


def load(model: torch.nn.Module, progress: bool = True) -> None:
    """Loads the weights into ``alexnet("2014")``, from torch.hub's cache or by a download of 244 MB into it.

    The cache is torchvision's, ``checkpoints`` in ``torch.hub.get_dir()``, which TORCH_HOME moves. The file's
    SHA-256 is checked each time, and no code in it is run. Whatever is raised, the model is as it was, and no
    part of a download is left behind.

    Args:
        model: ``alexnet("2014")``, fused or plain.
        progress: show the progress of a download on stderr.

    Raises:
        OSError: the download failed (urllib.error.URLError, HTTPError; ConnectionError), or the cache can't
            be written or read (PermissionError and others); the message says what to do.
        RuntimeError: a file with another SHA-256, downloaded or in the cache; a model that does not fit.
    """
    load_weights(model, cached(URL, progress))


def classes() -> tuple[str, ...]:
    """Returns the names of the 1000 outputs, in order: torchvision's, or "0" to "999" without torchvision."""
    try:
        from torchvision.models import AlexNet_Weights
    except (ImportError, RuntimeError):  # RuntimeError: a torchvision built for another torch
        return tuple(map(str, range(1000)))
    return tuple(AlexNet_Weights.IMAGENET1K_V1.meta["categories"])
