"""Augments a batch of images on their device: crops, mirror images, colours.

Images are uint8 (N, S, S, C), as files have them; what the model takes is float32 (N, C, size, size), in
channels_last.
"""

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
    """Computes statistics from sums over pixels: their count, values (C,), and products of values (C, C)."""
    mean = total / count
    covariance = products / count - mean.outer(mean)
    variances, components = torch.linalg.eigh(covariance)
    std = covariance.diagonal().clamp(min=1).sqrt()
    return Statistics(*(x.float() for x in (mean, std, components, variances.clamp(min=0))))


class Draws(NamedTuple):
    """Random draws for each of n images.

    A crop's place (n, 2); mirrored or not (n,); how far each principal component moves (n, C), in standard
    deviations.
    """

    places: Tensor
    mirrored: Tensor
    colour: Tensor

    def of(self, images: Tensor) -> Draws:
        """Returns the draws of some images, by number."""
        return Draws(*(values[images] for values in self))


def draw(n: int, room: int, channels: int, seed: int) -> Draws:
    """Draws for a whole batch, so that it is the same however the batch is shared out.

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


class Augment:
    """Makes what a model takes: pixel * scale + offset.

    scale and offset take the mean off, by channel, and divide by the standard deviation if ``scaled``.

    Args:
        known: of the training set's pixels.
        size: rows and columns of a crop.
        scaled, mirrored, colour: whether to; ``colour`` needs three channels.
    """

    def __init__(self, known: Statistics, size: int, scaled: bool, mirrored: bool, colour: bool) -> None:
        self.known, self.size, self.mirrored, self.colour = known, size, mirrored, colour
        self.scale = 1 / known.std if scaled else torch.ones_like(known.mean)
        self.offset = -known.mean * self.scale
        self._held = torch.empty(0)

    def plain(self, images: Tensor) -> Tensor:
        """Returns the images (N, size, size, C) without any chance."""
        return _values(images, self.scale, self.offset[None])

    def drawn(self, images: Tensor, draws: Draws) -> Tensor:
        """Augments (N, S, S, C) by random draws. On the CPU, the previous call's memory is used again."""
        mirrored = draws.mirrored if self.mirrored else torch.zeros_like(draws.mirrored)
        offset = self.offset + self._shifts(draws.colour) if self.colour else self.offset[None]
        offset = offset.expand(len(images), -1)
        make = self._one_by_one if images.device.type == "cpu" else self._all_at_once
        return make(images, draws.places, mirrored, offset)

    def _shifts(self, moves: Tensor) -> Tensor:
        """Computes each image's colour shift (N, C): sum of p_i a_i l_i (Krizhevsky et al. 2012, §4.1).

        p are the principal components of the training set's colours, l their standard deviations, a the
        ``moves`` (N, C). The paper calls l the eigenvalues of the covariance, which depend on the unit of a
        pixel and of 0 to 255 would drown the image; the released code names them color_stdevs.
        """
        return (moves * self.known.variances.sqrt()) @ self.known.components.T * self.scale

    def _all_at_once(self, images: Tensor, places: Tensor, mirrored: Tensor, offset: Tensor) -> Tensor:
        """Augments without reading any value back from the device."""
        return _values(crop(images, places, mirrored, self.size), self.scale, offset)

    def _one_by_one(self, images: Tensor, places: Tensor, mirrored: Tensor, offset: Tensor) -> Tensor:
        """Augments image by image, in the cache and into memory already used: fresh pages take the time.

        A crop of 224 x 224 takes 0.09 ms so, 0.46 ms in new memory, 0.98 ms all at once (one thread of an
        AMD EPYC with AVX-512).
        """
        shape = (len(images), self.size, self.size, images.shape[-1])
        if self._held.shape != shape:
            self._held = torch.empty(shape)
        for i, (y, x) in enumerate(places.tolist()):
            part = images[i : i + 1, y : y + self.size, x : x + self.size]
            part = part.flip(2) if mirrored[i] else part
            _values(part, self.scale, offset[i : i + 1], self._held[i : i + 1])
        return self._held.permute(0, 3, 1, 2)


def _values(pixels: Tensor, scale: Tensor, offset: Tensor, out: Tensor | None = None) -> Tensor:
    """Pixels (N, s, s, C) * scale (C,) + offset (N or 1, C), as (N, C, s, s), which may be in ``out``.

    A row of pixels at a time: over the channels alone, the innermost loop would be of three values.
    """
    out = torch.empty(pixels.shape, device=pixels.device) if out is None else out
    out.copy_(pixels)
    rows, times = out.flatten(2), pixels.shape[2]
    rows.mul_(scale.repeat(times)).add_(offset.repeat(1, times)[:, None])
    return out.permute(0, 3, 1, 2)


def crop(images: Tensor, places: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Crops (N, S, S, C) to (N, size, size, C), at rows and columns (N, 2), some mirrored (N,)."""
    steps = torch.arange(size, device=images.device)
    across = torch.where(mirrored[:, None], size - 1 - steps, steps)
    rows, columns = places[:, :1] + steps, places[:, 1:] + across
    numbers = torch.arange(len(images), device=images.device)
    return images[numbers[:, None, None], rows[:, :, None], columns[:, None]]


def ten_crops(images: Tensor, size: int, mirrored: bool) -> list[Tensor]:
    """Returns the corners and the middle of (N, S, S, C), and if ``mirrored`` their mirror images (§4.1)."""
    room = images.shape[2] - size
    corners = [(0, 0), (0, room), (room, 0), (room, room), (room // 2, room // 2)]
    crops = [images[:, y : y + size, x : x + size] for y, x in corners]
    return crops + [c.flip(2) for c in crops if mirrored]


def middle(images: Tensor, size: int) -> Tensor:
    """Crops (N, S, S, C) to its middle (N, size, size, C)."""
    start = (images.shape[2] - size) // 2
    return images[:, start : start + size, start : start + size]
