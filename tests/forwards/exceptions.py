"""Forwards that raise, catch and warn."""

import math
import warnings

import torch
from torch.nn import functional as F

from .base import forward


@forward
def catches(self, x):
    try:
        y = self.relu(self.conv(x))
        y = y.view(3, 5, 7)
    except RuntimeError:
        y = self.pool(self.relu(self.conv(x)))
    return y


@forward
def catches_all(self, x):
    try:
        if x.mean() > 100:
            raise ValueError
        y = self.block(x)
    except Exception:
        y = x
    return y


@forward
def catches_what_is_bare(self, x):
    try:
        value = x.sum().item()
    except:  # noqa: E722
        value = 7.0
    finally:
        y = self.block(x)
    return y * math.tanh(value)


@forward
def asserts(self, x):
    assert x.dim() == 4 and x.shape[1] == 3, f"got {x.shape}"
    torch._assert(x.ndim == 4, "four")
    y = self.block(x)
    assert y.shape[1] == 6
    return y


@forward
def warns(self, x):
    warnings.warn("a warning", UserWarning, stacklevel=1)
    return self.block(x)


@forward
def raises_by_value(self, x):
    y = self.block(x)
    if torch.isnan(y).any():
        raise ValueError("not a number")
    return y


@forward
def catches_a_pool_too_large(self, x):
    y = self.relu(self.conv(x))
    try:
        y = F.max_pool2d(y, 50)
    except RuntimeError:
        y = self.pool(y)
    return y


@forward
def catches_and_says(self, x):
    try:
        return self.relu(self.conv(x[:, :2]))
    except RuntimeError as error:
        return self.pool(self.relu(self.conv(x))), type(error).__name__


@forward
def catches_an_attribute(self, x):
    try:
        x = x.tensors
    except AttributeError:
        x = x * 2
    return self.block(x)


@forward
def catches_a_type(self, x):
    y = self.relu(self.conv(x))
    try:
        y = y + "1"
    except TypeError:
        y = self.pool(y)
    return y


@forward
def catches_an_index(self, x):
    y = self.relu(self.conv(x))
    try:
        y = y[7]
    except IndexError:
        y = self.pool(y)
    return y


@forward
def catches_a_key(self, x):
    try:
        factor = {1: 2.0}[x.shape[0]]
    except KeyError:
        factor = 3.0
    return self.block(x) * factor


@forward
def cleans_up(self, x):
    try:
        return self.block(x)
    finally:
        self.last = x.detach() * 2
