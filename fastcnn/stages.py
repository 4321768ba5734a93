"""The stages of an epilogue: frozen specs, their checks, and their output shapes."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import torch

Pair: TypeAlias = int | Sequence[int]
Conv: TypeAlias = Sequence[Any]  # stride, padding, dilation and groups; see backends/_convolution.py

ORDERS = ("lrn_pool", "pool_lrn")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# The argmax of a window that has no gradient to pass on, which is 255 in uint8: its maximum was cut by the
# ReLU just before, or it has no place inside the map. csrc/params.h has the same.
NO_PLACE = -1

Made = TypeVar("Made")


def remembered(make: Callable[..., Made]) -> Callable[..., Made]:
    """Returns ``make``, which makes the same of the same arguments, with what it made kept."""

    @functools.lru_cache(maxsize=1024, typed=True)
    def kept(*args: Any) -> Made:
        if _holds_tensor(args):  # the same one may hold another number at the next call
            raise TypeError
        return make(*args)

    def made(*args: Any) -> Made:
        if torch.compiler.is_compiling():  # a compiler looks past such a cache, with a warning
            return make(*args)
        try:
            return kept(*args)
        except TypeError:  # not hashable, not to be kept, or refused: make says what is wrong
            pass
        return make(*args)

    return made


def _holds_tensor(args: Sequence[Any]) -> bool:
    return any(isinstance(a, torch.Tensor) or (isinstance(a, tuple) and _holds_tensor(a)) for a in args)


def whole(value: Any) -> int:
    """Returns an int, or what torch takes for one: NumPy's, or a tensor's; TypeError for anything else."""
    if type(value) is int:
        return value
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def numbers(value: Any) -> tuple[int, ...]:
    """Returns one number or a list of some as ints, one of them twice; TypeError for anything else."""
    if type(value) is int:
        return value, value
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value
    items = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return tuple(map(whole, items * 2 if len(items) == 1 else items))


def pair(name: str, value: Pair) -> tuple[int, int]:
    """Returns ``value`` as (height, width); raises torch's errors for anything but one int or two."""
    try:
        items = numbers(value)
    except TypeError:
        raise TypeError(f"{name} must be an int or a pair of ints, but got {value!r}") from None
    if len(items) != 2:
        raise RuntimeError(f"{name} must be a single int or a tuple of two ints, but got {value!r}")
    return items


@dataclass(frozen=True)
class LRN:
    """Local response normalisation across channels (Krizhevsky, Sutskever & Hinton 2012, §3.3).

    ``o[c] = r[c] * (k + alpha/size * sum(r[j]**2))**-beta`` with j from ``c - size//2`` to
    ``c + (size-1)//2``, torch's window. ``alpha`` is divided by ``size``, as in torch, Caffe and
    cuda-convnet; the paper's own ``alpha = 1e-4`` is not, so it is ``alpha = 5e-4`` here.

    Args:
        size: channels in a window, at least 1.
        alpha, beta, k: the formula's; torch's defaults (the paper's k is 2).
        groups: normalise within each of ``groups`` equal runs of channels (one per tower of AlexNet).

    Raises:
        TypeError: an argument is not a number, or ``size`` or ``groups`` not an int.
        RuntimeError: ``size`` or ``groups`` is below 1.
    """

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0
    groups: int = 1

    def __post_init__(self) -> None:
        for name in ("size", "groups"):
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, whole(value))
            except TypeError:
                raise TypeError(f"LRN: {name} must be an int, but got {value!r}") from None
            if value < 1:
                raise RuntimeError(f"LRN: {name} must be at least 1, but got {value}")
        for name in ("alpha", "beta", "k"):
            value = getattr(self, name)
            if type(value) not in (int, float):
                try:  # the same number; unlike float(), this refuses text
                    object.__setattr__(self, name, math.ldexp(value, 0))
                except TypeError:
                    raise TypeError(f"LRN: {name} must be a number, but got {value!r}") from None

    @property
    def before(self) -> int:
        """Channels that a window reaches back."""
        return self.size // 2

    @property
    def after(self) -> int:
        """Channels that a window reaches ahead."""
        return (self.size - 1) // 2

    def flat(self) -> list[float]:
        return [
            float(self.size),
            float(self.alpha),
            float(self.beta),
            float(self.k),
            float(self.groups),
        ]


@dataclass(frozen=True)
class MaxPool:
    """Max pooling with torch's arguments; ints become (height, width) pairs.

    Args:
        kernel_size, stride, padding, dilation: an int or a pair; ``stride`` defaults to ``kernel_size``.
        ceil_mode: torch's rule: a last window that starts inside the input or its left padding counts.

    Raises:
        TypeError: something other than ints, or than a bool.
        RuntimeError: a size below 1, or padding over half of kernel_size, as torch has it.
    """

    kernel_size: Pair = 3
    stride: Pair | None = None
    padding: Pair = 0
    dilation: Pair = 1
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        for name in ("kernel_size", "stride", "padding", "dilation"):
            value = getattr(self, name)
            if name == "stride" and (value is None or (isinstance(value, (list, tuple)) and not value)):
                value = self.kernel_size
            object.__setattr__(self, name, pair(f"max_pool2d: {name}", value))
        if not isinstance(self.ceil_mode, bool):
            raise TypeError(f"max_pool2d: ceil_mode must be a bool, but got {self.ceil_mode!r}")
        for name, least in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            value = getattr(self, name)
            if min(value) < least:
                raise RuntimeError(f"max_pool2d: {name} must be at least {least}, but got {value}")
        kernel, _, padding, _ = self.pairs
        if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
            raise RuntimeError(
                "max_pool2d: padding should be at most half of kernel size, but got "
                f"padding={self.padding}, kernel_size={self.kernel_size}"
            )

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """kernel_size, stride, padding and dilation, each (height, width)."""
        pairs = (self.kernel_size, self.stride, self.padding, self.dilation)
        return cast("tuple[tuple[int, int], ...]", pairs)

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns from a window's first place to its last, dilation included."""
        (kh, kw), _, _, (dh, dw) = self.pairs
        return (kh - 1) * dh + 1, (kw - 1) * dw + 1

    @property
    def argmax_dtype(self) -> torch.dtype:
        """The type that holds a place in the window, row-major: uint8 up to 255 places."""
        kh, kw = self.pairs[0]
        return torch.uint8 if kh * kw <= 255 else torch.int32

    def flat(self) -> list[int]:
        return [i for p in self.pairs for i in p] + [int(self.ceil_mode)]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns (rows, columns) of the pooled map; raises RuntimeError where there would be none."""
        rows = self.windows(height, 0)
        columns = self.windows(width, 1)
        if height < 1 or width < 1 or rows < 1 or columns < 1:
            raise RuntimeError(
                f"max_pool2d: input of {height}x{width} gives an output of {rows}x{columns}, "
                f"which is too small (kernel_size={self.kernel_size}, stride={self.stride}, "
                f"padding={self.padding}, dilation={self.dilation})"
            )
        return rows, columns

    def windows(self, size: int, axis: int) -> int:
        """Returns the number of windows over ``size`` rows (axis 0) or columns (axis 1); below 1 for none."""
        kernels, strides, paddings, dilations = self.pairs
        stride, padding = strides[axis], paddings[axis]
        span = size + 2 * padding - dilations[axis] * (kernels[axis] - 1) - 1
        if not self.ceil_mode:
            return span // stride + 1
        windows = -(-span // stride) + 1
        return windows - 1 if (windows - 1) * stride >= size + padding else windows


class Flat(NamedTuple):
    """:class:`Stages` as the ops' schemas carry them: numbers, None where a stage is left out."""

    relu: bool
    lrn: list[float] | None
    pool: list[int] | None
    order: str


@dataclass(frozen=True)
class Stages:
    """The stages of one epilogue, in the order bias, ReLU, then LRN and pooling as ``order`` says."""

    relu: bool = True
    lrn: LRN | None = None
    pool: MaxPool | None = None
    order: str = "lrn_pool"

    def __post_init__(self) -> None:
        for name, kind in (("lrn", LRN), ("pool", MaxPool)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{name} must be a fastcnn.{kind.__name__} or None, but got {value!r}")
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS}, but got {self.order!r}")

    @property
    def empty(self) -> bool:
        # torch 2.11 can't trace the `not` of a spec.
        return not self.relu and self.lrn is None and self.pool is None

    @property
    def name(self) -> str:
        """The stages in their order, as "relu, lrn 5, pool 3/2"."""
        lrn = f"lrn {self.lrn.size}" if self.lrn else ""
        pool = f"pool {self.pool.pairs[0][0]}/{self.pool.pairs[1][0]}" if self.pool else ""
        steps = [pool, lrn] if self.pool_first else [lrn, pool]
        return ", ".join(filter(None, ["relu" if self.relu else "", *steps]))

    @property
    def pool_first(self) -> bool:
        """Returns whether pooling follows the ReLU directly: by ``order``, or because there is no LRN."""
        return self.order == "pool_lrn" or self.lrn is None

    def flat(self) -> Flat:
        return Flat(
            bool(self.relu),
            self.lrn.flat() if self.lrn else None,
            self.pool.flat() if self.pool else None,
            self.order,
        )

    @staticmethod
    def unflat(relu: bool, lrn: Sequence[float] | None, pool: Sequence[int] | None, order: str) -> Stages:
        return _unflat(relu, tuple(lrn or ()), tuple(pool or ()), order)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns (N, C, H', W') of the output for (N, C, H, W) of the input."""
        n, c, h, w = shape
        return (n, c, h, w) if self.pool is None else (n, c, *self.pool.output_size(h, w))

    @property
    def lrn_first(self) -> bool:
        """Returns whether an LRN follows bias and ReLU directly, so that its input can be recomputed."""
        return self.lrn is not None and not (self.pool and self.pool_first)

    def saved_name(self, has_bias: bool) -> str | None:
        """Returns what backward needs besides the argmax: the LRN's input, else a ReLU's sign pattern.

        Where pooling follows the ReLU directly, the argmax is enough: it names no place where the ReLU cut.
        "r": a tensor that the forward makes for it (the LRN's input; pooled already where pooling
        comes first); "input" or "output": the op's own, nothing more is kept; None: nothing.
        """
        if self.lrn is None:
            return "output" if self.relu and self.pool is None else None
        return "r" if self.relu or has_bias or not self.lrn_first else "input"

    def makes_r(self, has_bias: bool = True) -> bool:
        """Returns whether forward makes a tensor for backward besides y and the argmax.

        A block counts as one with a bias: nobody else knows its convolution's output.
        """
        return self.saved_name(has_bias) == "r"

    def saved_name_in_block(self, device: str) -> str | None:
        """Returns the same as :meth:`saved_name` for a block.

        On a GPU (a torch.device's type "cuda"), which waits for memory, that is kept, as "input": with the
        bias, backward makes r again, and forward need not write it. The CPU's kernels write r while it is in
        cache.
        """
        return "input" if device == "cuda" and self.lrn_first else self.saved_name(has_bias=True)


def saved_tensor(
    name: str | None, x: torch.Tensor | None, y: torch.Tensor | None, r: torch.Tensor | None
) -> torch.Tensor | None:
    """Returns the tensor that :meth:`Stages.saved_name` names, of the stages' input, output and r."""
    return {"input": x, "output": y, "r": r, None: None}[name]


stages_of = remembered(Stages)
lrn_alone = remembered(lambda *numbers: Stages(relu=False, lrn=LRN(*numbers)))
pool_alone = remembered(lambda *numbers: Stages(relu=False, pool=MaxPool(*numbers)))


@functools.lru_cache(maxsize=1024)
def _unflat(relu: bool, lrn: tuple[float, ...], pool: tuple[int, ...], order: str) -> Stages:
    norm = LRN(int(lrn[0]), lrn[1], lrn[2], lrn[3], int(lrn[4])) if lrn else None
    maxpool = MaxPool(pool[0:2], pool[2:4], pool[4:6], pool[6:8], bool(pool[8])) if pool else None
    return Stages(relu, norm, maxpool, order)


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """Returns the format of ``x`` (N, C, H, W), which its output keeps; contiguous where both fit."""
    _, c, h, w = x.stride()
    is_last = c == 1 and x.shape[1] > 1 and w >= x.shape[1] and h >= w
    if is_last and (x.shape[2] > 1 or x.shape[3] > 1):
        return torch.channels_last
    return torch.contiguous_format


def check(x: torch.Tensor, bias: torch.Tensor | None, stages: Stages) -> None:
    """Checks an epilogue's arguments, for every op, fake or real.

    Raises:
        RuntimeError: naming the argument and what it was, as torch does.
    """
    if x.dim() != 4:
        raise RuntimeError(f"epilogue: input must be (N, C, H, W), but got shape {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise RuntimeError(f"epilogue: input must be one of {DTYPES}, but got {x.dtype}")
    if stages.empty and bias is None:
        raise RuntimeError("epilogue: no bias and no stages, nothing to compute")
    channels = x.shape[1]
    if bias is not None:
        if bias.dim() != 1 or bias.shape[0] != channels:
            raise RuntimeError(
                f"epilogue: expected bias to be 1-dimensional with {channels} elements, "
                f"but got bias of size {list(bias.shape)}"
            )
        if bias.dtype != x.dtype or bias.device != x.device:
            raise RuntimeError(
                f"epilogue: input ({x.dtype}, {x.device}) and bias ({bias.dtype}, {bias.device}) "
                "should have the same type and device"
            )
    if stages.lrn and channels % stages.lrn.groups:
        raise RuntimeError(
            f"epilogue: expected the {channels} channels of input to be divisible by "
            f"LRN groups={stages.lrn.groups}"
        )
