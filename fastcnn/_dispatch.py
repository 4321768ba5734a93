"""Checks whether a call may bypass PyTorch's dispatcher, and whether autograd records it."""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
from torch import Tensor

from ._torch_private import (
    AUTOGRAD,
    BACKEND_SELECT,
    DEVICES,
    TRACED,
    Keys,
    autograd_is_off,
    excluded,
    flops_are_counted,
    forward_level,
    function_modes,
    in_func_transform,
    included,
    keys_from_number,
    keys_of,
    profiler_enabled,
    sees_listeners,
    sees_transforms,
)

_TYPES = (Tensor, torch.nn.Parameter)

# Pairs of included and excluded keys that were found to be transparent: a look-up instead of set algebra.
known: set[tuple[int, int]] = set()


def needs_grad(*tensors: Tensor | None) -> bool:
    """Returns whether autograd records what is computed from these.

    Not in inference mode nor inside of an op's kernel, though gradients may be enabled there.
    """
    if not torch.is_grad_enabled() or autograd_is_off():
        return False
    return any(t is not None and t.requires_grad for t in tensors)


def in_transform() -> bool:
    """Returns whether torch.func transforms or forward-mode differentiation are known to be active."""
    return sees_transforms and (in_func_transform() or forward_level() >= 0)


def torch_alone_is_known(*tensors: Tensor | None) -> bool:
    """Returns whether somebody listens who knows torch's operations, but would not know our ops.

    That is a tensor's class with a ``__torch_dispatch__``, as DTensor's, unless torch compiles with it; or a
    counter of FLOPs, to import which for a formula of ours would take longer than to import fastcnn. Where
    transforms are not seen, any call may be in one.
    """
    if not sees_transforms:
        return True
    classes = {type(t) for t in tensors if t is not None} - TRACED
    if any(c.__torch_dispatch__ is not Tensor.__torch_dispatch__ for c in classes):
        return True
    return flops_are_counted()


def can_bypass(*tensors: Tensor | None) -> bool:
    """Returns whether the dispatcher would do nothing for an op on these tensors but record gradients.

    True for plain tensors: no autocast, transform, tracing, compilation, mode, profiler or subclass. Then
    a backend, or an autograd.Function around it, may be called directly. On a small tensor the dispatch of
    an op written in Python takes longer than the work: such a call was 3.3 times as long (docs/cpu.md).
    """
    if not sees_listeners or torch.compiler.is_dynamo_compiling():
        return False
    if forward_level() >= 0 or function_modes() or profiler_enabled():
        return False
    keys = included().raw_repr()
    for t in tensors:
        if t is not None:
            if type(t) not in _TYPES:
                return False
            keys |= keys_of(t).raw_repr()
    pair = keys, excluded().raw_repr()
    return pair in known or _is_transparent(*pair)


def _is_transparent(keys: int, without: int) -> bool:
    """Returns whether nothing but autograd lies before the device's key, and remembers that."""
    transparent, devices = _sets()
    rest = keys_from_number(keys) - keys_from_number(without) - transparent
    if rest.raw_repr() not in devices:
        return False
    known.add((keys, without))
    return True


@functools.cache
def _sets() -> tuple[Any, set[int]]:
    """Returns the keys between a call on plain tensors and its kernel, and what is left of a device's."""
    transparent = functools.reduce(operator.or_, map(Keys, (*DEVICES, *AUTOGRAD, BACKEND_SELECT)))
    return transparent, {(Keys(device) - Keys(device)).raw_repr() for device in DEVICES}
