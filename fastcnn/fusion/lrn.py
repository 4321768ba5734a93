"""LRN as people write it: x / (k + alpha * mean)**beta, with the mean of squares by an average pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.nn import functional as F

from .guard import Guard, customised

_POOLS = {nn.AvgPool3d, nn.AvgPool2d, F.avg_pool3d, F.avg_pool2d}
_SETTINGS = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_WITHIN = "this LRN is within channels, a block's across them"
_BEFORE = {"pow", "square", "mul", "unsqueeze"}  # calls that make new values of x's
_AFTER = {"squeeze", "mul", "add", "pow"}  # which may overwrite what the pooling has made
_LAST = {"div", "truediv", "true_divide"}


def rewrite(graph: Graph, root: nn.Module, guard: Guard) -> list[tuple[Node, str]]:
    """Puts F.local_response_norm in the place of each that is proved to be it on a drawn input.

    Returns:
        Poolings within channels, which are left, and why.
    """
    left = []
    for pool in list(graph.nodes):
        layer = root.get_submodule(str(pool.target)) if pool.op == "call_module" else None
        if (type(layer) if layer else pool.target) not in _POOLS or (layer and customised(layer)):
            continue
        x, spec, calls = _around(pool, layer)
        if not calls or not _is_lrn(x, calls, root, spec):
            continue
        if spec[0] is None:
            left.append((pool, _WITHIN))
            continue
        if layer:
            guard.passes(layer, *_SETTINGS)
            guard.child(root, str(pool.target))
        with graph.inserting_before(calls[-1]):
            calls[-1].replace_all_uses_with(graph.call_function(F.local_response_norm, (x, *spec)))
        for call in reversed(calls):
            graph.erase_node(call)
    return left


def _around(pool: Node, layer: Any) -> tuple[Any, tuple[Any, ...], list[Node]]:
    """Returns x, LRN's (size, alpha, beta, k), and the calls from x to its end; no calls where there is no x.

    size: None where no dimension for the channels is made before the pooling.
    """
    squares: Any = _first(pool)
    across = _name(squares) == "unsqueeze"
    calls = [_first(squares), squares, pool] if across else [squares, pool]
    x = _first(calls[0])
    numbers: dict[str, Any] = {}
    while x is not None and (calls[-1] is pool or x not in calls[-1].all_input_nodes):
        if any(len(call.users) != 1 for call in calls):
            return x, (), []
        calls.append(next(iter(calls[-1].users)))
        numbers[_name(calls[-1]).strip("_").removeprefix("i")] = next(
            (a for a in calls[-1].args if isinstance(a, (int, float))), None
        )
    kernel: Any = layer.kernel_size if layer else [*pool.args[1:], pool.kwargs.get("kernel_size")][0]
    size = kernel[0] if isinstance(kernel, (tuple, list)) else kernel
    spec = size if across else None, *(numbers.get(name) for name in ("mul", "pow", "add"))
    return (
        x,
        spec,
        calls if isinstance(x, Node) and None not in spec[1:] and _are_plain(x, calls, pool) else [],
    )


def _are_plain(x: Node, calls: list[Node], pool: Node) -> bool:
    """Returns whether each call is one of LRN's; another may change what no number shows."""
    at = calls.index(pool)
    own = all(n is x or n in calls for call in calls for n in call.all_input_nodes)
    before, after = (
        all(_name(c) in _BEFORE for c in calls[:at]),
        (_name(c).strip("_") for c in calls[at + 1 : -1]),
    )
    known = before and all(name.removeprefix("i") in _AFTER for name in after) and _name(calls[-1]) in _LAST
    return own and known and _squeezes_one(calls)


def _squeezes_one(calls: list[Node]) -> bool:
    """Returns whether the dimension that was made is taken away, and no other of size 1."""
    return all(1 in (*call.args[1:], call.kwargs.get("dim")) for call in calls if _name(call) == "squeeze")


def _first(call: Any) -> Any:
    """Returns the first argument of a call."""
    return next(iter((*call.args, *call.kwargs.values())), None) if isinstance(call, Node) else None


def _name(call: Any) -> str:
    return str(getattr(call.target, "__name__", call.target)) if isinstance(call, Node) else ""


def _is_lrn(x: Node, calls: list[Node], root: nn.Module, spec: tuple[Any, ...]) -> bool:
    """Returns whether the calls are LRN, on numbers of a size at which all of its constants matter."""
    size, alpha, _, k = spec
    scale = (abs(k / alpha) if k and alpha else 1.0) ** 0.5
    shape, generator = (2, (size or 1) + 4, 5, 4), torch.Generator().manual_seed(0)
    values = {x: scale * torch.randn(shape, dtype=torch.float64, generator=generator)}
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for call in calls:
                args, kwargs = map_arg((call.args, call.kwargs), values.__getitem__)
                called: Any = (
                    root.get_submodule(str(call.target)) if call.op == "call_module" else call.target
                )
                called = getattr(torch.Tensor, called) if call.op == "call_method" else called
                values[call] = called(*args, **kwargs)
            if size is not None:
                torch.testing.assert_close(values[calls[-1]], F.local_response_norm(values[x], *spec))
    except Exception:  # whatever else it is, it is not LRN
        return False
    return True
