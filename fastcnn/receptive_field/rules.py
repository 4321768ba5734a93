"""Rules for operations: what their output sees of the image, given what their arguments see."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from .._torch_private import schema_of, tree_leaves, tree_map
from .reach import NOTHING, Extent, Reach, Window, distinct, jump_of, through, union


class Refused(Exception):
    """An operation, or a use of one, that has no rule; with what is special about the use."""


@dataclass
class Call:
    """An operation on something that sees the image.

    Attributes:
        given: the arguments by name, with the defaults of those left out.
        shape: of the first output.
        reach_of: what a tensor sees; None if nothing.
        note: puts down a layer: its kind, its reach and its weight.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: Sequence[int]
    reach_of: Callable[[Any], Reach | None]
    note: Callable[[str, Reach, Tensor | None], None]
    given: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        defaults = {a.name: a.default_value for a in schema_of(self.func).arguments}
        self.given = defaults | dict(zip(defaults, self.args, strict=False)) | self.kwargs

    @property
    def kind(self) -> str:
        return str(schema_of(self.func).name).split("::")[1].removesuffix("_with_indices")

    @property
    def reaches(self) -> list[Reach]:
        """Returns the arguments' reaches, of those that see anything."""
        found = map(self.reach_of, tree_leaves((self.args, self.kwargs)))
        return [reach for reach in found if reach is not None]

    @property
    def only(self) -> Reach:
        """Returns the first argument's reach, if no other sees anything."""
        reach = self.reach_of(self.args[0])
        if reach is None or len(self.reaches) > 1:
            raise Refused("with another argument that is computed from the image")
        return reach

    def outputs(self) -> Sequence[Reach]:
        """Returns the outputs' reaches, of as many of them as see anything.

        Raises:
            Refused: this is not known.
        """
        elementwise = torch.Tag.pointwise in self.func.tags
        rule = _elementwise if elementwise else _RULES.get(schema_of(self.func).name)
        if rule is None:
            raise Refused
        reach = rule(self)
        if isinstance(reach, list):
            return reach
        assert reach.shape == self.shape
        return [reach] * len(schema_of(self.func).returns)


Rule: TypeAlias = Callable[[Call], "Reach | list[Reach]"]


def _elementwise(call: Call) -> Reach:
    return union(call.reaches, call.shape)


def _constant(call: Call) -> list[Reach]:
    """Only the shape of what sees the image is read."""
    return []


def _moved(call: Call) -> list[Reach]:
    """Values are put elsewhere, and so is what they see."""
    joins = call.kind in ("cat", "stack")

    def moved(side: Callable[[Reach], Tensor]) -> list[Tensor]:
        def far(value: Any) -> Any:
            reach = call.reach_of(value)
            if reach is not None:
                return side(reach)
            constant = joins and isinstance(value, Tensor)
            return torch.full_like(value, NOTHING, dtype=torch.float) if constant else value

        args, kwargs = tree_map(far, (call.args, call.kwargs))
        if "view" in call.kind:  # torch's view refuses some expanded tensors
            return [args[0].reshape(args[1])]
        return tree_leaves(call.func(*args, **kwargs))

    def extents(part: str) -> list[Extent]:
        sides = (moved(attrgetter(f"{part}.{side}")) for side in Extent._fields)
        return [Extent(*output) for output in zip(*sides, strict=True)]

    jump = jump_of(call.reaches)
    return [Reach(*parts, jump) for parts in zip(extents("padded"), extents("inside"), strict=True)]


def _padded(call: Call) -> Reach:
    pad = call.args[1]
    windows = [Window(1, 1, before, 1) for before in pad[::2][::-1]]
    reach = through(call.only, windows, call.shape[-len(windows) :])
    if call.kind == "constant_pad_nd":
        return reach
    return replace(reach, inside=call.only.inside.map(lambda far: call.func(far, pad)))


def _windows(*arguments: Sequence[int]) -> list[Window]:
    """Returns a window for each dimension, of the layer's kernel sizes, strides, paddings and dilations."""
    return [Window(*numbers) for numbers in zip(*arguments, strict=True)]


def _convolution(call: Call) -> Reach:
    """Every channel sees all that its group of channels sees."""
    given = call.given
    if given["transposed"]:
        raise Refused("with transposed=True")
    weight, groups, dims = given["weight"], given["groups"], len(given["stride"])
    windows = _windows(weight.shape[2:], given["stride"], given["padding"], given["dilation"])

    def of_group(far: Tensor) -> Tensor:
        grouped = distinct(far.unflatten(1, (groups, -1)), dims).amax(2)
        return grouped.expand(far.shape[0], groups, *far.shape[2:])

    reach = through(call.only.map(of_group), windows, call.shape[2:])
    filters = (call.shape[0], groups, call.shape[1] // groups, *call.shape[2:])
    reach = reach.map(lambda far: far.unsqueeze(2).expand(filters).reshape(call.shape))
    if dims > 1:
        call.note(f"conv{dims}d", reach, weight)
    return reach


def _pool(call: Call) -> Reach:
    dims = int(call.kind[-2])

    def each(name: str, default: list[int]) -> list[int]:
        numbers = list(call.given.get(name) or default)
        return numbers * dims if len(numbers) == 1 else numbers

    kernel = each("kernel_size", [])
    windows = _windows(kernel, each("stride", kernel), each("padding", [0]), each("dilation", [1]))
    return _pooled(call, call.kind, windows)


def _pooled(call: Call, kind: str, windows: Sequence[Window]) -> Reach:
    reach = through(call.only, windows, call.shape[-len(windows) :])
    if any(
        (window.kernel, window.stride) != (1, 1) for window in windows[-2:]
    ):  # else it pools channels, as in an LRN
        call.note(kind, reach, None)
    return reach


def _epilogue(call: Call) -> list[Reach]:
    pool = call.given["pool"]
    if not pool:
        return [call.only]
    return [_pooled(call, "max_pool2d", _windows(pool[0:2], pool[2:4], pool[4:6], pool[6:8]))]


def _adaptive_pool(call: Call) -> Reach:
    return call.only.map(lambda far: F.adaptive_max_pool2d(far, call.given["output_size"]))


def _reduced(call: Call) -> Reach:
    dims, keep = call.given.get("dim"), call.given.get("keepdim", False)
    return call.only.map(lambda far: far.amax(() if dims is None else dims, keep))


def _mixed(dims: Callable[[Call], Sequence[int]]) -> Rule:
    """Every value along some dimensions depends on all of them."""

    def rule(call: Call) -> Reach:
        along = list(dims(call))
        return call.only.map(lambda far: far.amax(along, True).expand_as(far) if along else far)

    return rule


def _statistics_dims(call: Call) -> Sequence[int]:
    """In evaluation a batch norm that keeps statistics is elementwise; others take them from the image."""
    return [d for d in range(len(call.shape)) if d != 1] if call.given["training"] else []


def _product(call: Call) -> Reach:
    """Of matrices: rows of the first with columns of the second, and a bias that may come before."""
    *bias, first, second = (value for value in call.given.values() if isinstance(value, Tensor))
    reaches = [reach for reach in map(call.reach_of, bias) if reach is not None]
    for factor, dim in ((first, -1), (second, -2)):
        reach = call.reach_of(factor)
        if reach is not None:
            reaches.append(reach.map(functools.partial(torch.amax, dim=dim, keepdim=True)))
    reach = union(reaches, call.shape)
    if call.reach_of(second) is None and all(
        bool((far == far.amax()).all()) for far in (*reach.padded, *reach.inside)
    ):
        call.note("linear", reach.map(lambda far: far.amax().view(1, 1, 1)), None)
    return reach


def _rules(rule: Rule, names: str) -> dict[str, Rule]:
    return {f"aten::{name}": rule for name in names.split()}


# By operation; the elementwise ones are those that torch, 2.11 at least, does not mark as such.
_RULES: dict[str, Rule] = {
    **_rules(
        _elementwise,
        "_prelu_kernel _to_copy abs_ add_ celu_ copy_ elu_ fill_ gelu_ hardsigmoid_ hardswish hardswish_ "
        "hardtanh_ leaky_relu leaky_relu_ log_sigmoid_forward masked_fill masked_fill_ mish_ native_dropout "
        "rrelu_with_noise rrelu_with_noise_ rsub selu_ threshold_ zero_",
    ),
    **_rules(
        _constant,
        "empty_like full_like new_empty new_full new_ones new_zeros ones_like rand_like randn_like "
        "zeros_like",
    ),
    **_rules(
        _moved,
        "_unsafe_view alias cat channel_shuffle detach expand flip index index_select lift_fresh "
        "native_channel_shuffle permute pixel_shuffle pixel_unshuffle repeat roll select slice split "
        "split_with_sizes squeeze stack t transpose unbind unfold unsqueeze view",
    ),
    **_rules(_padded, "constant_pad_nd reflection_pad2d replication_pad2d"),
    **_rules(_convolution, "convolution"),
    **_rules(_pool, "avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices"),
    **_rules(_adaptive_pool, "_adaptive_avg_pool2d adaptive_max_pool2d"),
    **_rules(_reduced, "amax amin linalg_vector_norm logsumexp max mean min prod std sum var var_mean"),
    **_rules(_mixed(lambda call: [call.given["dim"]]), "_log_softmax _safe_softmax _softmax cumsum"),
    **_rules(_mixed(lambda call: range(-len(call.given["normalized_shape"]), 0)), "native_layer_norm"),
    **_rules(_mixed(lambda call: range(1, len(call.shape))), "native_group_norm"),
    **_rules(_mixed(_statistics_dims), "cudnn_batch_norm miopen_batch_norm native_batch_norm"),
    **_rules(_product, "addmm baddbmm bmm mm"),
    "fastcnn::epilogue_forward": _epilogue,
}
