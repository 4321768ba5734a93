"""``fastcnn::epilogue`` and ``fastcnn::conv2d_block``: schema, fake, autograd, autocast and vmap, once.

The public ops are composite: they decide whether backward will need anything, and call an inner
``_forward`` op that returns (y, r, argmax), with empty tensors for what is not kept. An exported or
compiled graph so holds one node per block, and inference never saves. The backend ``plain`` needs no op of
ours: torch records what it does. :mod:`._calls` calls the ops where PyTorch's dispatcher has something to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import backends
from ._autograd import How, epilogue_gradients, gradients, none_for_empty, save
from ._bypass import run
from ._dispatch import can_bypass, in_transform, needs_grad, torch_alone_is_known
from ._torch_private import destroy
from .backends import plain, reference
from .backends._convolution import convolution_backward_fastest, convolve
from .backends._launch import allocate, empty_on
from .stages import Stages, check, memory_format

_STAGES = "bool relu, float[]? lrn, int[]? pool, str order"
_CONV = "int[] stride, SymInt[] padding, int[] dilation, int groups"  # see backends/_convolution.py
_BLOCK = f"Tensor input, Tensor weight, Tensor? bias, {_CONV}, {_STAGES}"

_ops: Any = torch.ops.fastcnn
if "_library" in vars(_ops):  # this module was imported before: its ops make way for those of now
    destroy(_ops._library)
_library = _ops._library = torch.library.Library("fastcnn", "DEF")
_library.define(f"epilogue(Tensor input, Tensor? bias, {_STAGES}) -> Tensor")
_library.define(
    f"epilogue_forward(Tensor input, Tensor? bias, {_STAGES}, bool save) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    f"epilogue_backward(Tensor grad, Tensor? r, Tensor? argmax, {_STAGES}, SymInt[] size, "
    "bool channels_last, bool need_bias, Tensor? bias=None) -> (Tensor, Tensor)"
)
_library.define(f"conv2d_block({_BLOCK}, bool recompute) -> Tensor")
_library.define(f"conv2d_block_forward({_BLOCK}, bool save, bool recompute) -> (Tensor, Tensor, Tensor)")
_library.define(
    f"convolution_backward(Tensor grad, Tensor input, Tensor weight, {_CONV}, bool[2] needed) "
    "-> (Tensor, Tensor)"
)


def _empty_for_none(like: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Replaces each None by an empty tensor, since an op can't return None."""
    return tuple(like.new_empty(0) if t is None else t for t in tensors)


def _fake(x: Tensor, stages: Stages, save: bool, makes_r: bool) -> tuple[Tensor, ...]:
    """Returns the results of the stages on x, without values."""
    results = allocate(empty_on(x.device), x.shape, x.dtype, memory_format(x), stages, save, makes_r)
    return _empty_for_none(x, *results)


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


# The epilogue's ops. Flat: relu, lrn, pool and order, as the schema has them.


@torch.library.impl("fastcnn::epilogue_forward", "CompositeExplicitAutograd", lib=_library)
def _epilogue_forward(x: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    *flat, save = args
    stages = Stages.unflat(*flat)
    check(x, bias, stages)
    backend = backends.choose(x, stages, inside_op=True)
    return _empty_for_none(x, *backend.epilogue_forward(x, bias, stages, save=save))


@torch.library.register_fake("fastcnn::epilogue_forward", lib=_library)
def _(x: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    *flat, save = args
    stages = Stages.unflat(*flat)
    check(x, bias, stages)
    return _fake(x, stages, save, stages.makes_r(bias is not None))


@torch.library.impl("fastcnn::epilogue_backward", "CompositeExplicitAutograd", lib=_library)
def _epilogue_backward(
    grad: Tensor,
    r: Tensor | None,
    argmax: Tensor | None,
    relu: bool,
    lrn: list[float] | None,
    pool: list[int] | None,
    order: str,
    size: list[int],
    channels_last: bool,
    need_bias: bool,
    bias: Tensor | None = None,
) -> tuple[Tensor, ...]:
    stages = Stages.unflat(relu, lrn, pool, order)
    backend, format = backends.choose(grad, stages, inside_op=True), _format(channels_last)
    grads = backend.epilogue_backward(grad, r, argmax, stages, size, format, need_bias, bias)
    return _empty_for_none(grad, *grads)


@torch.library.register_fake("fastcnn::epilogue_backward", lib=_library)
def _(
    grad: Tensor,
    r: Tensor | None,
    argmax: Tensor | None,
    relu: bool,
    lrn: list[float] | None,
    pool: list[int] | None,
    order: str,
    size: list[int],
    channels_last: bool,
    need_bias: bool,
    bias: Tensor | None = None,
) -> tuple[Tensor, ...]:
    grad_x = empty_on(grad.device)(size, grad.dtype, _format(channels_last))
    return grad_x, grad.new_empty(size[1] if need_bias else 0)


def _setup_epilogue(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, bias, *flat, _ = inputs
    y, r, argmax = output
    how = How(Stages.unflat(*flat), backend=backends.current_backend())
    save(ctx, x, None, bias, how, (y, none_for_empty(r), none_for_empty(argmax)))


torch.library.register_autograd(
    "fastcnn::epilogue_forward", epilogue_gradients, setup_context=_setup_epilogue, lib=_library
)


# The block's.


@torch.library.impl("fastcnn::conv2d_block_forward", "CompositeExplicitAutograd", lib=_library)
def _conv2d_block_forward(x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    *conv, relu, lrn, pool, order, save, recompute = args
    stages = Stages.unflat(relu, lrn, pool, order)
    backend = backends.choose(x, stages, weight, inside_op=True)
    y, *saved = backend.conv_block_forward(x, weight, bias, conv, stages, save=save)
    return _empty_for_none(x, y, *((None, None) if recompute else saved))


@torch.library.register_fake("fastcnn::conv2d_block_forward", lib=_library)
def _(x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    *conv, relu, lrn, pool, order, save, recompute = args
    stages = Stages.unflat(relu, lrn, pool, order)
    a = convolve(x, weight, conv)
    check(a, bias, stages)
    return _fake(a, stages, save and not recompute, stages.makes_r())


@torch.library.impl("fastcnn::convolution_backward", "CompositeExplicitAutograd", lib=_library)
def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *conv, needed = args
    grads = zip(convolution_backward_fastest(grad, x, weight, conv, needed), (x, weight), strict=True)
    # In a format that the fake can tell: which one a library prefers it can't.
    formatted = [g if g is None else g.contiguous(memory_format=memory_format(t)) for g, t in grads]
    return _empty_for_none(grad, *formatted)


@torch.library.register_fake("fastcnn::convolution_backward", lib=_library)
def _(grad: Tensor, x: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    pairs = zip((x, weight), args[-1], strict=True)
    return tuple(
        torch.empty_like(t, memory_format=memory_format(t)) if need else t.new_empty(0) for t, need in pairs
    )


def _setup_block(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, *conv, relu, lrn, pool, order, saves, recompute = inputs
    stages, recompute = Stages.unflat(relu, lrn, pool, order), recompute or not saves
    y, r, argmax = output
    how = How(stages, conv, recompute, backends.current_backend())
    save(ctx, x, weight, bias, how, (y, none_for_empty(r), none_for_empty(argmax)))


torch.library.register_autograd(
    "fastcnn::conv2d_block_forward", gradients, setup_context=_setup_block, lib=_library
)


# The composite ops, and how they behave under autocast, vmap and the other function transforms.


@torch.library.impl("fastcnn::epilogue", "CompositeImplicitAutograd", lib=_library)
def _epilogue(x: Tensor, bias: Tensor | None, *flat: Any) -> Tensor:
    stages = Stages.unflat(*flat)
    check(x, bias, stages)
    if in_transform():  # they refuse, or pass over, an op with an autograd formula in Python
        return reference.epilogue(x, bias, stages)
    if can_bypass(x, bias):  # autocast is behind, or an exported program runs
        return run(x, None, bias, stages)
    if torch_alone_is_known(x, bias) or backends.choose(x, stages, inside_op=True) is plain:
        return plain.epilogue(x, bias, stages)
    return _ops.epilogue_forward(x, bias, *flat, needs_grad(x, bias))[0]


@torch.library.impl("fastcnn::conv2d_block", "CompositeImplicitAutograd", lib=_library)
def _conv2d_block(x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> Tensor:
    *conv, relu, lrn, pool, order, recompute = args
    if in_transform():
        return _ops.epilogue(convolve(x, weight, conv), bias, relu, lrn, pool, order)
    stages = Stages.unflat(relu, lrn, pool, order)
    if can_bypass(x, weight, bias):
        return run(x, weight, bias, stages, conv, recompute)
    if torch_alone_is_known(x, weight, bias) or backends.choose(x, stages, weight, inside_op=True) is plain:
        return plain.conv2d_block(x, weight, bias, conv, stages, recompute)
    # To recompute is to compute the same again: with what backward needs, which is then dropped.
    save = needs_grad(x, weight, bias)
    return _ops.conv2d_block_forward(x, weight, bias, *args[:-1], save, recompute)[0]


def _vmap(op: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, int]]:
    """Returns a vmap rule: a mapped input is folded into the batch; mapped weights take one call each."""

    def rule(info: Any, dims: tuple[Any, ...], x: Tensor, *args: Any) -> tuple[Tensor, int]:
        if not any(isinstance(d, int) for d in dims[1:]):
            x = x.movedim(dims[0], 0)
            return op(x.flatten(0, 1), *args).unflatten(0, x.shape[:2]), 0

        def sample(i: int) -> list[Any]:
            pairs = zip((x, *args), dims, strict=True)
            return [t.select(d, i) if isinstance(d, int) else t for t, d in pairs]

        return torch.stack([op(*sample(i)) for i in range(info.batch_size)]), 0

    return rule


torch.library.register_vmap("fastcnn::epilogue", _vmap(_ops.epilogue), lib=_library)
torch.library.register_vmap("fastcnn::conv2d_block", _vmap(_ops.conv2d_block), lib=_library)


def _register_autocast(device: str, key: str) -> None:
    """Registers autocast rules: a block runs in autocast's dtype, an epilogue keeps its input's dtype."""

    def lower(t: Tensor | None) -> Tensor | None:
        eligible = t is not None and t.is_floating_point() and t.dtype != torch.float64
        return t.to(torch.get_autocast_dtype(device)) if eligible else t  # type: ignore[union-attr]

    def epilogue(x: Tensor, bias: Tensor | None, *flat: Any) -> Tensor:
        bias = bias if bias is None else bias.to(x.dtype)
        with torch.autocast(device, enabled=False):
            return _ops.epilogue(x, bias, *flat)

    def conv2d_block(x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> Tensor:
        tensors = [lower(t) for t in (x, weight, bias)]
        with torch.autocast(device, enabled=False):
            return _ops.conv2d_block(*tensors, *args)

    _library.impl("epilogue", epilogue, key)
    _library.impl("conv2d_block", conv2d_block, key)


_register_autocast("cpu", "AutocastCPU")
_register_autocast("cuda", "AutocastCUDA")
