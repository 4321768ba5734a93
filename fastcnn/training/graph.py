"""A training step as a CUDA graph: one launch, where Python needs longer to launch the kernels than they run.

Not run on hardware yet. It relies on what torch's sources say (2.11): a replay takes its seed from what
torch.manual_seed has set since (CUDAGeneratorState::replay_prologue), so dropout draws as without a graph;
AdamW, fused and ``capturable``, reads lr from a tensor on the device at each replay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

# Steps before the capture, in which libraries choose and allocate (torch's notes on CUDA graphs).
_WARM_UP = 3

Capture = Callable[[Callable[[], None]], Callable[[], None]]


def capture(work: Callable[[], None]) -> Callable[[], None]:
    """Returns a function that repeats on the GPU what ``work`` launches on the current stream.

    Raises:
        RuntimeError: ``work`` does what a graph can't hold; torch's message says what.
    """
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.current_stream()
    try:
        # "thread_local", because DataLoader's thread allocates pinned memory meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            work()
    except RuntimeError:
        # After a failed capture the generator refuses to draw without one (torch 2.11); its copy doesn't.
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())
        raise
    return graph.replay


@contextlib.contextmanager
def tuned(device: torch.device) -> Iterator[None]:
    """Lets cuDNN time its algorithms on a GPU, and works on a side stream: graphs need one.

    ``torch.backends.cudnn.benchmark`` is the whole process's: other threads see it until the block ends.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


class Graph:
    """Runs a step; after a few calls, by a graph of it.

    Args:
        step: takes tensors on the device, of the same shapes at each call, and works on tensors that stay
            where they are. It does not wait for the device.
        device: where ``step`` works.
        record: :func:`capture`, or what stands for it.
        tell: gets a line if that fails; the step then runs without a graph.
    """

    def __init__(
        self, step: Callable[..., None], device: torch.device, record: Capture, tell: Callable[[str], None]
    ) -> None:
        self._step, self._device, self._tell = step, device, tell
        self._record: Capture | None = record  # None: in vain
        self._calls = 0
        self._inputs: list[Tensor] = []  # those that the graph reads
        self._constant: float | None = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, inputs: Sequence[Tensor], constant: float | None = None) -> None:
        """Runs ``step(*inputs)``.

        Args:
            inputs: on the device, or in the host's pinned memory.
            constant: a number that the step takes from Python; each new one needs a new graph.
        """
        self._calls += 1
        if self._calls > _WARM_UP and (self._replay is None or constant != self._constant):
            self._capture(inputs, constant)
        if self._replay is None:
            self._step(*(value.to(self._device, non_blocking=True) for value in inputs))
            return
        for held, value in zip(self._inputs, inputs, strict=True):
            held.copy_(value, non_blocking=True)
        self._replay()

    def _capture(self, inputs: Sequence[Tensor], constant: float | None) -> None:
        if self._record is None:
            return
        self._replay, self._constant = None, constant  # None frees the memory of the graph before
        self._inputs = [value.to(self._device, copy=True) for value in inputs]
        try:
            self._replay = self._record(lambda: self._step(*self._inputs))
        except RuntimeError as error:
            self._record = None
            self._tell(f"steps run without a CUDA graph, because its capture failed: {error}")
