"""What the output of an operation sees of the image, from what its arguments see."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from ._torch_private import schema_of, tree_leaves, tree_map

Window: TypeAlias = tuple[int, int, int, int]  # kernel, stride, padding before, dilation
NOTHING = -torch.inf


@dataclass(frozen=True, eq=False)
class Reach:
    """The part of the image that each element of a tensor sees.

    Attributes:
        far: how far up, down, left and right, each of the tensor's shape: the first row negated, the last
            row, the first column negated, the last column; what sees all that two others see has the larger
            of each. Here padding is rows and columns counted on beyond the edges. Four more, the same but
            for padding, which they don't count: NOTHING where none of the image is seen.
        jump: rows and columns from one unit to the next, also where a map has but one.
    """

    far: tuple[Tensor, ...]
    jump: tuple[int, ...]

    def map(self, change: Callable[[Tensor], Tensor]) -> Reach:
        return Reach(tuple(map(change, self.far)), self.jump)


def of_pixels(image: Tensor) -> Reach:
    """Each pixel of (1, C, H, W) sees itself."""
    height, width = image.shape[-2:]
    rows = torch.arange(height, dtype=torch.float, device=image.device).view(-1, 1)
    columns = torch.arange(width, dtype=torch.float, device=image.device)
    far = tuple(side.expand(image.shape) for side in (-rows, rows, -columns, columns))
    return Reach((*far, *far), (1, 1))


def distinct(far: Tensor, kept: int) -> Tensor:
    """One of those that an expanded tensor repeats, along all but its last dimensions."""
    return far[tuple(slice(1 if stride == 0 else None) for stride in far.stride()[:-kept])]


def even_step(far: Tensor, dim: int, single: int) -> Tensor | None:
    """By how much it grows along a dimension, ``single`` where that has size 1; None if unevenly."""
    if far.shape[dim] == 1:
        return far.new_tensor(single)
    steps = far.diff(dim=dim)
    first = steps.narrow(dim, 0, 1)
    return first if bool((steps == first).all()) else None


def _through(reach: Reach, windows: Sequence[Window], sizes: Sequence[int]) -> Reach:
    """Windows over the last dimensions, which are of these sizes afterwards."""
    jump, fars = list(reach.jump), []
    shape = (*reach.far[0].shape[: -len(windows)], *sizes)
    for side, far in enumerate(reach.far):
        axis, sign = side // 2 % 2, 2 * (side % 2) - 1
        far = distinct(far, len(windows))
        for dim, window, size in zip(range(-len(windows), 0), windows, sizes, strict=True):
            own = dim == axis - 2  # rows come last but one, columns last
            step = even_step(far, dim, sign * reach.jump[axis] if own else 0) if side < 4 else None
            if own and sign > 0 and side < 4:
                jump[axis] = 0 if step is None else int(step.flatten()[0]) * window[1]
            far = _slid(far, dim, window, size, step)
        fars.append(far.expand(shape))
    return Reach(tuple(fars), tuple(jump))


def _slid(far: Tensor, dim: int, window: Window, size: int, step: Tensor | None) -> Tensor:
    """A window along one dimension; where a map has a step, padding goes on with it, else it sees nothing."""
    kernel, stride, padding, dilation = window
    if step is not None:
        at = torch.arange(size, device=far.device) * stride - padding
        at = at.view(-1, *[1] * (-dim - 1))
        return far.narrow(dim, 0, 1) + step * at + (step * (kernel - 1) * dilation).clamp(min=0)
    extent = (kernel - 1) * dilation + 1
    after = (size - 1) * stride + extent - far.shape[dim] - padding
    far = F.pad(far, [0, 0] * (-dim - 1) + [padding, after], value=NOTHING)
    return far.unfold(dim, extent, stride)[..., ::dilation].amax(-1)


def _union(reaches: Sequence[Reach], shape: Sequence[int]) -> Reach:
    """Returns the reach of what is computed from one element of each, broadcast to a shape."""

    def largest(*fars: Tensor) -> Tensor:
        different = {id(far): far for far in fars}.values()
        return functools.reduce(torch.maximum, different).expand(shape)

    return Reach(tuple(map(largest, *(reach.far for reach in reaches))), _jump(reaches))


def _jump(reaches: Sequence[Reach]) -> tuple[int, ...]:
    return tuple(map(max, zip(*(reach.jump for reach in reaches), strict=True)))


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
        assert reach.far[0].shape == self.shape
        return [reach] * len(schema_of(self.func).returns)


Rule: TypeAlias = Callable[[Call], "Reach | list[Reach]"]


def _elementwise(call: Call) -> Reach:
    return _union(call.reaches, call.shape)


def _constant(call: Call) -> list[Reach]:
    """Only the shape of what sees the image is read."""
    return []


def _moved(call: Call) -> list[Reach]:
    """Values are put elsewhere, and so is what they see."""
    joins = call.kind in ("cat", "stack")

    def side(i: int) -> list[Tensor]:
        def far(value: Any) -> Any:
            reach = call.reach_of(value)
            if reach is not None:
                return reach.far[i]
            constant = joins and isinstance(value, Tensor)
            return torch.full_like(value, NOTHING, dtype=torch.float) if constant else value

        args, kwargs = tree_map(far, (call.args, call.kwargs))
        if "view" in call.kind:  # torch's view refuses some expanded tensors
            return [args[0].reshape(args[1])]
        return tree_leaves(call.func(*args, **kwargs))

    jump = _jump(call.reaches)
    return [Reach(far, jump) for far in zip(*map(side, range(8)), strict=True)]


def _padded(call: Call) -> Reach:
    pad = call.args[1]
    windows = [(1, 1, before, 1) for before in pad[::2][::-1]]
    reach = _through(call.only, windows, call.shape[-len(windows) :])
    if call.kind == "constant_pad_nd":
        return reach
    mirrored = (call.func(far, pad) for far in call.only.far[4:])
    return Reach((*reach.far[:4], *mirrored), reach.jump)


def _convolution(call: Call) -> Reach:
    """Every channel sees all that its group of channels sees."""
    given = call.given
    if given["transposed"]:
        raise Refused("with transposed=True")
    weight, groups, dims = given["weight"], given["groups"], len(given["stride"])
    windows = list(zip(weight.shape[2:], given["stride"], given["padding"], given["dilation"], strict=True))

    def of_group(far: Tensor) -> Tensor:
        grouped = distinct(far.unflatten(1, (groups, -1)), dims).amax(2)
        return grouped.expand(far.shape[0], groups, *far.shape[2:])

    reach = _through(call.only.map(of_group), windows, call.shape[2:])
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
    arguments = kernel, each("stride", kernel), each("padding", [0]), each("dilation", [1])
    return _pooled(call, call.kind, list(zip(*arguments, strict=True)))


def _pooled(call: Call, kind: str, windows: Sequence[Window]) -> Reach:
    reach = _through(call.only, windows, call.shape[-len(windows) :])
    if any(window[:2] != (1, 1) for window in windows[-2:]):  # else it pools channels, as in an LRN
        call.note(kind, reach, None)
    return reach


def _epilogue(call: Call) -> list[Reach]:
    pool = call.given["pool"]
    if not pool:
        return [call.only]
    windows = list(zip(pool[0:2], pool[2:4], pool[4:6], pool[6:8], strict=True))
    return [_pooled(call, "max_pool2d", windows)]


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
    reach = _union(reaches, call.shape)
    if call.reach_of(second) is None and all(bool((far == far.amax()).all()) for far in reach.far):
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
