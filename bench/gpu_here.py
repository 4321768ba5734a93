"""Where rows are measured: on a GPU, or in a rehearsal on the CPU."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch._functorch.config
from gpu_timing import Clock
from torch import Tensor

from fastcnn import backends


class Here(NamedTuple):
    """The device, torch.cuda or its double, our backend for the device, and whether `full` is running."""

    device: str
    cuda: Any
    clock: Clock
    ours: ModuleType
    thorough: bool

    def size(self, real: Any, tiny: Any) -> Any:
        return real if self.device == "cuda" else tiny

    def random(self, shape: Any, dtype: torch.dtype, layout: str = "channels_last") -> Tensor:
        format = torch.channels_last if layout != "NCHW" and len(shape) == 4 else torch.contiguous_format
        return torch.randn(shape, device=self.device, dtype=dtype).contiguous(memory_format=format)

    def compiled(self, fn: Any) -> Any:
        return torch.compile(fn, dynamic=False, **self.size({}, {"backend": "eager"}))


def double() -> Any:
    """Returns a stand-in for torch.cuda, which accepts the same calls and does nothing."""
    cuda = mock.MagicMock(spec=torch.cuda)
    cuda.CUDAGraph.return_value = mock.MagicMock(spec=torch.cuda.CUDAGraph)
    cuda.Event.return_value = mock.MagicMock(spec=torch.cuda.Event)
    cuda.Event.return_value.elapsed_time.return_value = 1.0
    cuda.memory_allocated.return_value = cuda.max_memory_allocated.return_value = 0
    return cuda


def here(rehearse: bool, thorough: bool) -> Here:
    torch._functorch.config.donated_buffer = False  # it refuses a second backward of a forward
    if rehearse:
        cuda = double()
        return Here("cpu", cuda, Clock(cuda, "cpu", 1, 2, 1 << 12), backends.module("cpu"), thorough)
    torch.cuda.set_stream(torch.cuda.Stream())  # the default one can't be captured
    clock = Clock(torch.cuda, "cuda", 3, 21 if thorough else 11)
    return Here("cuda", torch.cuda, clock, backends.module("cuda"), thorough)
