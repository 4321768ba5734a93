"""Fusing models that people have: chains of torch's layers and functions become blocks, in place."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .._torch_private import tree_leaves
from .explain import explain
from .fused import Fused, FusedModule, fusions, install, making, remove
from .plan import plan
from .runtime import Chain
from .timing import leave_losers

__all__ = ["explain", "fuse", "unfuse"]

Model = TypeVar("Model", bound=nn.Module)


def fuse(
    model: Model, example_inputs: Tensor | Sequence[Any] | None = None, *, fold_bn: bool = False
) -> Model:
    """Makes the model run its convolutions, ReLUs, LRNs and max poolings as blocks.

    A chain is a convolution, then any of ReLU, LRN and max pooling in an order that
    :func:`fastcnn.functional.conv2d_block` has, layers or function calls, each the only reader of the one
    before; or such stages without a convolution. ``nn.Identity``, and Dropout in evaluation, may lie between.
    LRN may be written as a division by a power of an average pooling over channels.

    The model's forward runs once on stand-ins for tensors and modules, in this thread; nothing of PyTorch is
    replaced meanwhile. It becomes one graph with the forwards of its modules, as in torch.fx; but a module
    with hooks, or whose forward a graph can't say, stays a call. The model is changed in place and stays what
    it was: its class (a subclass of the same name), parameters, state dict, hooks and mode. Other threads may
    run, copy and fuse the model meanwhile, but pickling it may raise PicklingError. At each call it
    is checked that nothing has changed that the forward depends on (layers, their attributes and hooks,
    attributes that it read); if anything has, it runs as written, and of the modules that it calls those
    that are as they were run fused. torch.compile checks once, when it compiles, and then watches plain
    attributes. Under autocast a block has autocast's dtype throughout, where torch's own LRN would give
    float32. ``explain`` shows what was found.

    Args:
        model: any module. One whose forward does more than a graph can say is left as written, and the
            modules in it are looked at by themselves. That is control flow on values, exceptions, contexts
            (switching gradients off), setting attributes or globals, drawing random numbers in Python,
            printing, calling an autograd.Function. Writing into a global container is not seen, and a fused
            forward doesn't.
        example_inputs: a tensor, or the arguments of a call: its results in evaluation, before and after,
            are compared, and each block is timed against torch's functions. Those that are slower are left.
        fold_bn: in evaluation, work a BatchNorm2d behind a convolution into its weights, once, in a copy of
            them; again at a call before which a parameter or statistic has been written to, replaced or
            moved. Writing through ``.data`` can't be seen: call ``fuse`` again. Where gradients of these are
            recorded, and under torch.compile and torch.func, both layers run.

    Returns:
        The model.

    Raises:
        TypeError: model is not a module.
        RuntimeError: with example_inputs, results differ; the model is then unfused.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse: model must be a torch.nn.Module, but got {type(model).__name__}")
    with making:
        unfuse(model)
        before = None if example_inputs is None else _evaluated(model, example_inputs)
        for _, m, fusion, _ in plan(model, fold_bn):
            if fusion.is_useful:
                install(m, fusion)
                _warn_of_nchw(m)
        for forward in (f for fusion in fusions(model) for f in fusion.forwards.values()):
            if isinstance(forward, Fused):
                forward.depends.holds()  # from now on: parts have the classes that they will have
    if example_inputs is not None:
        try:
            after = _evaluated(model, example_inputs)
            torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4, equal_nan=True)
            leave_losers(_chains(model), lambda: _evaluated(model, example_inputs))
        except BaseException as error:
            unfuse(model)
            if isinstance(error, AssertionError):
                raise RuntimeError(f"fuse: the fused model gave another result: {error}") from error
            raise
    return model


# torch.compile changes a plain convolution on a GPU to channels_last; a block, which is one op to it, stays
# as it is. Which format to take is the user's choice: inputs have to be changed, too.
def _warn_of_nchw(fused: nn.Module) -> None:
    for weight in fused.parameters():
        nchw = (
            not is_lazy(weight)
            and weight.dim() == 4
            and not weight.is_contiguous(memory_format=torch.channels_last)
        )
        if weight.is_cuda and nchw:
            warnings.warn(
                f"fuse: a convolution of {type(fused).__name__} is NCHW on {weight.device}; there blocks are "
                "faster in channels_last: model.to(memory_format=torch.channels_last), and inputs likewise",
                stacklevel=3,
            )
            return


def unfuse(model: Model) -> Model:
    """Undoes :func:`fuse`: every forward is the one written.

    Raises:
        TypeError: model is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"unfuse: model must be a torch.nn.Module, but got {type(model).__name__}")
    with making:
        for m in list(model.modules()):
            if isinstance(m, FusedModule):
                remove(m)
    return model


def _chains(model: nn.Module) -> list[Chain]:
    """Returns the chains of a model in evaluation."""
    made = [fusion.forwards.get(False) for fusion in fusions(model)]
    return [call for forward in made if isinstance(forward, Fused) for call in forward.calls]


@torch.no_grad()
def _evaluated(model: nn.Module, inputs: Tensor | Sequence[Any]) -> list[Any]:
    """Returns the tensors in the model's output in evaluation."""
    inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
    modes = [(m, m.training) for m in model.modules()]
    try:
        return [t for t in tree_leaves(model.eval()(*inputs)) if isinstance(t, Tensor)]
    finally:
        for m, mode in modes:
            m.training = mode
