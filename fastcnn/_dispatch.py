"""Whether PyTorch's dispatcher has anything to do for a call, or may be left out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

_Keys = torch._C.DispatchKeySet
_Key = torch._C.DispatchKey

# What lies between a call on plain tensors and its kernel when there is no gradient to record; and what is
# left without that, which is the device.
_TRANSPARENT = _Keys(_Key.ADInplaceOrView) | _Keys(_Key.BackendSelect)
for _key in (_Key.CPU, _Key.AutogradCPU, _Key.CUDA, _Key.AutogradCUDA):
    _TRANSPARENT = _TRANSPARENT | _Keys(_key)
_DEVICES = {(_Keys(key) - _Keys(key)).raw_repr() for key in (_Key.CPU, _Key.CUDA)}
_TYPES = (Tensor, torch.nn.Parameter)


def records(*tensors: Tensor | None) -> bool:
    """Whether autograd will want to go backward through what is computed from these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def transforms() -> bool:
    """Whether torch.func transforms or forward-mode differentiation are active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def idle(*tensors: Tensor | None) -> bool:
    """Whether an op on these tensors would go straight to its kernel.

    True for plain tensors with nothing to record: no autocast, transform, tracing, compilation, mode,
    profiler or subclass. To dispatch an op written in Python takes longer than the work on a small tensor
    (`make choices`); where this is true their kernel may be called by itself.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return False
    if torch._C._len_torch_function_stack() or torch._C._autograd._profiler_enabled():
        return False
    keys, grad = torch._C._dispatch_tls_local_include_set(), torch.is_grad_enabled()
    for t in tensors:
        if t is None:
            continue
        if type(t) not in _TYPES or (grad and t.requires_grad):
            return False
        keys = keys | torch._C._dispatch_keys(t)
    return (keys - torch._C._dispatch_tls_local_exclude_set() - _TRANSPARENT).raw_repr() in _DEVICES
