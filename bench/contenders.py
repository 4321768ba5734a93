"""Who runs beside those of fastcnn.bench: torch in channels_last and freezing, and the products alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastcnn.bench.cases import Case
from fastcnn.bench.contenders import Builders, Run, compiled, inferring

ALONE = "convolutions and dense layers alone"
OF_TORCH = ("fastcnn", "eager", "torch.compile")


def in_both_formats(make: Callable[..., Case], *modules_and_input: nn.Module | Tensor) -> Case:
    """The case as it is made, with torch's contenders once more, weights and input in channels_last."""
    case, last = make(*modules_and_input), make(*map(channels_last, modules_and_input))
    again = {f"{name} channels_last": build for name, build in last.builders.items() if name in OF_TORCH}
    return case._replace(builders=case.builders | again)


def channels_last(one: nn.Module | Tensor) -> nn.Module | Tensor:
    if isinstance(one, nn.Module):
        return copy.deepcopy(one).to(memory_format=torch.channels_last)
    return one.detach().contiguous(memory_format=torch.channels_last)


def freezing(plain: nn.Module, x: Tensor) -> Builders:
    """torch.compile with weights as constants."""
    return {"torch.compile freezing": lambda: inferring(compiled(plain.eval(), freezing=True), x)}


def products_alone(plain: nn.Module, x: Tensor) -> Builders:
    """A model's convolutions and dense layers, each with the input that it gets."""
    return {ALONE: lambda: _products(plain.eval(), x)}


def _products(plain: nn.Module, x: Tensor) -> Run:
    calls: list[tuple[nn.Module, Tensor]] = []
    layers = [m for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [m.register_forward_hook(lambda m, inputs, _: calls.append((m, inputs[0]))) for m in layers]
    with torch.no_grad():
        plain(x)
    for hook in hooks:
        hook.remove()

    def run() -> Tensor:
        with torch.no_grad():
            for layer, given in calls:
                y = layer(given)
        return y

    return run
