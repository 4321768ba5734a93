"""What torch has no layer for, from torch's own functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .stages import LRN


class GroupedLRN(torch.nn.Module):
    """:class:`fastcnn.LRN` by torch's own function, in float32 for the half types it fails on.

    Shape: (N, C, H, W) or (C, H, W) to the same.
    """

    def __init__(self, spec: LRN) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, input: Tensor) -> Tensor:
        spec = self.spec
        half = input.dtype in (torch.float16, torch.bfloat16)
        x = input.float() if half else input
        towers = x.unflatten(-3, (spec.groups, -1)).flatten(end_dim=-4)
        y = F.local_response_norm(towers, spec.size, spec.alpha, spec.beta, spec.k)
        return y.reshape(input.shape).to(input.dtype)

    def extra_repr(self) -> str:
        return str(self.spec)
