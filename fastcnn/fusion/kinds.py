"""Which part of a block a call in a traced graph is, if any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional as F

from .. import nn as fused
from .._plain import GroupedLRN
from ..stages import LRN, MaxPool


@dataclass(frozen=True)
class Part:
    """A call that a block may take over.

    Attributes:
        kind: "conv", "bn", "relu", "lrn" or "pool".
        input: what it is called on.
        spec: of an LRN or a pooling.
        arguments: a convolution's, by the names of torch's function; its own module's weight and bias apart.
        inplace: whether it overwrites its input.
        per_image: whether (C, H, W) is an image to it; to torch's LRN it is C images of channels H.
        channels: of a convolution's output, or of a batch norm, where known.
    """

    kind: str
    input: Node
    spec: LRN | MaxPool | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    inplace: bool = False
    per_image: bool = False
    channels: int | None = None


Found = tuple[str, Any] | str  # a kind and what belongs to it; or why it is none


def _conv(m: nn.Conv2d) -> Found:
    if m.padding_mode != "zeros":
        return f"padding_mode is {m.padding_mode!r}"
    names = ("stride", "padding", "dilation", "groups")
    return "conv", {name: getattr(m, name) for name in names}


def _batch_norm(m: nn.BatchNorm2d) -> Found:
    return ("bn", None) if m.running_mean is not None else "it keeps no running statistics"


def _pool(m: nn.MaxPool2d) -> Found:
    if m.return_indices:
        return "it returns indices"
    return "pool", (m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)


def _lrn(m: nn.LocalResponseNorm) -> Found:
    return "lrn", (m.size, m.alpha, m.beta, m.k)


# By exact class: a subclass may do anything.
_MODULES: dict[type, Callable[[Any], Found]] = {
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _batch_norm,
    nn.ReLU: lambda m: ("relu", m.inplace),
    nn.LocalResponseNorm: _lrn,
    fused.LocalResponseNorm: _lrn,
    GroupedLRN: lambda m: ("lrn", m.spec),
    nn.MaxPool2d: _pool,
    fused.MaxPool2d: _pool,
}
_NAMED = (nn.Conv2d, nn.LocalResponseNorm, nn.MaxPool2d)  # whose subclasses are said to be no part

_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
# By how and what is called: kind, and parameters after the input.
_CALLS: dict[tuple[str, Any], tuple[str, tuple[str, ...]]] = {
    ("call_function", F.conv2d): ("conv", ("weight", "bias", "stride", "padding", "dilation", "groups")),
    ("call_function", F.relu): ("relu", ("inplace",)),
    ("call_function", torch.relu): ("relu", ()),
    ("call_function", torch.relu_): ("relu_", ()),
    ("call_function", F.local_response_norm): ("lrn", ("size", "alpha", "beta", "k")),
    ("call_function", F.max_pool2d): ("pool", _POOL),
    ("call_function", torch.max_pool2d): ("pool", _POOL[:-1]),
    ("call_method", "relu"): ("relu", ()),
    ("call_method", "relu_"): ("relu_", ()),
}


def customised(m: nn.Module) -> str | None:
    """What was hung on a module, so that calling it is more than its class's forward."""
    if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
        return "has hooks"
    return "has a forward of its own" if {"forward", "_conv_forward"} & vars(m).keys() else None


def part_of(node: Node, module: nn.Module | None) -> Part | str | None:
    """What a node is; why it is not, if one may have thought so; None for everything else.

    module: the one that it calls.
    """
    if node.op == "call_module":
        return _part_of_module(node, module)
    found = _CALLS.get((node.op, node.target))
    if found is None:
        return None
    kind, names = found
    given = dict(zip(("input", *names), node.args, strict=False)) | node.kwargs
    x = given.pop("input", None)
    if not isinstance(x, Node) or len(node.args) > len(names) + 1 or not given.keys() <= set(names):
        return None
    tensors = [x, *(given.get(name) for name in ("weight", "bias"))]
    if any(n not in tensors for n in node.all_input_nodes):
        return "its arguments depend on what is computed"
    if kind == "conv":
        return Part("conv", x, arguments=given)
    if kind.startswith("relu"):
        return Part("relu", x, inplace=kind == "relu_" or bool(given.get("inplace")))
    if given.pop("return_indices", False):
        return "it returns indices"
    return _with_spec(kind, x, (), given)


def _part_of_module(node: Node, module: nn.Module | None) -> Part | str | None:
    kinds = _MODULES.get(type(module))
    if module is None or kinds is None:
        name = next((c.__name__ for c in _NAMED if isinstance(module, c)), None)
        return name and f"{type(module).__name__} is a subclass of {name}"
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], Node):
        return None
    reason = customised(module)
    if reason is not None:
        return f"it {reason}"
    found = kinds(module)
    if isinstance(found, str):
        return found
    (kind, value), x = found, node.args[0]
    if isinstance(module, nn.Conv2d):
        return Part(kind, x, arguments=value, channels=module.out_channels)
    if isinstance(module, nn.BatchNorm2d):
        return Part(kind, x, channels=module.num_features)
    if kind == "relu":
        return Part(kind, x, inplace=value)
    return Part(kind, x, value, per_image=True) if isinstance(value, LRN) else _with_spec(kind, x, value, {})


def _with_spec(kind: str, x: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Part | str:
    try:
        return Part(kind, x, (LRN if kind == "lrn" else MaxPool)(*args, **kwargs))
    except (RuntimeError, TypeError, ValueError) as error:  # which the call itself will raise
        return str(error)
