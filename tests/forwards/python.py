"""Python's own: generators, recursion, closures, lookups, matches."""

import functools

import torch
from torch.nn import functional as F

from .base import forward

SCALE = torch.tensor(1.5)


@forward
def a_generator(self, x):
    def steps(y):
        for layer in (self.conv, self.relu, self.pool):
            y = layer(y)
            yield y

    return list(steps(x))[-1]


@forward
def a_generator_expression(self, x):
    y = self.relu(self.conv(x))
    return torch.cat([self.pool(z) for z in y.split(1, 0)]), sum(z.mean() for z in y)


@forward
def recursion(self, x, depth=3):
    if depth == 0:
        return self.pool(x)
    return (
        recursion(self, self.relu(self.conv(x)), depth - 1) if depth == 3 else recursion(self, x, depth - 1)
    )


@forward
def a_closure(self, x):
    shift = SCALE * 2

    def step(z):
        return self.pool(self.relu(self.conv(z))) * SCALE + shift

    return step(x)


@forward
def a_lambda(self, x):
    steps = [lambda z: self.conv(z), F.relu, lambda z: F.max_pool2d(z, 2), torch.tanh]
    return functools.reduce(lambda z, step: step(z), steps, x)


@forward
def looks_by_name(self, x):
    for name in ("conv", "relu", "pool"):
        x = getattr(self, name)(x)
    return x


@forward
def looks_in_modules(self, x):
    for name, layer in self._modules.items():
        if name in ("conv", "relu", "pool"):
            x = layer(x)
    return x


@forward
def walks_children(self, x):
    for layer in list(self.children())[:3]:
        x = layer(x)
    return x, sum(p.numel() for p in self.parameters()), len(list(self.named_modules()))


@forward
def a_walrus(self, x):
    return self.pool(y) if (y := self.relu(self.conv(x))).shape[0] > 1 else y


@forward
def a_match(self, x):
    y = self.relu(self.conv(x))
    match y.shape:
        case (2, _, h, w) if h == w:
            return self.pool(y)
        case _:
            return y


@forward
def asks_for_attributes(self, x):
    y = self.relu(self.conv(x))
    kinds = hasattr(y, "shape"), hasattr(y, "node"), hasattr(y, "tracer"), callable(y), hasattr(x, "no_such")
    return self.pool(y), kinds, getattr(y, "no_such", 5), getattr(x, "node", None)


@forward
def keeps_tensors_in_dicts(self, x):
    table = {"a": self.relu(self.conv(x))}
    table |= {"b": self.pool(table["a"])}
    return {k: v for k, v in table.items() if v.shape[2] < 10}, "b" in table, dict(table).keys() == {"a", "b"}
