"""Changes to modules, of which several tests make use."""

import torch
from prepared import (
    conv,
    convs,
)
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


class Doubled(nn.Module):
    def forward(self, x):
        return x * 2


def tenths(t):
    return torch.full_like(t, 0.1)


def set_data(t, make):
    t.data = make(t.data)


def renewed(layer, name, value):
    """Replaces a parameter by another, or by None."""
    setattr(layer, name, None if value is None else nn.Parameter(value))


def fewer_outputs(layer):
    for p in layer.parameters(recurse=False):
        p.data = p.data[:2]


def unrecorded(layer, change):
    layer.requires_grad_(False)
    change(layer.weight)


def denses(m):
    return [layer for layer in m.modules() if type(layer) is nn.Linear]


def as_attribute(layer, register):
    value = layer._parameters.pop("weight").detach() * 2
    layer.register_buffer("weight", value) if register else setattr(layer, "weight", value)


def doubled_state(m, assign):
    m.load_state_dict({name: value * 2 for name, value in m.state_dict().items()}, assign=assign)


def pruned(layer, permanent):
    mask = torch.arange(layer.weight.numel()).reshape(layer.weight.shape) % 3 > 0
    prune.custom_from_mask(layer, "weight", mask)
    if permanent:
        prune.remove(layer, "weight")


def parametrized(layer, name, keep):
    parametrize.register_parametrization(layer, name, Doubled())
    if not keep:
        parametrize.remove_parametrizations(layer, name)


def converted_by_swapping(m):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        m.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def grouped(layer):
    layer.groups = layer.in_channels
    layer.weight = nn.Parameter(
        layer.weight[: 2 * layer.in_channels, :1].repeat(2, 1, 1, 1)[: len(layer.bias)]
    )


# By name; a name that ends in "!" is of a change after which calls are refused.
PARAMETERS = {
    "mul_": lambda m: conv(m).weight.mul_(3),
    "bias add_": lambda m: conv(m).bias.add_(1),
    "last parameter add_": lambda m: list(m.parameters())[-1].add_(1),
    "data mul_": lambda m: conv(m).weight.data.mul_(3),
    "detach mul_": lambda m: conv(m).weight.detach().mul_(3),
    "by numpy": lambda m: conv(m).weight.detach().numpy().fill(0.1),
    "data set": lambda m: set_data(conv(m).weight, tenths),
    "bias data set": lambda m: set_data(conv(m).bias, tenths),
    "data transposed": lambda m: set_data(conv(m).weight, lambda w: w.transpose(2, 3)),
    "data flipped in strides": lambda m: set_data(conv(m).weight, lambda w: torch.stack([w, -w], -1)[..., 1]),
    "data expanded": lambda m: set_data(conv(m).weight, lambda w: w[:1].expand(w.shape)),
    "bias expanded": lambda m: set_data(conv(m).bias, lambda b: b[:1].expand(b.shape)),
    "dense bias of one": lambda m: [renewed(d, "bias", torch.ones(1)) for d in denses(m)[-1:]],
    "dense bias of each image": lambda m: [
        renewed(d, "bias", torch.randn(3, d.out_features)) for d in denses(m)[-1:]
    ],
    "bias strided": lambda m: set_data(conv(m).bias, lambda b: torch.stack([b, -b], -1)[:, 1]),
    "data unaligned": lambda m: set_data(
        conv(m).weight, lambda w: torch.cat([w.new_ones(1), w.flatten() * 2])[1:].view(w.shape)
    ),
    "data channels_last": lambda m: set_data(
        conv(m).weight, lambda w: w.contiguous(memory_format=torch.channels_last)
    ),
    "data without memory": lambda m: set_data(
        conv(m).weight, lambda w: torch._efficientzerotensor(w.shape)
    ),
    "data of one in double!": lambda m: set_data(conv(m).weight, torch.Tensor.double),
    "data of the bias in double!": lambda m: set_data(conv(m).bias, torch.Tensor.double),
    "set_": lambda m: conv(m).weight.set_(tenths(conv(m).weight)),
    "storage copy_": lambda m: conv(m).weight.untyped_storage().copy_(
        tenths(conv(m).weight).untyped_storage()
    ),
    "share_memory": lambda m: (m.share_memory(), conv(m).weight.mul_(2)),
    "as_strided_": lambda m: conv(m).weight.data.as_strided_(conv(m).weight.shape, (0, 0, 1, 1)),
    "t_": lambda m: unrecorded(conv(m), lambda w: w.transpose_(2, 3)),
    "new": lambda m: renewed(conv(m), "weight", tenths(conv(m).weight)),
    "new of another layer": lambda m: renewed(convs(m)[-1], "weight", tenths(convs(m)[-1].weight)),
    "new dense": lambda m: [renewed(x, "weight", tenths(x.weight)) for x in denses(m)],
    "new, no gradient": lambda m: conv(m).register_parameter(
        "weight", nn.Parameter(tenths(conv(m).weight), requires_grad=False)
    ),
    "in _parameters": lambda m: conv(m)._parameters.update(weight=nn.Parameter(tenths(conv(m).weight))),
    "bias None": lambda m: renewed(conv(m), "bias", None),
    "bias in _parameters None": lambda m: conv(m)._parameters.update(bias=None),
    "all biases None": lambda m: [renewed(layer, "bias", None) for layer in convs(m)],
    "a tensor": lambda m: as_attribute(conv(m), False),
    "a buffer": lambda m: as_attribute(conv(m), True),
    "deleted!": lambda m: delattr(conv(m), "weight"),
    "load_state_dict": lambda m: doubled_state(m, False),
    "load_state_dict, assign": lambda m: doubled_state(m, True),
    "requires_grad False": lambda m: m.requires_grad_(False),
    "requires_grad of one": lambda m: conv(m).requires_grad_(False),
    "requires_grad of a bias": lambda m: (m.requires_grad_(False), conv(m).bias.requires_grad_()),
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "double": lambda m: m.double(),
    "double and back": lambda m: m.double().float(),
    "double by swapping": converted_by_swapping,
    "one layer in bfloat16!": lambda m: conv(m).bfloat16() and set_data(conv(m).bias, torch.Tensor.float),
    "meta": lambda m: m.to("meta"),
    "to_empty": lambda m: (m.to_empty(device="cpu"), [p.fill_(0.01) for p in m.parameters()]),
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
    "swap_tensors": lambda m: torch.utils.swap_tensors(
        conv(m).weight, nn.Parameter(tenths(conv(m).weight))
    ),
    "tied": lambda m: (setattr(convs(m)[-1], "bias", conv(m).bias), conv(m).bias.add_(1))
    if convs(m)[-1].bias.shape == conv(m).bias.shape
    else None,
    "nan": lambda m: conv(m).weight[0, 0, 0, 0].fill_(torch.nan),
    "inf": lambda m: conv(m).weight[0, 0, 0, 0].fill_(torch.inf),
    "inf and 0": lambda m: (conv(m).weight.zero_(), conv(m).bias[0].fill_(torch.inf)),
    "parametrization": lambda m: parametrized(conv(m), "weight", True),
    "parametrization of a bias": lambda m: parametrized(conv(m), "bias", True),
    "parametrization removed": lambda m: parametrized(conv(m), "weight", False),
    "weight_norm": lambda m: (
        parametrizations.weight_norm(conv(m)),
        conv(m).parametrizations.weight.original0.mul_(2),
    ),
    "spectral_norm": lambda m: parametrizations.spectral_norm(conv(m)),
    "pruned": lambda m: pruned(conv(m), False),
    "pruned for good": lambda m: pruned(conv(m), True),
    "optimizer": lambda m: [
        setattr(p, "grad", torch.ones_like(p)) for p in m.parameters()
    ] and torch.optim.SGD(m.parameters(), 0.01).step(),
    "vector_to_parameters": lambda m: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(m.parameters()) * 2, m.parameters()
    ),
    "padding": lambda m: setattr(conv(m), "padding", (1, 1)),
    "padding as int": lambda m: setattr(conv(m), "padding", 1),
    "padding as word?": lambda m: setattr(conv(m), "padding", "same"),
    "recompute": lambda m: setattr(conv(m), "recompute", True),
    "subclass": lambda m: setattr(conv(m), "__class__", doubling(type(conv(m)))),
    "subclass with __call__": lambda m: setattr(conv(m), "__class__", calling(type(conv(m)))),
    "forward of an instance": lambda m: by_hand(conv(m)),
}  # fmt: skip


def doubling(cls):
    return type("Subclass", (cls,), {"forward": lambda self, *args: cls.forward(self, *args) * 2})


def calling(cls):
    return type("Subclass", (cls,), {"__call__": lambda self, *args: cls.__call__(self, *args) * 2})


def by_hand(layer):
    own = layer.forward
    layer.forward = lambda *args: own(*args) * 2
