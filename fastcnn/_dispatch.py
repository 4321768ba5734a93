"""Whether a call may bypass PyTorch's dispatcher, and whether autograd records it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_Keys = torch._C.DispatchKeySet
_Key = torch._C.DispatchKey

# The dispatch keys between a call on plain tensors and its kernel, autograd's among them; without them only
# the device's is left.
_TRANSPARENT = _Keys(_Key.ADInplaceOrView) | _Keys(_Key.BackendSelect)
for _key in (_Key.CPU, _Key.AutogradCPU, _Key.CUDA, _Key.AutogradCUDA):
    _TRANSPARENT = _TRANSPARENT | _Keys(_key)
_DEVICES = {(_Keys(key) - _Keys(key)).raw_repr() for key in (_Key.CPU, _Key.CUDA)}
_AUTOGRAD = _Key.AutogradFunctionality
_TYPES = (Tensor, torch.nn.Parameter)

keys_of = torch._C._dispatch_keys
included, excluded = torch._C._dispatch_tls_local_include_set, torch._C._dispatch_tls_local_exclude_set
_profiler_enabled, _function_modes = torch._C._autograd._profiler_enabled, torch._C._len_torch_function_stack

# Pairs of included and excluded keys that were found to be transparent: a look-up instead of set algebra.
known: set[tuple[int, int]] = set()


def needs_grad(*tensors: Tensor | None) -> bool:
    """Returns whether autograd records what is computed from these.

    Not in inference mode nor inside of an op's kernel, though gradients may be enabled there.
    """
    if not torch.is_grad_enabled() or torch._C._dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD):
        return False
    return any(t is not None and t.requires_grad for t in tensors)


def in_transform() -> bool:
    """Returns whether torch.func transforms or forward-mode differentiation are active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def torch_alone_is_known(*tensors: Tensor | None) -> bool:
    """Returns whether somebody listens who knows torch's operations, but would not know our ops.

    That is a tensor's class with a ``__torch_dispatch__``, as DTensor's, unless torch compiles with it; or a
    counter of FLOPs, to import which for a formula of ours would take longer than to import fastcnn.
    """
    classes = {type(t) for t in tensors if t is not None} - {FakeTensor, FunctionalTensor}
    if any(c.__torch_dispatch__ is not Tensor.__torch_dispatch__ for c in classes):
        return True
    return any(type(m).__module__ == "torch.utils.flop_counter" for m in _get_current_dispatch_mode_stack())


def can_bypass(*tensors: Tensor | None) -> bool:
    """Returns whether the dispatcher would do nothing for an op on these tensors but record gradients.

    True for plain tensors: no autocast, transform, tracing, compilation, mode, profiler or subclass. Then
    a backend, or an autograd.Function around it, may be called directly. On a small tensor the dispatch of
    an op written in Python takes longer than the work: such a call was 3.3 times as long (docs/cpu.md).
    """
    if torch.compiler.is_dynamo_compiling():
        return False
    if forward_ad._current_level >= 0 or _function_modes() or _profiler_enabled():
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
    rest = _Keys.from_raw_repr(keys) - _Keys.from_raw_repr(without) - _TRANSPARENT
    if rest.raw_repr() not in _DEVICES:
        return False
    known.add((keys, without))
    return True
