"""The chains of a traced graph that are blocks, and the graph with a call for each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from ..stages import LRN, MaxPool, Stages
from . import runtime
from .guard import Guard
from .parts import Part, part_of


@dataclass(frozen=True)
class Chain:
    """Calls, each the only reader of the one before, that make a block."""

    nodes: tuple[Node, ...]
    parts: tuple[Part, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(part.kind for part in self.parts if part.kind != "nothing")

    @property
    def per_image(self) -> bool:
        return any(part.per_image for part in self.parts)

    @property
    def stages(self) -> Stages:
        kinds = self.kinds
        specs: dict[str, Any] = {p.kind: p.spec for p in self.parts if p.spec is not None}
        pool_first = {"pool", "lrn"} <= specs.keys() and kinds.index("pool") < kinds.index("lrn")
        return Stages("relu" in kinds, order="pool_lrn" if pool_first else "lrn_pool", **specs)

    @property
    def calls(self) -> list[str]:
        return [described(node) for node in self.nodes]


def _may_follow(parts: list[Part], part: Part, fold_bn: bool) -> bool:
    """Returns whether a block that does these may do this next.

    A ReLU behind a pooling is one before it: the maximum commutes with it, and so do their gradients; but
    not where a window may see padding alone, whose maximum is -inf.
    """
    kinds = {p.kind for p in parts} - {"nothing"}
    if part.kind == "nothing":
        return True
    if part.kind == "bn":
        return fold_bn and kinds == {"conv"} and part.channels == parts[0].channels  # None of a function
    if part.kind == "relu":
        return not {"relu", "lrn"} & kinds and not any(_may_see_nothing(p.spec) for p in parts)
    return part.kind in ("lrn", "pool") and part.kind not in kinds


def _may_see_nothing(spec: LRN | MaxPool | None) -> bool:
    return isinstance(spec, MaxPool) and max(spec.pairs[2]) > 0 and max(spec.pairs[3]) > 1


def _is_worth_it(kinds: tuple[str, ...]) -> bool:
    """Returns whether a block is more than one of torch's functions, or does it better."""
    return bool({"lrn", "pool", "bn"} & set(kinds)) or (kinds[0] == "conv" and "relu" in kinds)


def find(
    graph: Graph, root: nn.Module, training: bool, fold_bn: bool
) -> tuple[list[Chain], list[tuple[Node, str]]]:
    """Returns the chains in order, and what else one may have looked for in them, with the reason why not."""
    found = {node: part_of(node, root, training) for node in graph.nodes}
    parts = {node: part for node, part in found.items() if isinstance(part, Part)}
    fold_bn = fold_bn and not training and not any(map(_writes_to_a_parameter, graph.nodes))
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
        while parts[nodes[-1]].kind == "nothing":
            nodes.pop()
        chain = Chain(tuple(nodes), tuple(parts[n] for n in nodes))
        if _is_worth_it(chain.kinds):
            chains.append(chain)
            taken.update(nodes)
    left = [(node, part) for node, part in found.items() if isinstance(part, str)]
    alone = [node for node, part in parts.items() if part.kind == "conv" and node not in taken]
    return chains, left + [(node, _why_alone(node, root)) for node in alone]


def _writes_to_a_parameter(node: Node) -> bool:
    """Returns whether a call overwrites a parameter or buffer, which a block may read before or after."""
    return described(node).endswith("_") and any(n.op == "get_attr" for n in node.all_input_nodes)


def _why_alone(node: Node, root: nn.Module) -> str:
    if len(node.users) != 1:
        return f"its output has {len(node.users)} readers"
    (reader,) = node.users
    if reader.op == "output":
        return "nothing follows"
    is_layer = reader.op == "call_module"
    name = type(root.get_submodule(str(reader.target))).__name__ if is_layer else described(reader)
    return f"{name} follows"


def described(node: Node) -> str:
    """Returns a call as one would write it."""
    return str(getattr(node.target, "__name__", node.target))


def replace(graph: Graph, chain: Chain, root: nn.Module, training: bool, guard: Guard) -> runtime.Chain:
    """Puts one call in the place of a chain's first, where its inputs are what they were."""
    first, head = chain.nodes[0], chain.parts[0]
    made = _kind_of(head, root)(chain.stages, chain.per_image)
    given: tuple[Any, ...] = (head.input,)
    if isinstance(made, runtime.LayerBlock):
        made.take(root, *(part.path for part in chain.parts if part.kind in ("conv", "bn")))
        given = next(iter(graph.nodes)), head.input
    with graph.inserting_before(first):
        node = graph.call_function(made, given, head.arguments)
    chain.nodes[-1].replace_all_uses_with(node)
    for unused in reversed(chain.nodes):
        graph.erase_node(unused)
    for part in chain.parts:
        if part.path:
            m = root.get_submodule(part.path)
            guard.passes(m, *part.settings)
            guard.child(root, part.path)
            if "training" in part.settings:  # this forward's mode; the layer may be in the other now
                guard.entry(m, "", "training", training)
    return made


def _kind_of(head: Part, root: nn.Module) -> type[runtime.Chain]:
    if head.kind != "conv":
        return runtime.Epilogue
    if not head.path:
        return runtime.FunctionBlock
    is_lazy = isinstance(root.get_submodule(head.path), nn.LazyConv2d)
    return runtime.LazyBlock if is_lazy else runtime.LayerBlock
