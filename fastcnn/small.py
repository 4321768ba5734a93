"""Prepared calls: what was checked once runs as one native call while nothing has changed.

On a small tensor the checks, and each operation's set-up, take far longer than the arithmetic. A module
remembers for each shape of its input what its call comes to: a block, a lone LRN or pooling, or a network
of blocks and dense layers. Before each call C++ (csrc/watch.h) looks whether all that this depends on is the
same object as then, and how the tensors are laid out. Whoever listens to PyTorch's dispatcher, or records
gradients, gets the usual path. Weights are read where they are, at every call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import _dispatch, _native, backends
from . import _torch_private as private
from ._making import Changing, Making, require
from .backends import _direct, cpu
from .backends._launch import params
from .stages import MaxPool, Stages, lrn_alone, memory_format, pool_alone

Prepare = Callable[[Any, Tensor], Any]  # makes a prepared call of a module and an input; None: there is none

_SHAPES = 8  # of inputs that a module remembers
_TIMES = 1000  # that a module's calls are prepared, 0.1 s in all: what keeps changing is not worth it
_PAUSE = 100  # calls, after one that couldn't be prepared


class Calls:
    """A module's prepared calls, by the input's shape; or how many calls go by before one is tried again."""

    def __init__(self, owner: dict[str, Any]) -> None:
        self.owner = owner  # the module's attributes: a copy that shares ours has others
        self.prepared: dict[torch.Size, Any] = {}
        self.left = _TIMES

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy, or a pickled module, has none


def run(module: nn.Module, input: Tensor, prepare: Prepare, holder: Any = None) -> Tensor | None:
    """Returns the module's output by a prepared call; None where the module has to be called as usual.

    holder: who remembers the calls, by default the module.
    """
    if torch.compiler.is_compiling() or type(input) is not Tensor:
        return None
    if module.training and torch.is_grad_enabled():
        return None
    owner = (module if holder is None else holder).__dict__
    calls: Calls | None = owner.get("_fastcnn_calls")
    if calls is None or calls.owner is not owner:
        calls = owner["_fastcnn_calls"] = Calls(owner)
    prepared = calls.prepared.get(input.shape, 0)
    if type(prepared) is not int:
        output = prepared(input)
        if output is not False:
            return output
        calls.prepared.pop(input.shape, None)
    elif prepared:
        calls.prepared[input.shape] = prepared - 1
        return None
    if not calls.left or not _may_be_prepared(module, input):
        return None
    calls.left -= 1
    call = prepare(module, input)
    calls.prepared[input.shape] = _PAUSE if call is None else call
    if len(calls.prepared) > _SHAPES:
        calls.prepared.pop(next(iter(calls.prepared)), None)
    output = None if call is None else call(input)
    return None if output is False else output


def _may_be_prepared(module: nn.Module, input: Tensor) -> bool:
    if torch.is_grad_enabled() and input.requires_grad:
        return False
    if (
        input.dim() not in (2, 4)
        or input.device.type != "cpu"
        or backends.current_backend() != "auto"
        or cpu.missing_reason()
        or torchs() is None
    ):
        return False
    if not _dispatch.can_bypass(input):
        return False
    return not (torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()))


@functools.cache
def torchs() -> Any:
    """Returns how C++ looks at tensors, and what it asks of this thread; None where torch doesn't say."""
    if not (private.sees_listeners and private.has_exchange):
        return None
    try:
        return _native.load().Torch(
            Tensor,
            private.keys_of,
            private.included,
            private.excluded,
            _dispatch.known,
            torch.is_grad_enabled,
            torch.get_num_threads,
            torch.empty,
            [
                (private.function_modes, 0),
                (private.profiler_enabled, False),
                (private.forward_level, -1),
                (backends.get_current, "auto"),
            ],
        )
    except (RuntimeError, ValueError):  # another version of DLPack
        return None


def _made(make: Callable[[Making], None], input: Tensor) -> Any:
    try:
        making = Making(torchs(), input)
        make(making)
        return making.finished()
    except Exception:  # whatever is wrong with a module or a shape, the usual path says
        return None


def block(module: Any, input: Tensor) -> Any:
    """Prepares a :class:`fastcnn.nn.ConvBlock2d`."""
    return convolution(module, input, lambda making: making.value(module, "stages")[0])


def convolution(module: nn.Conv2d, input: Tensor, stages: Callable[[Making], Stages]) -> Any:
    """Prepares a convolution layer's weights with stages."""
    return _made(lambda making: making.convolution(module, stages(making)), input)


_POOL_NAMES = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def _pool_alone(*spec: Any) -> Stages:
    *pool, return_indices = spec
    require(not return_indices)
    return pool_alone(*pool)


def epilogue(names: Sequence[str], stages_of: Callable[..., Stages], module: nn.Module, input: Tensor) -> Any:
    """Prepares a lone LRN or pooling of (N, C, H, W), whose attributes of these names make its stages."""

    def make(making: Making) -> None:
        stages = stages_of(*making.value(module, *names))
        require(input.dim() == 4 and input.numel() and cpu.unsupported_reason(input, stages) is None)
        if stages.lrn:
            require(input.shape[1] % stages.lrn.groups == 0)
        else:
            require(not cpu.pools_slowly(input))
        making.format = memory_format(input)
        y = making.map(stages.output_shape(input.shape), making.format)
        making.call.epilogue(params(input, y, None, None, None, stages, making.format))
        making.x, making.products = y, input.numel() * (_direct.GRAIN // cpu.GRAIN)

    return _made(make, input)


local_response_norm = functools.partial(epilogue, ("size", "alpha", "beta", "k"), lrn_alone)
max_pool2d = functools.partial(epilogue, (*_POOL_NAMES, "return_indices"), _pool_alone)


# Networks. Modules are taken as torch wrote them: of exactly these classes, with their own forward.

_IN_EVALUATION = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def chain(
    modules: Callable[[Any], Sequence[nn.Module]], names: Sequence[str], module: Any, input: Tensor
) -> Any:
    """Prepares a network.

    modules: what the module calls, one after another, given its input; names: its attributes that this
    depends on.
    """

    def make(making: Making) -> None:
        require(input.dtype == torch.float32 and input.is_contiguous() and len(input))
        making.in_chain = True
        making.value(module, *names)
        making.watch.entry(module.__dict__, "_modules", module._modules)
        making.watch.size(module._modules, len(module._modules))
        for name, child in module._modules.items():
            making.watch.entry(module._modules, name, child)
        for hooks in private.global_hooks:
            require(hooks is not None and not hooks)
            making.watch.size(hooks, 0)
        making.watch.attribute(nn.Module, "__call__", nn.Module.__call__)
        leaves = [leaf for m in modules(module) for leaf in _leaves(m, making.watch)]
        margins = module.margins(input) if "margins" in names else ()
        _add_layers(making, leaves, margins)

    return _made(make, input)


def _leaves(m: Any, watch: Any) -> Iterator[Any]:
    """Yields the layers in m, watching that each is called as it is, and calls nothing else."""
    own, cls = m.__dict__, type(m)
    is_sequence = _written(m).forward in _SEQUENCES
    require("forward" not in own and (is_sequence or cls.forward is _FORWARDS.get(cls)))
    watch.type(m, cls)
    watch.absent(own, "forward")
    watch.attribute(_written(m), "forward", _written(m).forward)
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        require(not own[hooks])
        watch.entry(own, hooks, own[hooks])
        watch.size(own[hooks], 0)
    if not is_sequence:
        yield m
        return
    watch.entry(own, "_modules", m._modules)
    watch.size(m._modules, len(m._modules))
    for name, child in m._modules.items():
        watch.entry(m._modules, name, child)
        yield from _leaves(child, watch)


# As torch has them: nobody's that were put in their place.
_SEQUENCES = [nn.Sequential.forward]  # forwards that call one module after another
_FORWARDS: dict[type[nn.Module], Any] = {
    cls: cls.forward
    for cls in (
        nn.Conv2d,
        nn.ReLU,
        nn.MaxPool2d,
        nn.AdaptiveAvgPool2d,
        nn.Flatten,
        nn.Linear,
        nn.Identity,
        *_IN_EVALUATION,
    )
}


def know(*layers: type[nn.Module], sequences: Sequence[type[nn.Module]] = ()) -> None:
    """Registers layers, and containers that call one module after another, as parts of networks."""
    _FORWARDS.update({cls: cls.forward for cls in layers})
    _SEQUENCES.extend(cls.forward for cls in sequences)


sequence = functools.partial(chain, list, ())  # of a Sequential


def _written(m: nn.Module) -> Any:
    """Returns the class that a module has, or had before it was fused."""
    return getattr(type(m), "_fastcnn_written", type(m))


def _add_layers(making: Making, leaves: Sequence[Any], margins: Sequence[int]) -> None:
    from .nn import ConvBlock2d

    rest: Sequence[Any] = [leaf for leaf in leaves if not _does_nothing(leaf, making)]
    require(rest and isinstance(rest[0], (ConvBlock2d, nn.Conv2d) if making.x.dim() == 4 else nn.Linear))
    while rest:
        layer, *rest = rest
        kind = type(layer)
        if kind is ConvBlock2d:
            (stages,) = making.value(layer, "stages")
            making.convolution(layer, stages, margins)
        elif kind is nn.Conv2d:
            relu, pool, rest = _after_convolution(making, rest)
            making.convolution(layer, Stages(relu, None, pool), margins)
        elif kind is nn.Flatten:
            require(making.value(layer, "start_dim", "end_dim") == [1, -1])
            making.x = making.x.flatten(1)
        elif kind is nn.Linear:
            relu = bool(rest) and type(rest[0]) is nn.ReLU
            making.dense(layer, relu)
            rest = rest[relu:]
        elif kind is nn.AdaptiveAvgPool2d:
            (size,) = making.value(layer, "output_size")
            require((size, size) == making.x.shape[2:] or size == making.x.shape[2:])
        else:
            raise Changing
        margins = ()


def _does_nothing(leaf: nn.Module, making: Making) -> bool:
    if type(leaf) in _IN_EVALUATION:
        training, p = making.value(leaf, "training", "p")
        require(not training or p == 0)
        return True
    return type(leaf) is nn.Identity


def _after_convolution(making: Making, rest: Sequence[Any]) -> tuple[bool, MaxPool | None, Sequence[Any]]:
    """Returns whether a ReLU follows, the pooling that does, in either order, and what comes then."""
    from .nn import MaxPool2d

    relu, pool = False, None
    for i, m in enumerate(rest):
        if type(m) is nn.ReLU and not relu:
            relu = True
        elif type(m) in (nn.MaxPool2d, MaxPool2d) and pool is None:
            pool = _pool_alone(*making.value(m, *_POOL_NAMES, "return_indices")).pool
        else:
            return relu, pool, rest[i:]
    return relu, pool, ()
