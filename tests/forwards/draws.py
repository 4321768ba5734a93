"""Random numbers, torch's, NumPy's and Python's."""

import random

import numpy as np
import torch
from torch.nn import functional as F

from .base import forward


@forward
def draws_torch_random(self, x):
    x = x + torch.randn(x.shape) * 0.1
    return self.block(x)


@forward
def draws_rand_like(self, x):
    return self.block(x * torch.rand_like(x)) + torch.rand(())


@forward
def draws_bernoulli(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y * torch.bernoulli(torch.full_like(y, 0.5)))


@forward
def draws_a_permutation(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y[:, torch.randperm(y.shape[1])])


@forward
def draws_numpy(self, x):
    return self.block(x) * float(np.random.rand())


@forward
def draws_python(self, x):
    return self.block(x) * random.random()


@forward
def drops_layers_at_random(self, x):
    y = self.relu(self.conv(x))
    if torch.rand(1).item() > 0.5:
        y = self.relu(self.second(y))
    return self.pool(y)


@forward
def drops(self, x):
    return self.pool(self.relu(self.drop(self.conv(x))))


@forward
def drops_always(self, x):
    return F.dropout(self.block(x), 0.5)


@forward
def drops_by_flag(self, x):
    return F.dropout2d(self.relu(self.conv(x)), 0.5, training=self.training)


@forward
def draws_a_gumbel(self, x):
    return F.gumbel_softmax(self.block(x), dim=1), torch.randint(3, (2,)), torch.normal(0.0, 1.0, (2,))


@forward
def draws_in_a_list(self, x):
    shift = [random.random() for _ in range(2)] + [np.random.randint(3)]
    return self.block(x) + sum(shift)


@forward
def draws_a_gaussian(self, x):
    y = self.relu(self.conv(x))
    if self.training:
        y = y + torch.empty_like(y).normal_() * 0.1
    return self.pool(y)
