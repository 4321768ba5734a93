"""A user's model: as written, fused, and compiled; how fast it is, and what it keeps for backward."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from .. import _factory, fuse
from ..measure import bytes_kept, peak_bytes
from . import cases, contenders
from .cases import Case, Kind

_DROPOUT = nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout


def own_cases(name: str, shape: tuple[int, ...], kind: Kind) -> Iterator[Case]:
    """Returns inference, and forward and backward, of the model that ``package.module:function`` makes.

    Dropout is off, since each contender would drop other values.

    Raises:
        ValueError, ModuleNotFoundError: as of :func:`_factory.load`, before anything is timed.
    """
    torch.manual_seed(0)
    plain = _factory.load(name).to(kind.device, kind.dtype)
    for module in plain.modules():
        if isinstance(module, _DROPOUT):
            module.p = 0
    return _cases(plain, kind.random(1, *shape))


def _cases(plain: nn.Module, x: Tensor) -> Iterator[Case]:
    fused = fuse(copy.deepcopy(plain).eval())
    yield cases.inference("inference", plain, fused, x)
    if any(p.requires_grad for p in plain.parameters()):
        plain, fused = plain.train(), fused.train()
        memory = {"eager": _memory(plain, x), "fastcnn": _memory(fused, x)}
        yield Case("forward and backward", contenders.backward(plain, fused, x), memory=memory)


def _memory(module: nn.Module, x: Tensor) -> dict[str, int]:
    """Returns the bytes kept for backward and, on a GPU, the most that forward and backward allocate."""
    found = {"kept": bytes_kept(partial(module, x), module.parameters())}
    return found | ({"peak": peak_bytes(contenders.differentiating(module, x))} if x.is_cuda else {})
