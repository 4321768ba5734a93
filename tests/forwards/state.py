"""Forwards with side effects: in globals, in its module, in its layers, on the screen."""

import functools

import torch
from torch import nn

from .base import forward

SEEN = []
STEPS = 0


class Counter:
    count = 0


def reset():
    """Forgets what forwards left in globals."""
    global STEPS
    STEPS = Counter.count = 0
    SEEN.clear()


@functools.cache
def factor_of(size):
    return 2.0 if size == 2 else 3.0


@forward
def prints(self, x):
    y = self.block(x)
    print("shape", tuple(y.shape))
    return y


@forward
def counts_in_a_global(self, x):
    global STEPS
    STEPS += 1
    return self.block(x) * STEPS


@forward
def appends_to_a_list(self, x):
    SEEN.append(tuple(x.shape))
    return self.block(x)


@forward
def counts_calls(self, x):
    self.calls += 1
    return self.block(x) * self.calls


@forward
def keeps_the_last(self, x):
    self.last = self.relu(self.conv(x))
    return self.pool(self.last)


@forward
def keeps_in_a_table(self, x):
    y = self.relu(self.conv(x))
    self.table["last"] = tuple(y.shape)
    return self.pool(y)


@forward
def writes_a_parameter(self, x):
    with torch.no_grad():
        self.second.weight.mul_(0.9)
    return self.relu(self.second(self.relu(self.conv(x))))


@forward
def changes_a_layer(self, x):
    self.pool.kernel_size = 3 if self.pool.kernel_size == 2 else 2
    return self.pool(self.relu(self.conv(x)))


@forward
def replaces_a_layer(self, x):
    y = self.relu(self.conv(x))
    self.relu = nn.Tanh()
    return self.pool(y)


@forward
def changes_its_mode(self, x):
    was = self.training
    self.eval()
    y = self.block(x)
    self.train(was)
    return y


@forward
def deletes(self, x):
    y = self.conv(x)
    x = self.relu(y)
    del y
    return self.pool(x)


@forward
def adds_parameters_while_running(self, x):
    if not hasattr(self, "gain"):
        self.gain = nn.Parameter(torch.full((6, 1, 1), 0.5))
    return self.pool(self.relu(self.conv(x)) * self.gain)


@forward
def registers_a_buffer(self, x):
    y = self.block(x)
    self.register_buffer("latest", y.detach().mean())
    return y


@forward
def hooks_a_layer_while_running(self, x):
    handle = self.relu.register_forward_hook(lambda m, args, y: y * 2)
    y = self.block(x)
    handle.remove()
    return y


@forward
def keeps_what_hooks_see(self, x):
    seen = []
    handle = self.conv.register_forward_hook(lambda m, args, y: seen.append(y))
    y = self.block(x)
    handle.remove()
    return y, seen[0]


@forward
def depends_on_a_parameter(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y) if self.bn.weight[0] > 0 else y


@forward
def depends_on_a_counter(self, x):
    y = self.relu(self.bn(self.conv(x)))
    return self.pool(y) if self.bn.num_batches_tracked == 0 else y


@forward
def depends_on_training(self, x):
    y = self.relu(self.conv(x))
    return (self.pool(y), y.mean()) if self.training else y


@forward
def depends_on_a_childs_training(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y) if self.drop.training else y * 2


@forward
def assigns_by_setattr(self, x):
    setattr(self, "last", self.relu(self.conv(x)))  # noqa: B010
    return self.pool(self.last)


@forward
def writes_in_its_dict(self, x):
    y = self.relu(self.conv(x))
    self.__dict__["last"] = y
    vars(self)["calls"] = self.calls + 1
    return self.pool(y)


@forward
def appends_to_its_list(self, x):
    y = self.relu(self.conv(x))
    self.table.setdefault("seen", []).append(y.shape[0])
    return self.pool(y), len(self.table["seen"])


@forward
def counts_in_a_class(self, x):
    Counter.count += 1
    return self.block(x) * Counter.count


@forward
def counts_by_itertools(self, x):
    return self.block(x) * next(self.counter)


@forward
def memoised(self, x):
    return self.block(x) * factor_of(x.shape[0])
