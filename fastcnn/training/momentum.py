"""The paper's rule for its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .._torch_private import add_each, multiply_each
from .eager import Eager


class Momentum(Eager):
    """v <- momentum v - weight_decay lr w - lr dL/dw;  w <- w + v  (Krizhevsky, Sutskever & Hinton 2012, §5).

    torch.optim.SGD keeps v without lr, so that a new lr changes at once what earlier gradients still move;
    here they go on as they were.

    Args:
        params: as of torch.optim.
        lr, momentum, weight_decay: the paper's by default; none may be negative (ValueError).
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"Momentum: {name} must be at least 0, but got {value}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Makes one step; returns the loss where a closure computes it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if weights:
                self._move(weights, [w.grad for w in weights], group)
        return loss

    def _move(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        for w in weights:
            if not self.state[w]:
                self.state[w]["v"] = torch.zeros_like(w)
        v = [self.state[w]["v"] for w in weights]
        multiply_each(v, group["momentum"])
        add_each(v, weights, alpha=-group["weight_decay"] * group["lr"])
        add_each(v, gradients, alpha=-group["lr"])
        add_each(weights, v)
