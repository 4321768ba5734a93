"""Arguments, outputs, and layers that are used otherwise than by name."""

import collections
import copy
import dataclasses

import torch
from torch import nn
from torch.nn import functional as F

from .base import Base, forward

Pair = collections.namedtuple("Pair", ["first", "second"])


@dataclasses.dataclass
class Result:
    maps: torch.Tensor
    mean: torch.Tensor


@forward
def any_arguments(self, *args, **kwargs):
    return self.block(*args, **kwargs)


@forward
def default_arguments(self, x, scale=2.0, *, shift=1.0, pool=True):
    x = self.relu(self.conv(x)) * scale + shift
    return self.pool(x) if pool else x


@forward
def a_tuple(self, x):
    x = self.relu(self.conv(x))
    return x, self.pool(x)


@forward
def a_list(self, x):
    x = self.relu(self.conv(x))
    return [x, [self.pool(x), 3]]


@forward
def a_dict(self, x):
    x = self.relu(self.conv(x))
    return {"out": x, "pooled": self.pool(x), "size": x.shape}


@forward
def an_ordered_dict(self, x):
    out = collections.OrderedDict()
    out["x"] = self.relu(self.conv(x))
    out["y"] = self.pool(out["x"])
    return out


@forward
def a_named_tuple(self, x):
    x = self.relu(self.conv(x))
    return Pair(x, second=self.pool(x))


@forward
def a_dataclass(self, x):
    x = self.block(x)
    result = Result(x, x.mean())
    return (type(result).__name__, result.maps, result.mean)


@forward
def a_number(self, x):
    return self.block(x), float(x.shape[2]), x.dim()


@forward
def nothing(self, x):
    self.last = self.block(x)


@forward
def lists_of_layers(self, x):
    x = self.conv(x)
    for layer in self.layers:
        x = layer(x)
    return self.table["pool"](self.table["act"](self.second(x)))


@forward
def partials(self, x):
    return self.act(F.relu(self.conv(x)))


@forward
def layers_made_inside(self, x):
    return nn.MaxPool2d(2)(nn.ReLU()(self.conv(x)))


@forward
def a_convolution_made_inside(self, x):
    made = nn.Conv2d(6, 2, 1)
    return F.relu(made(self.relu(self.conv(x))))


@forward
def asks_isinstance(self, x):
    if not isinstance(self.relu, nn.ReLU) or not isinstance(x, torch.Tensor):
        raise TypeError(type(x))
    return self.block(x)


@forward
def asks_type(self, x):
    y = self.block(x)
    if type(y) is not torch.Tensor:
        return x
    return y, type(x).__name__, type(self).__name__, self.__class__.__qualname__


@forward
def delegates(self, x):
    return Base.features(self, x) + type(self).block(self, x)


@forward
def calls_forward(self, x):
    return self.pool.forward(self.relu.forward(self.conv.forward(x)))


@forward
def calls_under(self, x):
    y = self.conv._conv_forward(x, self.conv.weight * 2, self.conv.bias)
    return self.pool(F.relu(y))


@forward
def one_of_two_outputs_unused(self, x):
    y = self.relu(self.conv(x))
    self.relu(self.second(y))
    return self.pool(y)


@forward
def copies_itself(self, x):
    twin = copy.copy(self.pool)
    twin.kernel_size = 3
    return twin(self.relu(self.conv(x)))
