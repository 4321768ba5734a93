"""Functions that a fused forward calls: each chain as one call, with the original calls' results."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _calls, _native, small
from .._dispatch import can_bypass, needs_grad
from .._torch_private import counts_writes, is_traced
from ..backends import current_backend, plain
from ..stages import DTYPES, LRN, Stages


class Chain:
    """The calls of a chain as one.

    Attributes:
        is_left: whether it runs as torch's functions, since these were faster.
        times: in seconds, of the block and of these, where they were measured.
    """

    is_left = False
    times: tuple[float, ...] = ()

    def __init__(self, stages: Stages, per_image: bool) -> None:
        self.stages, self.per_image = stages, per_image
        self.__name__ = type(self).__name__.lower()  # in the graph's code

    def is_torchs(self, x: Tensor) -> bool:
        """Returns whether a block would not do: LRN in (C, H, W) goes over H; types without kernels.

        And in torch.jit.trace, whose check, without gradients, must find the same calls.
        """
        not_images = x.dim() != 4 and self.stages.lrn is not None and not self.per_image
        return self.is_left or not_images or x.dtype not in DTYPES or _is_traced()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError

    def written(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the same by torch's functions."""
        raise NotImplementedError

    def stages_of(self, x: Tensor, overwrite: bool) -> Tensor:
        """Returns the stages by torch's functions, each as the original calls it."""
        return plain.after_bias(x, self.stages, overwrite, None if self.per_image else _normalise)


def _normalise(x: Tensor, lrn: LRN) -> Tensor:
    return F.local_response_norm(x, lrn.size, lrn.alpha, lrn.beta, lrn.k)


def _is_traced() -> bool:
    return not torch.compiler.is_compiling() and is_traced()


class Epilogue(Chain):
    """Stages without a convolution."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.written(x) if self.is_torchs(x) else _calls.epilogue(x, None, self.stages)

    def written(self, x: Tensor) -> Tensor:
        return self.stages_of(x, overwrite=False)


class FunctionBlock(Chain):
    """A convolution by torch's function, and its stages; conv: that function's arguments by their names."""

    def __call__(self, x: Tensor, **conv: Any) -> Tensor:
        if self.is_torchs(x):
            return self.written(x, **conv)
        return _calls.block(x, stages=self.stages, **(_DEFAULTS | conv))

    def written(self, x: Tensor, **conv: Any) -> Tensor:
        return self.stages_of(F.conv2d(x, **conv), overwrite=True)


_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
Layers = tuple[nn.Conv2d, nn.BatchNorm2d | None]


def _pair(root: nn.Module, paths: tuple[str, ...]) -> Layers:
    conv, *norm = [root.get_submodule(path) for path in paths]
    return conv, norm[0] if norm else None  # type: ignore[return-value]


class LayerBlock(Chain):
    """A convolution layer, in evaluation a batch norm folded into it, and stages; of the module it is in."""

    folded: Folded | None = None
    is_checked = False  # before the forward that it is in

    def take(self, root: nn.Module, *paths: str) -> None:
        """Sets the names of the layers in the module, and so the layers."""
        self.plain: set[Any] = set()  # inputs for which torch is as fast: to find that out takes time
        self.paths, self.layers = paths, _pair(root, paths)

    def layers_of(self, root: nn.Module) -> Layers:
        """Returns the layers: the guard knows that these are still the same; compilers see where they are."""
        return _pair(root, self.paths) if torch.compiler.is_compiling() else self.layers

    def __call__(self, root: nn.Module, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or is_traced():
            return self._seen(root, x)
        conv, norm = self.layers
        layer = conv if norm is None else self._folded(x, conv, norm)
        if layer is None:
            return self.written(root, x)
        numbers = layer.stride, layer.padding, layer.dilation, layer.groups
        given = x, layer.weight, layer.bias, *numbers
        key = x.shape, x.dtype, torch.is_grad_enabled()
        if key in self.plain and current_backend() == "auto":
            return self.stages_of(F.conv2d(*given), overwrite=True)  # type: ignore[arg-type]
        if self.is_torchs(x) or self._trains_by_torch(x, layer):
            return self.written(root, x)
        y = small.run(layer, x, self._prepare, holder=self if norm is None else layer)
        if y is not None:
            return y
        if len(self.plain) < _KEYS and _calls.torch_is_as_fast(x, layer.weight, numbers, self.stages):
            self.plain.add(key)
        return _calls.block(*given, self.stages)

    def check_fold(self) -> None:
        """Forgets folded weights of which a tensor has changed."""
        folded = self.folded  # which another thread may forget
        if folded is not None and not folded.holds():
            self.folded = None

    def _seen(self, root: nn.Module, x: Tensor) -> Tensor:
        """Returns the same for torch.compile, torch.export and torch.jit.trace, which see a norm as it is."""
        conv, norm = self.layers_of(root)
        if norm is not None or self.is_torchs(x):
            return self.written(root, x)
        numbers = conv.stride, conv.padding, conv.dilation, conv.groups
        return _calls.block(x, conv.weight, conv.bias, *numbers, self.stages)

    def written(self, root: nn.Module, x: Tensor) -> Tensor:
        conv, norm = self.layers_of(root)
        a = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        if norm is not None:
            if a.dim() != 4:
                raise ValueError(f"expected 4D input (got {a.dim()}D input)")  # as BatchNorm2d does
            tensors = norm.running_mean, norm.running_var, norm.weight, norm.bias
            a = F.batch_norm(a, *tensors, norm.running_mean is None, 0.0, norm.eps)
        return self.stages_of(a, overwrite=False)

    def _trains_by_torch(self, x: Tensor, conv: nn.Conv2d) -> bool:
        """Returns whether torch's gradients take no longer than a block's, on the CPU.

        Without pooling or LRN a block saves nothing; one small image is no work for its threads. Before this
        rule, fused networks trained at .5 to .9 of plain's speed there (docs/sweep.md: fused Sequential).
        """
        weight = conv._parameters.get("weight")
        if not torch.is_grad_enabled() or self.stages.lrn is not None or weight is None or not x.is_cpu:
            return False
        few = x.dim() == 4 and len(x) == 1 and x.numel() // conv.in_channels * conv.out_channels < _FEW
        return weight.requires_grad and (few or self.stages.pool is None)

    def _prepare(self, conv: nn.Conv2d, x: Tensor) -> Any:
        return small.convolution(conv, x, lambda making: self.stages)

    def _folded(self, x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d | None:
        """Returns the convolution with the norm folded into it; None where autograd has to see both."""
        folded = self.folded
        if x.dim() != 4:  # for which a batch norm has an error of its own
            return None
        if torch.is_grad_enabled() and needs_grad(*(t.get(name) for t, name in _tensors(conv, norm))):
            return None
        if folded is None or not (self.is_checked or folded.holds()):
            if not Folded.is_possible(x, conv, norm):
                return None
            folded = self.folded = Folded(conv, norm)
        return folded.conv if folded.is_finite else None


_KEYS = 1000
_FEW = 1 << 16  # values, times the strides


class LazyBlock(LayerBlock):
    """The first call of a lazy convolution, which makes its parameters."""

    def __call__(self, root: nn.Module, x: Tensor) -> Tensor:
        self.layers[0](x)
        return super().__call__(root, x)


def _tensors(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> list[tuple[dict[str, Any], str]]:
    """Returns where the tensors are of which folded weights are made, and what tells that they have changed.

    PyTorch doesn't count that training writes to running statistics, but that it does to the counter.
    """
    pairs = [(m._parameters, name) for m in (conv, norm) for name in ("weight", "bias")]
    return pairs + [(norm._buffers, name) for name in ("running_mean", "running_var", "num_batches_tracked")]


class Folded:
    """A convolution with a batch norm's running statistics worked into its weights, once.

    y = (conv(x) - mean) s + beta with s = gamma / sqrt(var + eps) (Ioffe & Szegedy 2015, §3.1): each
    filter times its s.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        watch = _native.load().Watch(small.torchs())
        for tensors, name in _tensors(conv, norm):
            watch.entry(tensors, name, None) if tensors[name] is None else watch.values(tensors, name)
        self.holds = watch.holds
        weight, bias, mean, var = conv.weight, conv.bias, norm.running_mean, norm.running_var
        assert mean is not None and var is not None  # or it would be no chain
        with torch.inference_mode(False), torch.no_grad():
            scale = torch.rsqrt((var if var.dtype == torch.float64 else var.float()) + norm.eps)
            scale = scale if norm.weight is None else scale * norm.weight
            shift = (-mean if bias is None else bias - mean) * scale
            shift = shift if norm.bias is None else shift + norm.bias
            weight = (weight * scale.view(-1, 1, 1, 1)).to(weight.dtype)
            self.is_finite = bool(weight.isfinite().all() and shift.isfinite().all())
        self.conv = copy.copy(conv)
        tensors = {"weight": weight, "bias": shift.to(weight.dtype)}
        vars(self.conv).update(tensors, _parameters=tensors)  # as attributes, which takes no look-up

    @staticmethod
    def is_possible(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
        found = [t.get(name, ...) for t, name in _tensors(conv, norm)]
        if ... in found or norm.running_mean is None or norm.running_var is None:
            return False
        tensors = [t for t in found if t is not None]
        counted = counts_writes and not any(t.is_inference() for t in tensors)
        counted = counted and {t.dtype for t in tensors} <= {conv.weight.dtype, torch.int64}
        if not counted or _native.missing_reason() or small.torchs() is None:
            return False
        return can_bypass(x, *tensors)
