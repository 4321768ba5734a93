"""Layers that torch lacks, made of torch's own functions."""

from __future__ import annotations

import torch
from torch import Tensor

from .backends.plain import local_response_norm
from .stages import LRN


class GroupedLRN(torch.nn.Module):
    """:class:`fastcnn.LRN` by torch's own functions, in float32 for the half types.

    Shape: (N, C, H, W) or (C, H, W) to the same.
    """

    def __init__(self, spec: LRN) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, input: Tensor) -> Tensor:
        return local_response_norm(input, self.spec)

    def extra_repr(self) -> str:
        return str(self.spec)
