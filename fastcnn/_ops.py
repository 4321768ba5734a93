"""``fastcnn::epilogue`` and ``fastcnn::conv2d_block``: schema, fake, autograd, autocast and vmap, once.

The public ops are composite: they decide whether backward will need anything, and call an inner
``_forward`` op that returns (y, r, offsets), with empty tensors for what is not kept. An exported or
compiled graph so holds one node per block, and inference never saves. The backend ``plain`` needs no op of
ours: torch records what it does. :func:`epilogue` and :func:`conv2d_block` call the ops, or a backend by
itself where there is nothing to dispatch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import backends
from ._dispatch import idle, records, transforms
from .backends import plain, reference
from .backends._convolution import (
    conv_output_size,
    convolution_backward,
    convolution_backward_fastest,
    convolve,
)
from .stages import Stages, check, memory_format

_STAGES = "bool relu, float[]? lrn, int[]? pool, str order"
_CONV = "int[] stride, SymInt[] padding, int[] dilation, int groups"  # see backends/_convolution.py
_BLOCK = f"Tensor input, Tensor weight, Tensor? bias, {_CONV}, {_STAGES}"

_library = torch.library.Library("fastcnn", "DEF")
_library.define(f"epilogue(Tensor input, Tensor? bias, {_STAGES}) -> Tensor")
_library.define(
    f"epilogue_forward(Tensor input, Tensor? bias, {_STAGES}, bool save) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    f"epilogue_backward(Tensor grad, Tensor? r, Tensor? offsets, {_STAGES}, SymInt[] size, "
    "bool channels_last, bool need_bias, Tensor? bias=None) -> (Tensor, Tensor)"
)
_library.define(f"conv2d_block({_BLOCK}, bool recompute) -> Tensor")
_library.define(f"conv2d_block_forward({_BLOCK}, bool save, bool recompute) -> (Tensor, Tensor, Tensor)")
_library.define(
    f"convolution_backward(Tensor grad, Tensor input, Tensor weight, {_CONV}, bool[2] needed) "
    "-> (Tensor, Tensor)"
)

_ops = torch.ops.fastcnn


def _empty_for_none(like: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """An op can't return None: an empty tensor stands for it."""
    return tuple(like.new_empty(0) if t is None else t for t in tensors)


def _fake(x: Tensor, stages: Stages, save: bool, keep: bool) -> tuple[Tensor, ...]:
    """Outputs of the stages on x, without values; keep: whether r is among them."""
    shape, format = stages.output_shape(x.shape), memory_format(x)

    def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device, memory_format=format)

    y = empty(shape, x.dtype)
    r = empty(shape if stages.pool_first else x.shape, x.dtype) if save and keep else None
    offsets = empty(shape, stages.pool.offset_dtype) if save and stages.pool else None
    return _empty_for_none(x, y, r, offsets)


def _chosen(x: Tensor, stages: Stages, weight: Tensor | None = None) -> ModuleType | None:
    """The backend that would run this by itself; None where PyTorch's dispatcher decides with what.

    That is while compiling, and under autocast, which changes the dtype. ONNX has the stages as torch does.
    """
    if torch.onnx.is_in_onnx_export():
        return plain
    device = x.device.type
    if torch.compiler.is_compiling() or (device in backends.PREFERENCE and torch.is_autocast_enabled(device)):
        return None
    return backends.choose(x, stages, weight)


def epilogue(x: Tensor, bias: Tensor | None, stages: Stages) -> Tensor:
    """The stages on x (N, C, H, W)."""
    backend = _chosen(x, stages)
    if backend is plain:
        check(x, bias, stages)
        return plain.epilogue(x, bias, stages)
    if backend is None or not idle(x, bias):
        return _ops.epilogue(x, bias, *stages.flat())
    check(x, bias, stages)
    return backend.epilogue_forward(x, bias, stages, False)[0]


def conv2d_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: Sequence[Any],
    stages: Stages,
    recompute: bool,
) -> Tensor:
    """The stages on the convolution of x (N, C, H, W); conv: stride, padding, dilation, groups."""
    backend = _chosen(x, stages, weight)
    if backend is plain:
        return plain.conv2d_block(x, weight, bias, conv, stages, recompute)
    if backend is None or not idle(x, weight, bias):
        return _ops.conv2d_block(x, weight, bias, *conv, *stages.flat(), recompute)
    return backend.conv_block_forward(x, weight, bias, conv, stages, False)[0]


@torch.library.impl("fastcnn::epilogue_forward", "CompositeExplicitAutograd")
def _epilogue_forward(x: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    *flat, save = args
    stages = Stages.unflat(*flat)
    check(x, bias, stages)
    return _empty_for_none(x, *backends.choose(x, stages).epilogue_forward(x, bias, stages, save))


@torch.library.register_fake("fastcnn::epilogue_forward")
def _(x: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    *flat, save = args
    stages = Stages.unflat(*flat)
    check(x, bias, stages)
    return _fake(x, stages, save, stages.residual(bias is not None) == "r")


@torch.library.impl("fastcnn::epilogue_backward", "CompositeExplicitAutograd")
def _epilogue_backward(
    grad: Tensor,
    r: Tensor | None,
    offsets: Tensor | None,
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
    format = torch.channels_last if channels_last else torch.contiguous_format
    backend = backends.choose(grad, stages)
    return _empty_for_none(
        grad, *backend.epilogue_backward(grad, r, offsets, stages, size, format, need_bias, bias)
    )


@torch.library.register_fake("fastcnn::epilogue_backward")
def _(
    grad: Tensor, r: Tensor | None, offsets: Tensor | None, *args: Any, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    size, channels_last, need_bias = args[4:7]
    format = torch.channels_last if channels_last else torch.contiguous_format
    grad_x = torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=format)
    return grad_x, grad.new_empty(size[1] if need_bias else 0)


def _none_for_empty(t: Tensor | None) -> Tensor | None:
    return t if t is not None and t.dim() > 1 else None


def _keep(ctx: Any, stages: Stages, keeps: str | None, *tensors: Tensor | None) -> None:
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)
    ctx.stages, ctx.keeps, ctx.backend = stages, keeps, backends.current_backend()


def _total(tensors: Iterable[Tensor | None]) -> Tensor | None:
    there = [t for t in tensors if t is not None]
    return functools.reduce(torch.add, there) if there else None


def _stages_backward(
    ctx: Any,
    grad_y: Tensor | None,
    grad_r: Tensor | None,
    r: Tensor | None,
    offsets: Tensor | None,
    bias: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the stages' input and bias.

    With create_graph the reference takes over, since torch can differentiate it again. Only then
    is there a grad_r: r is an output of the op as well, so a second derivative comes back through it.
    bias: of a block that keeps the convolution's output as r, else None.
    """
    stages: Stages = ctx.stages
    need_bias = ctx.has_bias and ctx.needs_input_grad[ctx.bias_index]
    grads: list[tuple[Tensor, Tensor | None]] = []
    if grad_y is not None and torch.is_grad_enabled():
        rest = (stages, ctx.size, ctx.format, need_bias, bias)
        grads.append(reference.epilogue_backward(grad_y, r, offsets, *rest))
    elif grad_y is not None:
        last = ctx.format == torch.channels_last
        with backends.use_backend(ctx.backend):
            grads.append(
                _ops.epilogue_backward(grad_y, r, offsets, *stages.flat(), ctx.size, last, need_bias, bias)
            )
    if grad_r is not None and ctx.keeps == "r":
        before = Stages(stages.relu, None, stages.pool if stages.pool_first else None)
        grads.append(reference.epilogue_backward(grad_r, r, offsets, before, ctx.size, ctx.format, need_bias))
    if grad_r is not None and ctx.keeps == "input":
        grads.append((grad_r, None))
    return _total(g[0] for g in grads), _total(g[1] for g in grads if need_bias)


def _setup_epilogue(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, bias, *flat, _ = inputs
    y, r, offsets = output
    stages = Stages.unflat(*flat)
    keeps = stages.residual(bias is not None)
    kept = ({"input": x, "output": y, "r": r}.get(keeps or ""), offsets)
    _keep(ctx, stages, keeps, *map(_none_for_empty, kept))
    ctx.size, ctx.format, ctx.bias_index = x.shape, memory_format(x), 1
    ctx.has_bias = bias is not None


def _backward_epilogue(
    ctx: Any, grad_y: Tensor | None, grad_r: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    grads = _stages_backward(ctx, grad_y, grad_r, *ctx.saved_tensors)
    return (*grads, *[None] * 5)


torch.library.register_autograd(
    "fastcnn::epilogue_forward", _backward_epilogue, setup_context=_setup_epilogue
)


@torch.library.impl("fastcnn::conv2d_block_forward", "CompositeExplicitAutograd")
def _conv2d_block_forward(x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    *conv, relu, lrn, pool, order, save, recompute = args
    stages = Stages.unflat(relu, lrn, pool, order)
    backend = backends.choose(x, stages, weight)
    y, *kept = backend.conv_block_forward(x, weight, bias, conv, stages, save)
    return _empty_for_none(x, y, *((None, None) if recompute else kept))


@torch.library.register_fake("fastcnn::conv2d_block_forward")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    *conv, relu, lrn, pool, order, save, recompute = args
    stages = Stages.unflat(relu, lrn, pool, order)
    a = convolve(x, weight, conv)
    check(a, bias, stages)
    return _fake(a, stages, save and not recompute, stages.lrn is not None)


@torch.library.impl("fastcnn::convolution_backward", "CompositeExplicitAutograd")
def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *conv, needed = args
    grads = zip(convolution_backward_fastest(grad, x, weight, conv, needed), (x, weight), strict=True)
    # In a format that the fake can tell: which one a library prefers it can't.
    formatted = [g if g is None else g.contiguous(memory_format=memory_format(t)) for g, t in grads]
    return _empty_for_none(grad, *formatted)


@torch.library.register_fake("fastcnn::convolution_backward")
def _(grad: Tensor, x: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    pairs = zip((x, weight), args[-1], strict=True)
    return tuple(
        torch.empty_like(t, memory_format=memory_format(t)) if need else t.new_empty(0) for t, need in pairs
    )


def _setup_block(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, *conv, relu, lrn, pool, order, save, recompute = inputs
    ctx.saved = save and not recompute
    stages = Stages.unflat(relu, lrn, pool, order)
    keeps = stages.block_residual(x.device.type)
    kept = _kept(keeps, output) if ctx.saved else (None, None)
    _keep(ctx, stages, keeps, x, weight, *kept, bias if keeps == "input" or not ctx.saved else None)
    size = (x.shape[0], weight.shape[0], *conv_output_size(x, weight, conv))
    ctx.size, ctx.format, ctx.bias_index, ctx.conv = size, memory_format(output[0]), 2, conv
    ctx.has_bias = bias is not None


def _kept(keeps: str | None, output: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """What the stages' backward needs of a block's y, r and offsets.

    The convolution's output, the stages' input, lives inside the op alone: there it is the op's r.
    """
    y, r, offsets = output
    return _none_for_empty(y if keeps == "output" else r), _none_for_empty(offsets)


def _backward_block(
    ctx: Any, grad_y: Tensor | None, grad_r: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, weight, r, offsets, bias = ctx.saved_tensors
    if not ctx.saved:
        with backends.use_backend(ctx.backend):
            output = _ops.conv2d_block_forward(x, weight, bias, *ctx.conv, *ctx.stages.flat(), True, False)
        r, offsets = _kept(ctx.keeps, output)
    bias = bias if ctx.keeps == "input" else None
    grad_a, grad_bias = _stages_backward(ctx, grad_y, grad_r if ctx.saved else None, r, offsets, bias)
    grad_x = grad_weight = None
    needed = ctx.needs_input_grad[:2]
    if grad_a is not None and any(needed):
        if torch.is_grad_enabled() or not x.is_cuda:  # it may be differentiated again; there is one way
            grad_x, grad_weight = convolution_backward(grad_a, x, weight, ctx.conv, needed)
        else:
            grads = _ops.convolution_backward(grad_a, x, weight, *ctx.conv, needed)
            grad_x, grad_weight = map(_none_for_empty, grads)
    return (grad_x, grad_weight, grad_bias, *[None] * 10)


torch.library.register_autograd("fastcnn::conv2d_block_forward", _backward_block, setup_context=_setup_block)


# The composite ops, and how they behave under autocast, vmap and the other function transforms.


@torch.library.impl("fastcnn::epilogue", "CompositeImplicitAutograd")
def _epilogue(x: Tensor, bias: Tensor | None, *flat: Any) -> Tensor:
    stages = Stages.unflat(*flat)
    check(x, bias, stages)
    if transforms():  # they refuse, or pass over, an op with an autograd formula in Python
        return reference.epilogue(x, bias, stages)
    if backends.choose(x, stages) is plain:
        return plain.epilogue(x, bias, stages)
    return _ops.epilogue_forward(x, bias, *flat, records(x, bias))[0]


@torch.library.impl("fastcnn::conv2d_block", "CompositeImplicitAutograd")
def _conv2d_block(x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> Tensor:
    *conv, relu, lrn, pool, order, recompute = args
    if transforms():
        return _ops.epilogue(convolve(x, weight, conv), bias, relu, lrn, pool, order)
    stages = Stages.unflat(relu, lrn, pool, order)
    if backends.choose(x, stages, weight) is plain:
        return plain.conv2d_block(x, weight, bias, conv, stages, recompute)
    # To recompute is to compute the same again: with what backward needs, which is then dropped.
    save = records(x, weight, bias)
    return _ops.conv2d_block_forward(x, weight, bias, *args[:-1], save, save and recompute)[0]


def _vmap(op: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, int]]:
    """Fold a mapped input into the batch; with mapped weights or bias, one call for each."""

    def rule(info: Any, dims: tuple[Any, ...], x: Tensor, *args: Any) -> tuple[Tensor, int]:
        if not any(isinstance(d, int) for d in dims[1:]):
            x = x.movedim(dims[0], 0)
            return op(x.flatten(0, 1), *args).unflatten(0, x.shape[:2]), 0

        def sample(i: int) -> list[Any]:
            pairs = zip((x, *args), dims, strict=True)
            return [t.select(d, i) if isinstance(d, int) else t for t, d in pairs]

        return torch.stack([op(*sample(i)) for i in range(info.batch_size)]), 0

    return rule


torch.library.register_vmap("fastcnn::epilogue", _vmap(_ops.epilogue))
torch.library.register_vmap("fastcnn::conv2d_block", _vmap(_ops.conv2d_block))


def _register_autocast(device: str, key: str) -> None:
    """The block runs in autocast's dtype, as a convolution does; the epilogue keeps its input's."""

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
