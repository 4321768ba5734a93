"""Optimizers that do not import torch's compiler: seconds at the start, for what is never compiled here.

Some of torch's methods import it to keep it out of themselves (torch._disable_dynamo, torch 2.13).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


def _undecorated(method: Any) -> Any:
    """Returns the function in a decorated one, or the same where torch does not tell."""
    return getattr(method, "__wrapped__", method)


class Eager(Optimizer):
    """A base class for optimizers whose ``step`` runs as it is."""

    add_param_group = _undecorated(Optimizer.add_param_group)
    load_state_dict = _undecorated(Optimizer.load_state_dict)
    state_dict = _undecorated(Optimizer.state_dict)
    zero_grad = _undecorated(Optimizer.zero_grad)


class AdamW(Eager, torch.optim.AdamW):
    """torch's, without ``differentiable``."""

    step = torch.no_grad()(_undecorated(torch.optim.AdamW.step))
