"""What a forward does besides computing values, while it is traced: read attributes; or what it must not."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .values import Untraceable, is_torchs

_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
_MISSING = object()
_MODES = "forward switches gradients or autocast on or off, or asks whether they are"
# What would be done once, in tracing; or asked once, which torch itself may.
_REFUSED: tuple[tuple[Any, str, str], ...] = (
    (torch._C, "_set_grad_enabled", _MODES),
    (torch.autocast, "__enter__", _MODES),
    (torch.inference_mode, "__enter__", _MODES),
    (torch.autograd.graph.saved_tensors_hooks, "__enter__", "forward changes what is kept for backward"),
    (torch.autograd.Function, "apply", "forward calls an autograd.Function"),
    (nn.Module, "parameters", "forward looks at a module's parameters"),
    (nn.Module, "buffers", "forward looks at a module's buffers"),
)
_QUESTIONS: tuple[tuple[Any, str, str], ...] = (
    (torch, "is_grad_enabled", _MODES),
    (torch, "is_inference_mode_enabled", _MODES),
    (torch, "is_autocast_enabled", _MODES),
    (torch.compiler, "is_compiling", "forward asks whether it is compiled"),
    (torch.compiler, "is_exporting", "forward asks whether it is exported"),
)


# A module, the name of an attribute, its value and a copy of what that holds.
Read = tuple[nn.Module, str, Any, Any]


class Reads:
    """Attributes that a forward has read, with their values, and copies of those that are containers."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, str], Read] = {}
        self.refused: str | None = None

    def note(self, m: nn.Module, name: str, value: Any) -> None:
        torchs = name in _INTERNAL or function_of(value) is vars(nn.Module).get(name, _MISSING)
        if (
            torchs
            or name == "forward"
            or name.startswith("__")
            or isinstance(value, (torch.Tensor, nn.Module))
        ):
            return
        if isinstance(value, (random.Random, torch.Generator)):
            raise Untraceable(f"forward draws random numbers from {name}")
        if isinstance(getattr(type(m), name, None), property):
            return  # what it reads is noted by itself
        self.found.setdefault((id(m), name), (m, name, function_of(value), held_in(value, copy.deepcopy)))


def held_in(value: Any, copied: Callable[[Any], Any] = lambda contents: contents) -> Any:
    """What a container or a plain object holds, or a copy of it; None for everything else."""
    if isinstance(value, (dict, list, set)):
        return copied(value)
    plain = not callable(value) and not isinstance(value, torch.nn.Module)
    return copied(vars(value)) if plain and hasattr(value, "__dict__") else None


def function_of(value: Any) -> Any:
    """Of a method, which is made anew each time that it is read, its function."""
    return getattr(value, "__func__", value)


@contextlib.contextmanager
def watching(m: nn.Module) -> Iterator[Reads]:
    """Record what is read of modules. Refuse, and undo, what is done to m's attributes, and random draws.

    Raises:
        Untraceable: on leaving, or where something is refused.
    """
    reads = Reads()
    contents = [(child, _contents(child)) for child in m.modules()]
    tensors = [(t, t._version) for t in (*m.parameters(), *m.buffers())]
    generators = _generators()
    try:
        with contextlib.ExitStack() as patches:
            for owner, name, why in _REFUSED:
                patches.enter_context(_replaced(owner, name, _refusal(reads, why)))
            for owner, name, why in _QUESTIONS:
                asked = _question(getattr(owner, name), _refusal(reads, why))
                patches.enter_context(_replaced(owner, name, asked))
            patches.enter_context(_replaced(nn.Module, "__getattribute__", _recording(reads)))
            yield reads
    finally:
        changed = [name for child, before in contents for name in _restore(child, before)]
        now = _generators()
        drawn = not torch.equal(now[0], generators[0]) or now[1:] != generators[1:]
        torch.set_rng_state(generators[0])
        random.setstate(generators[1])
    if reads.refused:
        raise Untraceable(reads.refused)
    if changed:
        constant = changed[0].startswith("_tensor_constant")
        raise Untraceable(f"forward {'makes a constant tensor' if constant else f'changes {changed[0]}'}")
    if drawn:
        raise Untraceable("forward draws random numbers")
    if any(t._version != version for t, version in tensors):
        raise Untraceable("forward changes a parameter or buffer")


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name) if own is None else setattr(owner, name, own)


def _refusal(reads: Reads, why: str) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        reads.refused = why  # in case the forward catches what is raised
        raise Untraceable(why)

    return refuse


def _question(answer: Callable[..., Any], refuse: Callable[..., Any]) -> Any:
    def ask(*args: Any, **kwargs: Any) -> Any:
        return (answer if is_torchs(1) else refuse)(*args, **kwargs)

    return ask


def _recording(reads: Reads) -> Any:
    def read(m: nn.Module, name: str) -> Any:
        value = object.__getattribute__(m, name)
        reads.note(m, name, value)
        return value

    return read


def _contents(m: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Attributes, and copies of those that are containers."""
    kinds = (dict, list, set)
    return {name: (v, v.copy() if isinstance(v, kinds) else None) for name, v in vars(m).items()}


def _restore(m: nn.Module, before: dict[str, tuple[Any, Any]]) -> list[str]:
    """Names of the attributes that are not what they were, and now are again."""
    changed = [name for name in vars(m) if name not in before]
    for name in changed:
        del vars(m)[name]
    for name, (value, contents) in before.items():
        same = name in vars(m) and vars(m)[name] is value
        vars(m)[name] = value
        if contents is not None and not _alike(value, contents):
            same = False
            value.clear()
            value.extend(contents) if isinstance(value, list) else value.update(contents)
        if not same:
            changed.append(name)
    return changed


def _alike(a: Any, b: Any) -> bool:
    """Whether containers hold the same objects."""
    if isinstance(a, dict):
        a, b = [x for item in a.items() for x in item], [x for item in b.items() for x in item]
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _generators() -> tuple[torch.Tensor, Any, str]:
    """States of the generators that Python code may draw from."""
    numpy = sys.modules.get("numpy")
    state = str(numpy and numpy.random.get_state(legacy=False))
    return torch.get_rng_state(), random.getstate(), state
