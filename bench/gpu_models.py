"""The networks as `make gpu` times them: AlexNet, and LeNet-5, whose launches take longer than its work."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from gpu_timing import (
    CONTIGUOUS,
    DEVICE,
    DTYPES,
    LAST,
    TIMERS,
    Row,
    Rows,
    Run,
    compiled,
    graphed,
    peak_bytes,
    race,
    tensor,
)
from torch import Tensor, nn
from torch.nn import functional as TF

from fastcnn.models import alexnet, lenet5


def pair(
    make: Callable[..., nn.Module], dtype: torch.dtype, format: torch.memory_format
) -> dict[str, nn.Module]:
    """The fused network and the plain one, with the same weights and without dropout, whose draws differ."""
    with torch.device(DEVICE):
        fused, plain = make(dropout=0.0), make(dropout=0.0, fused=False)
    for layer in fused.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()  # after the paper's own, biases hide most of what came before
    plain.load_state_dict(fused.state_dict())
    both = {"fastcnn": fused, "eager": plain}
    return {name: m.to(dtype=dtype, memory_format=format) for name, m in both.items()}  # type: ignore[call-overload]


def inferring(module: Callable[..., Tensor], x: Tensor) -> Run:
    def run() -> Tensor:
        with torch.no_grad():
            return module(x)

    return run


def inference_row(batch: int, dtype: torch.dtype, timer: str, peers: bool) -> Row:
    x = tensor(batch, 3, 224, 224, dtype=dtype, format=LAST)
    models: dict[str, Callable[..., Tensor]] = {n: m.eval() for n, m in pair(alexnet, dtype, LAST).items()}
    if peers:
        models["torch.compile"] = compiled(models["eager"])
    return race({n: inferring(m, x) for n, m in models.items()}, dtype, timer=TIMERS[timer])


def step(module: nn.Module, forward: Callable[..., Tensor], x: Tensor, labels: Tensor) -> Run:
    """A step of SGD that gives the loss and leaves no gradients; forward: the module, or it compiled."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)

    def run() -> Tensor:
        loss = TF.cross_entropy(forward(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return run


def training_row(batch: int, dtype: torch.dtype, peers: bool) -> Row:
    """peak_bytes: beyond parameters and images."""
    x = tensor(batch, 3, 224, 224, dtype=dtype, format=LAST)
    labels = torch.arange(batch, device=DEVICE)
    models = pair(alexnet, dtype, LAST)
    runs = {name: step(m, m, x, labels) for name, m in models.items()}
    if peers:
        own = copy.deepcopy(models["eager"])
        runs["torch.compile"] = step(own, compiled(own), x, labels)
    row = race(runs, dtype)
    return row | {"peak_bytes": {name: peak_bytes(runs[name]) for name in row["ms"]}}


def models() -> Rows:
    """Compilers' rows come last, in place of the same rows without them."""
    for peers in (False, True):
        for dtype in ("bfloat16", "float32"):
            for batch, timer in ((256, "GPU time"), (32, "GPU time"), (1, "GPU time"), (1, "wall time")):
                yield (
                    f"AlexNet, inference | {batch} | {dtype} | {timer}",
                    partial(inference_row, batch, DTYPES[dtype], timer, peers),
                )
            yield (
                f"AlexNet, a training step | 256 | {dtype} | GPU time",
                partial(training_row, 256, DTYPES[dtype], peers),
            )


def lenet_row(graphs: bool, timer: str) -> Row:
    """graphs: every launch from a CUDA graph."""
    x = tensor(1, 1, 28, 28, dtype=torch.float32)
    models = {name: m.eval() for name, m in pair(lenet5, torch.float32, CONTIGUOUS).items()}
    runs = {name: inferring(m, x) for name, m in models.items()}
    if graphs:
        runs = {name: graphed(fn) for name, fn in runs.items()}
        name = "torch.compile reduce-overhead"
        runs[name] = inferring(compiled(models["eager"], "reduce-overhead"), x)
    return race(runs, torch.float32, timer=TIMERS[timer])


def lenet() -> Rows:
    for graphs, timer in product((False, True), TIMERS):
        how = "CUDA graphs" if graphs else "eager"
        yield f"LeNet-5, inference | 1 | float32 | {how} | {timer}", partial(lenet_row, graphs, timer)
