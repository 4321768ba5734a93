"""A model of the zoo: its name, how it is built, and the image it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)


@dataclass(frozen=True)
class Entry:
    """Describes a model.

    Attributes:
        name: "source/model".
        build: returns the model with the weights that it is initialised with.
        image: channels, height and width of an image.
    """

    name: str
    build: Callable[[], nn.Module]
    image: tuple[int, int, int] = IMAGENET

    def make(self) -> nn.Module:
        """Returns the model in evaluation, with random weights and batch norms as training leaves them."""
        torch.manual_seed(0)
        return with_statistics(self.build()).eval()

    def images(self, count: int) -> torch.Tensor:
        torch.manual_seed(1)
        return torch.randn(count, *self.image)


@torch.no_grad()
def with_statistics(model: nn.Module) -> nn.Module:
    """Sets batch norms to random values: fresh ones do nothing, so that a wrong fold would not be seen."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None and m.running_var is not None:
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
            if m.affine:
                m.weight.uniform_(0.5, 1.5)
                m.bias.normal_(0, 0.1)
    return model
