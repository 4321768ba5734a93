"""Fusing models that people have: chains of torch's layers and functions become blocks, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .explain import explain
from .fused import FusedModule, class_of
from .plan import plan

__all__ = ["explain", "fuse", "unfuse"]

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model, example_inputs: Sequence[Tensor] | None = None, *, fold_bn: bool = False) -> Model:
    """Make the model run its convolutions, ReLUs, LRNs and max poolings as blocks.

    A chain is a convolution, then any of ReLU, LRN and max pooling in an order that
    :func:`fastcnn.functional.conv2d_block` has, layers or function calls, each the only reader of the one
    before; or such stages without a convolution. They are found by torch.fx in each module's forward by
    itself; a module that is nothing but such calls is looked through. ``explain`` shows what was found.

    The model is changed in place and stays what it was: the same class (a subclass of the same name),
    parameters, state dict, hooks and mode. What runs is decided at each call: a forward that is called with
    optional arguments, or whose layers have hooks, were replaced or set otherwise since, runs as written.

    Args:
        model: any module. One whose forward is more than a graph says (control flow on values, switching
            gradients off, setting attributes, drawing random numbers in Python) is left as written; the
            modules in it are not. A forward's side effects in Python (printing, counting) can't be seen,
            and a fused forward does not have them.
        example_inputs: the arguments of a call; results in evaluation, before and after, are then compared.
        fold_bn: in evaluation, work a BatchNorm2d behind a convolution into its weights.

    Returns:
        The model.

    Raises:
        TypeError: model is not a module.
        RuntimeError: with example_inputs, results differ; the model is then unfused.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse: model must be a torch.nn.Module, but got {type(model).__name__}")
    unfuse(model)
    before = None if example_inputs is None else _evaluated(model, example_inputs)
    for _, m, fusion in plan(model, fold_bn):
        if fusion.useful:
            written: Any = type(m)
            vars(m)["fusion"] = fusion
            m.__class__ = class_of(written)
    if example_inputs is not None:
        try:
            torch.testing.assert_close(
                _evaluated(model, example_inputs), before, rtol=1e-3, atol=1e-4, equal_nan=True
            )
        except AssertionError as error:
            unfuse(model)
            raise RuntimeError(f"fuse: the fused model gave another result: {error}") from error
    return model


def unfuse(model: Model) -> Model:
    """Undo :func:`fuse`: every forward is the one written.

    Raises:
        TypeError: model is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"unfuse: model must be a torch.nn.Module, but got {type(model).__name__}")
    for m in list(model.modules()):
        if isinstance(m, FusedModule):
            del vars(m)["fusion"]
            m.__class__ = m.written  # type: ignore[assignment]
    return model


@torch.no_grad()
def _evaluated(model: nn.Module, inputs: Sequence[Any]) -> list[Any]:
    """The tensors in what the model gives in evaluation."""
    modes = [(m, m.training) for m in model.modules()]
    try:
        return [t for t in pytree.tree_leaves(model.eval()(*inputs)) if isinstance(t, Tensor)]
    finally:
        for m, mode in modes:
            m.training = mode
