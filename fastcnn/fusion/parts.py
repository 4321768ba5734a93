"""The part of a block that a call in a traced graph is, if any."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional as F

from .. import nn as fused
from .._plain import GroupedLRN
from ..stages import LRN, MaxPool
from .guard import customised, written


@dataclass(frozen=True)
class Part:
    """A call that a block may take over.

    Attributes:
        kind: "conv", "bn", "relu", "lrn", "pool", or "nothing" for what returns its input.
        input: what it is called on.
        spec: of an LRN or a pooling.
        arguments: a convolution function's, by their names.
        inplace: whether it overwrites its input.
        per_image: whether (C, H, W) is an image to it; to torch's LRN it is C images of channels H.
        path: of the layer called, or of the batch norm whose tensors a function is given.
        settings: the layer's attributes that say what it does.
        channels: of a convolution's output, or of a batch norm, where known.
    """

    kind: str
    input: Node
    spec: LRN | MaxPool | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    inplace: bool = False
    per_image: bool = False
    path: str = ""
    settings: tuple[str, ...] = ()
    channels: int | None = None


_CONV = ("stride", "padding", "dilation", "groups", "padding_mode")
_LRN = ("size", "alpha", "beta", "k")
_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_DROPOUT = ("training",)
# By exact class, since a subclass may do anything: its kind, and the attributes that say what it does.
LAYERS: dict[type, tuple[str, tuple[str, ...]]] = {
    nn.Conv2d: ("conv", _CONV),
    nn.LazyConv2d: ("conv", _CONV),
    nn.BatchNorm2d: ("bn", ("training", "eps")),
    nn.ReLU: ("relu", ("inplace",)),
    nn.LocalResponseNorm: ("lrn", _LRN),
    fused.LocalResponseNorm: ("lrn", _LRN),
    GroupedLRN: ("lrn", ("spec",)),
    nn.MaxPool2d: ("pool", _POOL),
    fused.MaxPool2d: ("pool", _POOL),
    fused.ConvBlock2d: ("block", ()),
    nn.Identity: ("nothing", ()),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout), ("nothing", _DROPOUT)),
}
_NAMED = (nn.Conv2d, nn.LocalResponseNorm, nn.MaxPool2d)  # whose subclasses are said to be no part

_BATCH_NORM = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
# By how and what is called: kind, and parameters after the input. F.conv2d is torch.conv2d.
_CALLS: dict[tuple[str, Any], tuple[str, tuple[str, ...]]] = {
    ("call_function", torch.conv2d): ("conv", ("weight", "bias", *_CONV[:-1])),
    ("call_function", F.batch_norm): ("bn", _BATCH_NORM),
    ("call_function", F.relu): ("relu", ("inplace",)),
    ("call_function", torch.relu): ("relu", ()),
    ("call_function", torch.relu_): ("relu_", ()),
    ("call_function", F.local_response_norm): ("lrn", _LRN),
    ("call_function", F.max_pool2d): ("pool", _POOL),
    ("call_function", torch.max_pool2d): ("pool", _POOL[:-1]),
    ("call_function", F.dropout): ("nothing", ("p", "training", "inplace")),
    ("call_method", "relu"): ("relu", ()),
    ("call_method", "relu_"): ("relu_", ()),
}


def part_of(node: Node, root: nn.Module, training: bool) -> Part | str | None:
    """Returns what a node is; why it is not, if one may have thought so; None for everything else.

    root: the module whose forward it is in.
    """
    if node.op == "call_module":
        return _of_layer(node, root.get_submodule(str(node.target)), training)
    kind, names = _CALLS.get((node.op, node.target), ("", ()))
    given = dict(zip(("input", *names), node.args, strict=False)) | node.kwargs
    x = given.pop("input", None)
    if (
        not kind
        or not isinstance(x, Node)
        or len(node.args) > len(names) + 1
        or not given.keys() <= set(names)
    ):
        return None
    tensors = [x, *(v for name, v in given.items() if name in _TENSORS)]
    if any(n not in tensors for n in node.all_input_nodes):
        return "its arguments depend on what is computed"
    if kind == "conv":
        return Part("conv", x, arguments=given)
    if kind == "bn":
        return _batch_norm(x, given, root)
    if kind == "nothing":
        return Part(kind, x) if given.get("training") is False else None
    if kind.startswith("relu"):
        return Part("relu", x, inplace=kind == "relu_" or bool(given.get("inplace")))
    return _with_spec(Part(kind, x), given)


_TENSORS = ("running_mean", "running_var", "weight", "bias")


def _batch_norm(x: Node, given: dict[str, Any], root: nn.Module) -> Part | None:
    """Returns the part of a batch norm that is a function call on a layer's own tensors, as timm's are."""
    prefixes = {str(t.target).rpartition(".")[0] for name in _TENSORS if (t := given.get(name)) is not None}
    path = prefixes.pop() if len(prefixes) == 1 else ""
    norm = root.get_submodule(path)
    if given.get("training") is not False or not isinstance(norm, nn.BatchNorm2d):
        return None
    for name in _TENSORS:
        own, there = getattr(norm, name), given.get(name)
        if (there and there.target) != (None if own is None else f"{path}.{name}".lstrip(".")):
            return None
    same = given.get("eps") == norm.eps and norm.running_mean is not None
    return Part("bn", x, path=path, settings=("eps",), channels=norm.num_features) if same else None


def _of_layer(node: Node, m: nn.Module, training: bool) -> Part | str | None:
    kind, settings = LAYERS.get(written(type(m)), ("", ()))
    path = str(node.target)
    if not kind:
        name = next((c.__name__ for c in _NAMED if isinstance(m, c)), None)
        return name and f"{type(m).__name__} is a subclass of {name}"
    if kind == "block" or len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], Node):
        return None
    if (reason := customised(m)) is not None:
        return f"it {reason}"
    values = {name: getattr(m, name) for name in settings}
    part = Part(kind, node.args[0], path=path, settings=settings)
    if kind == "conv" and values["padding_mode"] != "zeros":
        return f"padding_mode is {values['padding_mode']!r}"
    if kind == "conv":
        return replace(part, channels=int(m.out_channels))  # type: ignore[arg-type]
    if kind == "bn":
        if m.running_mean is None:
            return "it keeps no running statistics"
        return replace(part, channels=int(m.num_features))  # type: ignore[arg-type]
    if kind == "nothing":
        return None if training and settings else part
    if kind == "relu":
        return replace(part, inplace=bool(values["inplace"]))
    if "spec" in values:
        return replace(part, spec=values["spec"], per_image=True)
    return _with_spec(part, values)


def _with_spec(part: Part, given: dict[str, Any]) -> Part | str:
    if given.pop("return_indices", False):
        return "it returns indices"
    try:
        return replace(part, spec=(LRN if part.kind == "lrn" else MaxPool)(**given))
    except (RuntimeError, TypeError) as error:  # which the call itself will raise
        return str(error)
