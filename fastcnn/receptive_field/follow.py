"""Runs a model once, and follows what each of its tensors sees of the image.

A mode of torch's shows the operations that the run comes down to, in whatever style the model is written.
They are few, and torch marks the elementwise ones; a graph of torch.fx holds whatever Python can call, and of
a forward that decides by values there is none. What has no rule in ``rules.py`` is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from .._torch_private import TorchDispatchMode, compiler_is_imported, is_view, schema_of, tree_leaves
from ..backends._convolution import convolve
from .reach import Reach, of_pixels
from .rules import Call, Refused

_own = torch.ops.fastcnn


@dataclass
class Layer:
    """A convolution, a pooling or a linear layer that was called.

    Attributes:
        name: of the module that holds its weight or made the call, else its kind.
        kind: torch's name of the function.
        reach: of its output; of a linear layer's, as of a map of one unit.
        output: a copy, where the image has a gradient.
    """

    name: str
    kind: str
    reach: Reach
    output: Tensor | None = None


def follow(model: nn.Module, image: Tensor) -> list[Layer]:
    """The layers that see something of the image (1, C, H, W), in the order of an evaluation's calls.

    Raises:
        RuntimeError: an operation that can't be followed.
    """
    running = _Running(model)
    followed = _Follow(running, image)
    apart, recorded = _Apart(followed, image.requires_grad), image.requires_grad
    with _evaluating(model), _eager(), running.watched(), torch.set_grad_enabled(recorded), apart, followed:
        outputs = [t for t in tree_leaves(model(image)) if isinstance(t, Tensor)]
    if outputs and not any(map(followed.reach_of, outputs)):
        raise RuntimeError(f"receptive_field: can't follow how {type(model).__name__} computes its output")
    return followed.layers


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for m, training in modes:
            m.training = training


def _eager() -> AbstractContextManager[Any]:
    """Force eager mode; if dynamo was never imported, nothing can be compiled."""
    return torch.compiler.set_stance("force_eager") if compiler_is_imported() else nullcontext()


class _Running:
    """The paths of the modules whose forwards are running, the innermost last."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.named_modules())
        self.paths = {id(m): path for path, m in modules}
        self.owners = {id(p): path for path, m in modules for p in m._parameters.values() if p is not None}
        self.stack = [""]

    def owner(self, weight: Tensor | None) -> str:
        """Of a weight; where nobody owns it, the innermost module."""
        return self.owners.get(id(weight)) or self.stack[-1]

    @contextmanager
    def within(self, path: str) -> Iterator[None]:
        self.stack.append(path)
        yield
        self.stack.pop()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """By hooks for all modules at once, so that none of them is changed."""

        def enter(m: nn.Module, args: Any) -> None:
            self.stack.append(self.paths.get(id(m), self.stack[-1]))

        def leave(m: nn.Module, args: Any, output: Any) -> None:
            self.stack.pop()

        hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Follow(TorchDispatchMode):  # type: ignore[misc]
    """Finds what the output of each operation sees, and keeps the layers."""

    def __init__(self, running: _Running, image: Tensor) -> None:
        super().__init__()
        self.running, self.layers = running, list[Layer]()
        self.reaches = WeakTensorKeyDictionary({image: of_pixels(image)})

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No, since torch imports all of its compiler for that."""
        return False

    def reach_of(self, value: Any) -> Reach | None:
        return self.reaches.get(value) if isinstance(value, Tensor) else None

    def note(self, kind: str, reach: Reach, weight: Tensor | None) -> None:
        if not reach.empty:
            self.layers.append(Layer(self.running.owner(weight) or kind, kind, reach))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if outputs and any(self.reach_of(t) is not None for t in tree_leaves((args, kwargs))):
            call = Call(func, args, kwargs, outputs[0].shape, self.reach_of, self.note)
            try:
                self._keep(outputs, call.outputs(), schema_of(func).is_mutable)
            except Refused as reason:
                place = self.running.stack[-1] or "the model's forward"
                what = f"{func.overloadpacket} {reason}".strip()
                raise RuntimeError(f"receptive_field: can't follow {what}, called in {place}") from None
        return out

    def _keep(self, outputs: Sequence[Tensor], reaches: Sequence[Reach], written: bool) -> None:
        for output, reach in zip(outputs, reaches, strict=False):
            if output.shape != reach.shape:  # statistics of a norm
                continue
            if written:
                self._check_write(output, reach)
            self.reaches[output] = reach

    def _check_write(self, written: Tensor, reach: Reach) -> None:
        """Refuse a write that changes what other tensors see too."""
        before, storage = self.reach_of(written), written.untyped_storage().data_ptr()
        if before is not None and before.same_as(reach):
            return
        shared = any(t is not written and t.untyped_storage().data_ptr() == storage for t in self.reaches)
        if shared or is_view(written) or written.is_inference():
            raise Refused("into a tensor that shares memory")


class _Apart(TorchFunctionMode):
    """Has blocks run as a convolution and an epilogue, and layers keep copies of what they give."""

    def __init__(self, followed: _Follow, copies: bool) -> None:
        super().__init__()
        self.followed, self.copies = followed, copies

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _own.conv2d_block:
            x, weight, bias, *conv, relu, lrn, pool, order, _ = args
            running = self.followed.running
            with self, running.within(running.owner(weight)):
                return _own.epilogue(convolve(x, weight, conv), bias, relu, lrn, pool, order)
        count = len(self.followed.layers)
        out = func(*args, **(kwargs or {}))
        for layer in self.followed.layers[count:] if self.copies else ():
            layer.output = tree_leaves(out)[0].clone()  # what comes next may work in place
        return out
