"""The names of torch's that it does not document, all of them: a later torch may lack any.

Without one, results stay right and something takes longer, or a function raises RuntimeError and names it.
``python -m fastcnn info`` lists the missing ones; tests/test_private_names.py takes each away.
"""

from __future__ import annotations

import functools
import operator
import pkgutil
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

names: list[str] = []
missing: list[str] = []  # of these, in this torch


def _find(name: str, otherwise: Any = None) -> Any:
    """Returns what has a name, or ``otherwise`` where nothing has."""
    names.append(name)
    try:
        return pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        missing.append(name)
        return otherwise


def _refuse(name: str, what: str) -> Callable[..., NoReturn]:
    """Returns a function that says what can't be done without a name."""

    def refuse(*args: Any) -> NoReturn:
        raise RuntimeError(f"{what}: torch {torch.__version__} has no {name}")

    return refuse


# Who listens to PyTorch's dispatcher: subclasses, modes, transforms, autocast, tracing, the profiler. Without
# one of these names nobody knows; each call then takes the dispatcher's path, and none is prepared.
Keys = _find("torch._C.DispatchKeySet")
keys_from_number = _find("torch._C.DispatchKeySet.from_raw_repr")
_find("torch._C.DispatchKeySet.raw_repr")  # that of a key set is called
keys_of = _find("torch._C._dispatch_keys")  # a tensor's
included = _find("torch._C._dispatch_tls_local_include_set")  # this thread's
excluded = _find("torch._C._dispatch_tls_local_exclude_set")
_key_excluded = _find("torch._C._dispatch_tls_is_dispatch_key_excluded")
_KEY = "torch._C.DispatchKey."
DEVICES = [_find(_KEY + name) for name in ("CPU", "CUDA")]
AUTOGRAD = [_find(_KEY + name) for name in ("AutogradCPU", "AutogradCUDA", "ADInplaceOrView")]
BACKEND_SELECT = _find(_KEY + "BackendSelect")
_autograd = _find(_KEY + "AutogradFunctionality")
function_modes = _find("torch._C._len_torch_function_stack")
profiler_enabled = _find("torch._C._autograd._profiler_enabled")
_level = _find("torch.autograd.forward_ad._current_level")
forward_level = functools.partial(getattr, forward_ad, "_current_level")  # -1: no forward-mode gradients
listeners = (*names,)
sees_listeners = not missing

# Without it, or that level, transforms are not seen: torch's own functions run where somebody may listen.
in_func_transform = _find("torch._C._are_functorch_transforms_active")
sees_transforms = None not in (_level, in_func_transform)

# Whether autograd records nothing although gradients are enabled: in inference mode and inside of an op's
# kernel. Without the names above the latter isn't known, and the ops keep more for backward than that needs.
autograd_is_off: Callable[[], bool] = torch.is_inference_mode_enabled
if sees_listeners:
    autograd_is_off = functools.partial(_key_excluded, _autograd)

# Tensors with which torch compiles and exports. Without their classes the ops run as torch's own functions.
TRACED = {
    _find("torch._subclasses.fake_tensor.FakeTensor"),
    _find("torch._subclasses.functional_tensor.FunctionalTensor"),
}
_modes = _find("torch.utils._python_dispatch._get_current_dispatch_mode_stack")


def flops_are_counted() -> bool:
    """Returns whether a counter of FLOPs listens; without the name, whether there may be one."""
    counter = "torch.utils.flop_counter"
    return counter in sys.modules if _modes is None else any(type(m).__module__ == counter for m in _modes())


# Public, torch.jit.is_tracing takes six times as long as this: .3 us, at each call of a fused model.
is_traced = _find("torch._C._is_tracing", torch.jit.is_tracing)  # type: ignore[attr-defined]

# Where C++ finds tensors' values. Without it no call is prepared, and Python checks fused models.
has_exchange = _find("torch.Tensor.__dlpack_c_exchange_api__") is not None

# Whether a tensor was written to. Without it fuse folds no batch norm: both layers run.
counts_writes = None not in (_find("torch.Tensor._version"), _find("torch.Tensor._cdata"))

# Hooks on all modules at once. Without one of these names fuse leaves models as written.
_hooks = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
global_hooks = [_find(f"torch.nn.modules.module._global_{kind}") for kind in _hooks]

# What torch.fx has for ``assert``; without it fuse finds none to drop.
asserted = _find("torch._assert")


def called(cls: Any) -> tuple[Any, Any]:
    """Returns the methods that a call of a module runs around its forward."""
    return cls.__call__, getattr(cls, "_call_impl", None)


def assume_constant(function: Any) -> Any:
    """Does what torch.compiler.assume_constant_result does, which would import all of the compiler for it.

    A compiler that looks for another name calls the function, in a break of its graph.
    """
    function._dynamo_marked_constant = True
    return function


def compiler_is_imported() -> bool:
    """Returns whether anything can be compiled. Its name is only looked for: to import it takes seconds."""
    return "torch._dynamo" in sys.modules


# What is in nested containers. Without these only dicts, lists and tuples are containers.
def _leaves(tree: Any) -> list[Any]:
    if not isinstance(tree, (dict, list, tuple)):
        return [tree]
    return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in _leaves(part)]


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    kind = type(tree)
    if kind is dict:
        return {key: _map(function, part) for key, part in tree.items()}
    return kind(_map(function, part) for part in tree) if kind in (list, tuple) else function(tree)


tree_leaves = _find("torch.utils._pytree.tree_leaves", _leaves)
tree_map = _find("torch.utils._pytree.tree_map", _map)

# By which receptive_field follows a model: there is no other way, and it raises.
_FOLLOW = "receptive_field: can't follow a model"
_mode = "torch.utils._python_dispatch.TorchDispatchMode"
TorchDispatchMode = _find(_mode, type("TorchDispatchMode", (), {"__init__": _refuse(_mode, _FOLLOW)}))
_schema = "torch.ops.aten.relu.default._schema"
schema_of = _refuse(_schema, _FOLLOW) if _find(_schema) is None else operator.attrgetter("_schema")
is_view = _find("torch.Tensor._is_view", lambda tensor: True)  # a write into one is refused


# One kernel for a list of tensors; without it one for each.
def _multiply_each(tensors: Iterable[Tensor], factor: float) -> None:
    for t in tensors:
        t.mul_(factor)


def _add_each(tensors: Iterable[Tensor], others: Iterable[Tensor], alpha: float = 1) -> None:
    for t, other in zip(tensors, others, strict=True):
        t.add_(other, alpha=alpha)


multiply_each = _find("torch._foreach_mul_", _multiply_each)
add_each = _find("torch._foreach_add_", _add_each)

# Has a GPU wait. Without it what is timed of a convolution may include its launch.
device_waits = _find("torch.cuda._sleep", lambda cycles: None)


def _stream(device: int) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


# Without the object around it, which takes as long as a small kernel.
raw_stream: Callable[[int], int] = _stream
if torch.backends.cuda.is_built():
    raw_stream = _find("torch._C._cuda_getCurrentRawStream", _stream)

# Lets go of the ops of an earlier import, which IPython's autoreload repeats.
_destroy = "torch.library.Library._destroy"
destroy = _find(_destroy, _refuse(_destroy, "fastcnn can't be imported again"))
