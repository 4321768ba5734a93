"""Channels of groups, each in a tensor of its own, and back; by 16 bytes where they lie side by side.

torch copies slices of channels in channels_last value by value: 400 us of a training step of AlexNet-2012 in
bfloat16, of 4.5 ms (256 images, H200).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = torch.complex128  # the widest dtype; its values are only copied


def split(t: Tensor, groups: int) -> Sequence[Tensor]:
    """Returns t's (N, C, H, W) channels of each group, of which there are C / groups."""
    words = _words(t, groups)
    if words is None:
        return t.chunk(groups, 1)
    n, c, h, w = t.shape
    c //= groups
    apart = words.contiguous().view(t.dtype)
    return apart.as_strided((groups, n, c, h, w), (n * h * w * c, h * w * c, 1, w * c, c)).unbind()


def join(parts: Sequence[Tensor]) -> Tensor:
    """Returns all their channels in one tensor, the inverse of :func:`split`."""
    words = [_words(part, 1) for part in parts]
    if any(w is None for w in words):
        return torch.cat(list(parts), 1)
    n, c, h, w = parts[0].shape
    c *= len(parts)
    together = torch.cat(words, 2).view(parts[0].dtype)  # type: ignore[arg-type]
    return together.as_strided((n, c, h, w), (h * w * c, 1, w * c, c))


def _words(t: Tensor, groups: int) -> Tensor | None:
    """Returns each group's channels, (groups, N H W, words), if they are whole words."""
    size, c = _WORD.itemsize // t.itemsize, t.shape[1] // groups
    if c % size or t.storage_offset() % size or not t.is_contiguous(memory_format=torch.channels_last):
        return None
    return t.as_strided((groups, t.numel() // max(1, t.shape[1]), c), (c, t.shape[1], 1)).view(_WORD)
