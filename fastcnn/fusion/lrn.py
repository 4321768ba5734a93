"""LRN as people write it: an average pooling of squares over the channels, in torch's other functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.nn import functional as F

from .guard import Guard, customised

_POOLS = {nn.AvgPool3d, nn.AvgPool2d, F.avg_pool3d, F.avg_pool2d}
_SETTINGS = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
WITHIN = "it normalises within channels, as a block does not"


def rewrite(graph: Graph, root: nn.Module, guard: Guard) -> list[tuple[Node, str]]:
    """Puts F.local_response_norm in the place of x / (k + alpha * mean)**beta, mean that of its squares.

    Each is proved on a drawn input.

    Returns:
        Poolings within channels, which are left, and why.
    """
    left = []
    for node in list(graph.nodes):
        found = _match(node, root)
        if found is None:
            continue
        x, pool, size, alpha, beta, k = found
        if size is None:
            left.append((pool, WITHIN))
            continue
        calls = list(_between(node, x))
        if any(len(call.users) > 1 for call in calls if call is not node):
            continue
        if not _same(node, x, root, (size, alpha, beta, k)):
            continue
        if pool.op == "call_module":
            guard.passes(root.get_submodule(str(pool.target)), *_SETTINGS)
        with graph.inserting_before(node):
            call = graph.call_function(F.local_response_norm, (x, size, alpha, beta, k))
        node.replace_all_uses_with(call)
        for unused in calls:
            graph.erase_node(unused)
    return left


def _match(node: Node, root: nn.Module) -> tuple[Any, ...] | None:
    """Returns x, the pooling, and size (None within channels), alpha, beta and k, if it looks like LRN."""
    x, power = _operands(node, "div")
    base, beta = _operands(power, "pow")
    total, k = _operands(base, "add")
    mean, alpha = _operands(total, "mul")
    squeezed, _ = _operands(mean, "squeeze")
    pool = mean if squeezed is None else squeezed
    if not isinstance(pool, Node) or not all(isinstance(n, (int, float)) for n in (alpha, beta, k)):
        return None
    layer = root.get_submodule(str(pool.target)) if pool.op == "call_module" else None
    if (type(layer) if layer else pool.target) not in _POOLS or (layer and customised(layer)):
        return None
    kernel: Any = layer.kernel_size if layer else [*pool.args, pool.kwargs.get("kernel_size")][1]
    if squeezed is None:
        return x, pool, None, alpha, beta, k
    size = kernel[0] if isinstance(kernel, (tuple, list)) else kernel
    return (x, pool, size, alpha, beta, k) if isinstance(size, int) and isinstance(x, Node) else None


_ALIASES = {"truediv": "div", "true_divide": "div", "__pow__": "pow"}


def _operands(node: Any, name: str) -> tuple[Any, Any]:
    """Returns the tensor that a call of this name is on, and its other argument; (None, None) for others."""
    if not isinstance(node, Node) or node.op not in ("call_method", "call_function"):
        return None, None
    called = str(getattr(node.target, "__name__", node.target)).rstrip("_")
    if _ALIASES.get(called, called) != name or not node.args:
        return None, None
    first, second = (*node.args, *node.kwargs.values(), None)[:2]
    return (second, first) if name in ("add", "mul") and isinstance(second, Node) else (first, second)


def _between(node: Node, x: Node) -> Iterator[Node]:
    """Yields the calls that lead from x to a node, the last first."""
    yield node
    for argument in node.all_input_nodes:
        if argument is not x:
            yield from _between(argument, x)


def _same(node: Node, x: Node, root: nn.Module, spec: tuple[Any, ...]) -> bool:
    """Returns whether a node gives LRN of x, for numbers of a size at which all of its constants matter."""
    size, alpha, _, k = spec
    scale = (abs(k / alpha) if k and alpha else 1.0) ** 0.5
    drawn = scale * torch.randn(2, size + 4, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def value(n: Node) -> Any:
        if n is x:
            return drawn
        args, kwargs = map_arg(n.args, value), map_arg(n.kwargs, value)
        if n.op == "call_module":
            return root.get_submodule(str(n.target))(*args)
        if n.op not in ("call_method", "call_function"):
            raise TypeError(n.op)
        called: Any = n.target if n.op == "call_function" else getattr(torch.Tensor, str(n.target))
        return called(*args, **kwargs)

    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        try:
            torch.testing.assert_close(value(node), F.local_response_norm(drawn, *spec))
        except Exception:  # whatever else it is, it is not that
            return False
    return True
