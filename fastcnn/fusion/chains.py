"""The chains of a traced graph that are blocks, and the graph with a call for each of them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from ..stages import LRN, MaxPool, Stages
from . import runtime
from .kinds import Part, part_of


@dataclass(frozen=True)
class Chain:
    """Calls, each the only reader of the one before, that make a block."""

    nodes: tuple[Node, ...]
    parts: tuple[Part, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(part.kind for part in self.parts)

    @property
    def per_image(self) -> bool:
        return any(part.per_image for part in self.parts)

    @property
    def stages(self) -> Stages:
        kinds = self.kinds
        specs: dict[str, Any] = {p.kind: p.spec for p in self.parts if p.spec is not None}
        pool_first = {"pool", "lrn"} <= specs.keys() and kinds.index("pool") < kinds.index("lrn")
        return Stages("relu" in kinds, order="pool_lrn" if pool_first else "lrn_pool", **specs)


def _may_follow(parts: list[Part], part: Part, fold_bn: bool) -> bool:
    """Whether a block that does these may do this next.

    A ReLU behind a pooling is one before it: the maximum commutes with it, and so do their gradients; but
    not where a window may see padding alone, whose maximum is -inf.
    """
    kinds = {p.kind for p in parts}
    if part.kind == "bn":
        return fold_bn and kinds == {"conv"} and part.channels == parts[0].channels
    if part.kind == "relu":
        return not {"relu", "lrn"} & kinds and not any(_may_see_nothing(p.spec) for p in parts)
    return part.kind in ("lrn", "pool") and part.kind not in kinds


def _may_see_nothing(spec: LRN | MaxPool | None) -> bool:
    return isinstance(spec, MaxPool) and max(spec.pairs[2]) > 0 and max(spec.pairs[3]) > 1


def _worth(kinds: list[str]) -> bool:
    return bool({"lrn", "pool"} & set(kinds)) or (kinds[0] == "conv" and "relu" in kinds)


def find(
    graph: Graph, module_of: Callable[[Node], nn.Module | None], fold_bn: bool
) -> tuple[list[Chain], list[tuple[Node, str]]]:
    """The chains in order, and what else one may have looked for in them, with the reason why it is not.

    module_of: the module that a node calls.
    """
    found = {node: part_of(node, module_of(node)) for node in graph.nodes}
    parts = {node: part for node, part in found.items() if isinstance(part, Part)}
    chains: list[Chain] = []
    taken: set[Node] = set()
    for node, part in parts.items():
        starts = part.kind in ("conv", "lrn", "pool") or (part.kind == "relu" and not part.inplace)
        if node in taken or not starts:
            continue
        nodes = [node]
        while len(nodes[-1].users) == 1:
            reader = next(iter(nodes[-1].users))
            if reader not in parts or parts[reader].input is not nodes[-1]:
                break
            if not _may_follow([parts[n] for n in nodes], parts[reader], fold_bn):
                break
            nodes.append(reader)
        chain = Chain(tuple(nodes), tuple(parts[n] for n in nodes))
        keeps_output = {"relu", "pool"} <= set(chain.kinds) and "lrn" not in chain.kinds
        if keeps_output and any(_overwrites(reader, module_of) for reader in nodes[-1].users):
            continue
        if _worth(list(chain.kinds)):
            chains.append(chain)
            taken.update(nodes)
    left = [(node, part) for node, part in found.items() if isinstance(part, str)]
    for node, part in parts.items():
        if part.kind == "conv" and node not in taken:
            left.append((node, _why_alone(node, module_of)))
    return chains, left


def _overwrites(node: Node, module_of: Callable[[Node], nn.Module | None]) -> bool:
    """Whether a call changes its input: a block's output, kept for backward where a max pooling's is not."""
    if node.op == "call_module":
        return bool(getattr(module_of(node), "inplace", False))
    name = described(node)
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in _AUGMENTED or bool(node.kwargs.get("inplace"))


_AUGMENTED = frozenset(
    f"i{name}" for name in ["add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow"]
)


def _why_alone(node: Node, module_of: Callable[[Node], nn.Module | None]) -> str:
    readers = list(node.users)
    if len(readers) != 1:
        return f"its output has {len(readers)} readers"
    (reader,) = readers
    module = module_of(reader)
    if reader.op == "output":
        return "nothing follows"
    return f"{described(reader) if module is None else type(module).__name__} follows"


def described(node: Node) -> str:
    """A call as one would write it."""
    if node.op in ("call_module", "call_method"):
        return str(node.target)
    return str(getattr(node.target, "__name__", node.target))


class _Name:
    """A constant in the generated code, by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def replace(
    graph: Graph, chain: Chain, module_of: Callable[[Node], nn.Module | None], constants: dict[str, Any]
) -> None:
    """Put one call in the place of a chain's first, where its inputs are what they were."""
    first, head = chain.nodes[0], chain.parts[0]
    stages = _Name(f"_fastcnn_stages_{len(constants)}")
    constants[stages.name] = chain.stages
    with graph.inserting_before(first):
        if head.kind == "conv":
            arguments = head.arguments | ({"per_image": True} if chain.per_image else {})
            weight, bias = _parameters(graph, first, module_of(first), arguments)
            if "bn" in chain.kinds:
                norm = graph.get_attr(str(chain.nodes[1].target))
                both = graph.call_function(runtime.folded, (weight, bias, norm))
                weight, bias = (graph.call_function(operator.getitem, (both, i)) for i in range(2))
            call = graph.call_function(runtime.block, (head.input, weight, bias, stages), arguments)  # type: ignore[arg-type]
        else:
            call = graph.call_function(runtime.epilogue, (head.input, stages, chain.per_image))  # type: ignore[arg-type]
    chain.nodes[-1].replace_all_uses_with(call)
    for node in reversed(chain.nodes):
        graph.erase_node(node)


def _parameters(
    graph: Graph, conv: Node, module: nn.Module | None, arguments: dict[str, Any]
) -> tuple[Any, Any]:
    """Weight and bias of a convolution, a module's looked up when it runs; out of a function's arguments."""
    if module is None:
        return arguments.pop("weight"), arguments.pop("bias", None)
    weight = graph.get_attr(f"{conv.target}.weight")
    return weight, None if module.bias is None else graph.get_attr(f"{conv.target}.bias")
