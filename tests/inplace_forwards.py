"""Forwards that write in place: before, between and after the layers of a chain."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Forward(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn, self.act, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.ReLU()
        self.pool, self.lrn, self.drop = nn.MaxPool2d(2), nn.LocalResponseNorm(3, 0.5), nn.Dropout(0.5, True)
        self.register_buffer("mean", torch.zeros(1, 4, 1, 1))


FORWARDS = {}


def forward(function):
    FORWARDS[function.__name__] = type(function.__name__, (Forward,), {"forward": function})
    return function


@forward
def adds_before(self, x):
    x += 1
    return self.pool(self.relu(self.conv(x)))


@forward
def scales_before(self, x):
    x = x.mul_(2)
    return self.relu(self.conv(x))


@forward
def subtracts_a_buffer(self, x):
    x.sub_(self.mean).div_(2)
    return self.pool(self.relu(self.conv(x)))


@forward
def writes_a_copy_before(self, x):
    y = x.clone()
    y[:, 0] = 0
    return self.pool(self.relu(self.conv(y))) + self.pool(x)


@forward
def writes_a_view_before(self, x):
    y = x * 1
    y[:, :2] *= 0.5
    y.view(-1)[:10] = 3
    return self.pool(self.relu(self.conv(y)))


@forward
def pre_activation(self, x):
    """The input is written by the ReLU and read again afterwards."""
    x = x * 1
    y = self.act(x)
    return x + self.second(self.relu(self.conv(y)))


@forward
def pre_activation_of_a_chain(self, x):
    x = self.pool(self.relu(self.conv(x)))
    return x + self.second(self.act(x - 0.5)) + self.second(self.act(x))


@forward
def pre_activation_norm(self, x):
    x = self.conv(x)
    return x + self.second(self.act(self.bn(x)))


@forward
def relu_writes_what_is_read_again(self, x):
    y = self.conv(x)
    z = self.act(y)
    return self.pool(z) + F.max_pool2d(y, 2)


@forward
def read_before_and_after(self, x):
    y = self.conv(x)
    before = y * 2
    self.act(y)
    return self.pool(y) + self.pool(before)


@forward
def written_and_not_used(self, x):
    """The in-place ReLU's result is thrown away; its argument has it."""
    y = self.conv(x)
    F.relu_(y)
    return self.pool(y)


@forward
def written_between(self, x):
    y = self.conv(x)
    y.add_(1)
    return self.pool(F.relu(y))


@forward
def written_between_relu_and_pool(self, x):
    y = self.relu(self.conv(x))
    y *= 2
    return self.pool(y)


@forward
def written_after_the_pool_was_taken(self, x):
    y = self.relu(self.conv(x))
    z = self.pool(y)
    y.add_(1)
    return z + self.pool(y)


@forward
def conv_written_after_the_pool_was_taken(self, x):
    y = self.conv(x)
    z = self.pool(y)
    y.zero_()
    return z + y.sum()


@forward
def a_view_of_the_convolution_is_written(self, x):
    y = self.conv(x)
    part = y[:, :2]
    part.add_(1)
    return self.pool(self.relu(y))


@forward
def a_view_is_kept_and_written_later(self, x):
    y = self.conv(x)
    part = y[:, :2]
    z = self.relu(y)
    part.mul_(0)
    return self.pool(z) + y.sum()


@forward
def a_view_of_the_output_is_read_later(self, x):
    y = self.relu(self.conv(x))
    part = y[:, :2]
    y.mul_(3)
    return self.pool(part)


@forward
def out_of_order(self, x):
    a, b = self.conv(x), self.second(x)
    c = self.relu(b)
    d = self.relu(a)
    return self.pool(c) - self.pool(d)


@forward
def the_input_is_written_between(self, x):
    """The convolution reads the input before it is written, the second one after."""
    x = x * 1
    y = self.conv(x)
    x.mul_(3)
    return self.pool(self.relu(y)) + self.pool(self.relu(self.conv(x)))


@forward
def the_input_is_written_before_the_relu(self, x):
    x = x * 1
    with torch.no_grad():
        y = self.conv(x)
        x.add_(5)
        z = self.relu(y)
    return self.pool(z) + self.pool(self.conv(x))


@forward
def the_weight_is_written_between(self, x):
    y = self.conv(x)
    with torch.no_grad():
        self.second.weight.mul_(0.9)
    return self.pool(self.relu(y)) + self.pool(self.second(x))


@forward
def the_bias_is_written_between(self, x):
    with torch.no_grad():
        y = self.conv(x)
        self.conv.bias.add_(0.5)
        return self.pool(self.relu(y))


@forward
def statistics_are_written_between(self, x):
    y = self.conv(x)
    self.bn.running_mean.add_(0.5)
    z = self.relu(self.bn(y))
    self.bn.running_mean.mul_(0.5)
    return self.pool(z)


@forward
def drops_in_place(self, x):
    return self.pool(self.drop(self.relu(self.conv(x))))


@forward
def drops_the_pool_in_place(self, x):
    return self.second(self.drop(self.pool(self.relu(self.conv(x)))))


@forward
def relu_after_pool_in_place(self, x):
    return self.second(self.act(self.pool(self.conv(x))))


@forward
def relu_of_lrn_in_place(self, x):
    return self.act(self.lrn(self.relu(self.conv(x))))


@forward
def residual(self, x):
    y = self.second(self.act(self.conv(x)))
    y += x
    return self.act(y)


@forward
def residual_of_chains(self, x):
    y = self.pool(self.act(self.conv(x)))
    z = self.act(self.second(y))
    z += y
    return self.act(z)


@forward
def residual_into_the_chain(self, x):
    y = self.pool(self.act(self.conv(x)))
    y += self.act(self.second(y))
    return self.pool(y)


@forward
def accumulates(self, x):
    total = torch.zeros_like(x)
    for layer in (self.conv, self.second):
        total += self.relu(layer(x))
    return self.pool(total)


@forward
def accumulates_into_the_first(self, x):
    total = self.relu(self.conv(x))
    for _ in range(2):
        total.add_(self.relu(self.second(x)))
    return self.pool(total)


@forward
def fills_a_buffer(self, x):
    out = x.new_empty(x.shape[0], 8, 6, 6)
    out[:, :4] = self.pool(self.relu(self.conv(x)))
    out[:, 4:] = self.pool(self.relu(self.second(x)))
    return out


@forward
def returns_and_keeps(self, x):
    y = self.relu(self.conv(x))
    self.kept = y
    return self.pool(y)


@forward
def concatenates(self, x):
    y = self.act(self.conv(x))
    z = torch.cat([y, self.act(self.second(y))], 1)
    return self.pool(z.mul_(2))


@forward
def one_output_written_other_read(self, x):
    y = self.pool(self.relu(self.conv(x)))
    z = y.detach()
    z += 1
    return y * 2


@forward
def checkpointed(self, x):
    y = checkpoint(lambda t: self.pool(self.act(self.conv(t))), x, use_reentrant=False)
    return self.act(y)


@forward
def relu_of_the_input(self, x):
    y = self.act(x * 1)
    return self.pool(self.relu(self.conv(y))) + self.pool(y)


@forward
def relu_of_the_argument(self, x):
    """The caller's tensor is written."""
    y = F.relu(x, inplace=True)
    return self.pool(self.conv(y))


@forward
def pool_of_the_argument(self, x):
    return F.relu_(self.pool(x)) + self.pool(self.act(x))


@forward
def identity_then_in_place(self, x):
    y = self.relu(nn.Identity()(self.conv(x)))
    z = nn.Identity()(y)
    z.mul_(2)
    return self.pool(y)


@forward
def contiguous_then_in_place(self, x):
    y = self.relu(self.conv(x))
    z = y.contiguous()
    z.mul_(2)
    return self.pool(y)


@forward
def dropout_in_evaluation_then_in_place(self, x):
    y = self.conv(x)
    z = F.dropout(y, 0.5, False)
    self.act(z)
    return self.pool(y)


@forward
def flatten_then_in_place(self, x):
    y = self.pool(self.relu(self.conv(x)))
    z = torch.flatten(y, 1)
    z.sub_(0.5)
    F.relu_(z)
    return y + z.sum()


@forward
def to_the_same_dtype_then_in_place(self, x):
    y = self.relu(self.conv(x))
    z = y.float().to(y.device)
    z.add_(1)
    return self.pool(y)


@forward
def pool_of_one_then_in_place(self, x):
    y = self.relu(self.conv(x))
    z = F.max_pool2d(y, 1)
    z.add_(1)
    return self.pool(y) + self.pool(z)


@forward
def lrn_that_is_nothing_then_in_place(self, x):
    y = self.relu(self.conv(x))
    z = F.local_response_norm(y, 3, alpha=0.0, k=1.0)
    z.add_(1)
    return self.pool(y) + self.pool(z)
