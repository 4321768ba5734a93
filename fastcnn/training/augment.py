"""What is done to a batch of images, on their device: crops, mirror images, colours."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Statistics(NamedTuple):
    """Of the training set's pixels, 0 to 255.

    mean and std (C,) by channel; principal components as columns (C, C), with their variances (C,).
    """

    mean: Tensor
    std: Tensor
    components: Tensor
    variances: Tensor


# Of a model that takes pixels from 0 to 1.
UNIT = Statistics(torch.zeros(1), torch.full((1,), 255.0), torch.eye(1), torch.zeros(1))


def statistics(count: Tensor, total: Tensor, products: Tensor) -> Statistics:
    """From sums over pixels: how many, their values (C,), and the products of their values (C, C)."""
    mean = total / count
    covariance = products / count - mean.outer(mean)
    variances, components = torch.linalg.eigh(covariance)
    std = covariance.diagonal().clamp(min=1).sqrt()
    return Statistics(*(x.float() for x in (mean, std, components, variances.clamp(min=0))))


class Draws(NamedTuple):
    """What chance decides for each of n images.

    A crop's place (n, 2); mirrored or not (n,); how far each principal component moves (n, C), in standard
    deviations.
    """

    places: Tensor
    mirrored: Tensor
    colour: Tensor

    def of(self, images: Tensor) -> Draws:
        """Those of some images, by number."""
        return Draws(*(values[images] for values in self))


def draw(n: int, room: int, channels: int, seed: int) -> Draws:
    """For a whole batch, so that it is the same however the batch is shared out.

    Args:
        n: images.
        room: pixels that a crop may move by, in either direction.
        channels: of the images.
        seed: decides.
    """
    generator = torch.Generator().manual_seed(seed)
    return Draws(
        torch.randint(room + 1, (n, 2), generator=generator),
        torch.rand(n, generator=generator) < 0.5,
        0.1 * torch.randn(n, channels, generator=generator),
    )


def crop(images: Tensor, places: Tensor, size: int) -> Tensor:
    """(N, C, size, size) out of (N, C, S, S), each from its own row and column of (N, 2)."""
    corners = images.unfold(2, size, 1).unfold(3, size, 1)
    rows, columns = places.unbind(1)
    return corners[torch.arange(len(images), device=images.device), :, rows, columns]


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """Left and right exchanged in the chosen ones of (N, C, H, W)."""
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def normalise(images: Tensor, known: Statistics, scaled: bool) -> Tensor:
    """Pixels without their mean, by channel; over their standard deviation if ``scaled``."""
    mean, std = (x[:, None, None] for x in (known.mean, known.std))
    values = images.float() - mean
    return values / std if scaled else values


def recolour(values: Tensor, moves: Tensor, known: Statistics, scaled: bool) -> Tensor:
    """Each of (N, C, H, W), less the mean, plus sum of p_i a_i l_i (Krizhevsky et al. 2012, §4.1).

    p are the principal components of the training set's colours, l their standard deviations, a the
    ``moves`` (N, C). The paper calls l the eigenvalues of the covariance, which depend on the unit of a
    pixel and of 0 to 255 would drown the image; the released code names them color_stdevs.
    """
    shifts = (moves * known.variances.sqrt()) @ known.components.T
    if scaled:
        shifts = shifts / known.std
    return values + shifts[:, :, None, None]


def ten_crops(images: Tensor, size: int, mirrored: bool) -> list[Tensor]:
    """The four corners and the middle of (N, C, S, S), and if ``mirrored`` their mirror images (§4.1)."""
    room = images.shape[-1] - size
    corners = [(0, 0), (0, room), (room, 0), (room, room), (room // 2, room // 2)]
    crops = [images[..., y : y + size, x : x + size] for y, x in corners]
    return crops + [c.flip(-1) for c in crops if mirrored]


def middle(images: Tensor, size: int) -> Tensor:
    """The middle of (N, C, S, S)."""
    start = (images.shape[-1] - size) // 2
    return images[..., start : start + size, start : start + size]
