"""AlexNet-2012 on two devices, as published: Krizhevsky, Sutskever & Hinton 2012, §3.5 and figure 2.

Each device has half of every layer's maps or units. conv1, 2, 4 and 5 stay within a device; conv3 and the
dense layers see both halves of what comes before, and there alone activations cross.
"""

from __future__ import annotations

import contextvars
import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import ConvBlock2d
from ..stages import Stages

Pair = tuple[Tensor, Tensor]


class Halves(nn.Module):
    """A layer in two, half of its outputs on each device; its state dict is the whole layer's."""

    def __init__(
        self, whole: nn.Module, make: Callable[[], nn.Module], devices: Sequence[torch.device]
    ) -> None:
        super().__init__()
        dtype = next(whole.parameters()).dtype
        self.halves = nn.ModuleList(make().to(device, dtype) for device in devices)
        self.register_state_dict_post_hook(_join)
        self.register_load_state_dict_pre_hook(_split)
        self.load_state_dict(whole.state_dict())

    def forward(self, input: Tensor, half: int) -> Tensor:
        return self.halves[half](input)


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.get_submodule("halves.0").named_parameters()]


def _join(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in _names(module):
        first, second = (state.pop(f"{prefix}halves.{i}.{name}") for i in range(2))
        state[prefix + name] = torch.cat([first, second.to(first.device)])


def _split(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in _names(module):
        if prefix + name in state:  # else torch says what is missing
            for i, half in enumerate(state.pop(prefix + name).chunk(2)):
                state[f"{prefix}halves.{i}.{name}"] = half


def _half_of_block(block: ConvBlock2d) -> ConvBlock2d:
    """Builds one tower's part: a group of a convolution in two groups, else half of its maps."""
    groups = block.groups
    stages: Stages = block.stages
    lrn = stages.lrn and replace(stages.lrn, groups=1)
    return ConvBlock2d(
        block.in_channels // groups,
        block.out_channels // 2,
        block.kernel_size,
        block.stride,
        block.padding,
        relu=stages.relu,
        lrn=lrn,
        pool=stages.pool,
        order=stages.order,
    )


class TwoTowers(nn.Module):
    """``alexnet("2012")`` on two devices, with the state dict that it has on one. See ``ConvNet.split``.

    Shape: (N, C, H, W) on any device to (N, num_classes) on the first.
    """

    def __init__(
        self,
        with_margins: Callable[[Tensor], Tensor],
        features: nn.Module,
        avgpool: nn.Module,
        classifier: nn.Module,
        devices: tuple[torch.device, torch.device],
    ) -> None:
        super().__init__()
        self.devices = devices
        self.features, self.classifier = nn.ModuleDict(), nn.ModuleDict()
        block: Any
        for name, block in features.named_children():
            self.features[name] = Halves(block, partial(_half_of_block, block), devices)
        layer: Any
        for name, layer in classifier.named_children():
            if name == "fc8":  # the softmax is over all classes: on the first device
                self.classifier[name] = copy.deepcopy(layer).to(devices[0])
            elif isinstance(layer, nn.Linear):
                half = partial(nn.Linear, layer.in_features, layer.out_features // 2)
                self.classifier[name] = Halves(layer, half, devices)
        self.dropout = nn.Dropout(max(m.p for m in classifier.modules() if isinstance(m, nn.Dropout)))
        self.with_margins, self.avgpool = with_margins, avgpool

    def forward(self, input: Tensor) -> Tensor:
        return self._run(input, {})

    def crossing(self, input: Tensor) -> dict[str, int]:
        """Counts the bytes that cross before each layer that sees both towers, for these images."""
        crossed: dict[str, int] = {}
        with torch.no_grad():
            self._run(input, crossed)
        return crossed

    def _run(self, input: Tensor, crossed: dict[str, int]) -> Tensor:
        features, classifier = self.features, self.classifier
        images = self.with_margins(input)
        with ThreadPoolExecutor(2) as threads:

            def both(run: Callable[[int], Tensor]) -> Pair:
                """Runs a tower's part on each device, at the same time."""
                if self.devices[0].type == "cuda":  # launches don't wait
                    return run(0), run(1)
                return tuple(f.result() for f in [threads.submit(_here(run), i) for i in range(2)])  # type: ignore[return-value]

            def exchanged(halves: Pair, name: str) -> Pair:
                crossed[name] = sum(h.numel() * h.itemsize for h in halves)
                return both(lambda i: torch.cat([h.to(self.devices[i]) for h in halves], 1))

            def dropped(halves: Pair) -> Pair:
                """Drops out one tower after the other, so that random numbers do not depend on threads."""
                return self.dropout(halves[0]), self.dropout(halves[1])

            maps = both(lambda i: features["conv2"](features["conv1"](images.to(self.devices[i]), i), i))
            maps = exchanged(maps, "conv3")
            maps = both(lambda i: features["conv5"](features["conv4"](features["conv3"](maps[i], i), i), i))
            units = exchanged(both(lambda i: self.avgpool(maps[i]).flatten(1)), "fc6")
            units = dropped(both(lambda i: classifier["fc6"](units[i], i).relu()))
            units = exchanged(units, "fc7")
            units = dropped(both(lambda i: classifier["fc7"](units[i], i).relu()))
        crossed["fc8"] = units[1].numel() * units[1].itemsize
        return classifier["fc8"](torch.cat([h.to(self.devices[0]) for h in units], 1))


def _here(run: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    """Wraps ``run`` for another thread, with this one's gradient mode, autocast and backend."""
    context, grad = contextvars.copy_context(), torch.is_grad_enabled()
    enabled, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def there(i: int) -> Tensor:
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype, enabled):
            return context.copy().run(run, i)

    return there
