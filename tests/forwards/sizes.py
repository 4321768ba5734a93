"""Numbers of the input's shape: asked for, computed with, decided by."""

import math
import operator

import numpy as np
import torch
from torch.nn import functional as F

from .base import forward


@forward
def iterates_over_a_batch(self, x):
    return torch.stack([self.pool(self.relu(self.conv(image[None]))) for image in x])


@forward
def unpacks_a_batch(self, x):
    a, b = x
    return self.pool(self.relu(self.conv(torch.stack([b, a]))))


@forward
def asks_the_shape(self, x):
    y = self.relu(self.conv(x))
    if x.shape[0] > 1:
        y = y * 2
    if x.size(-1) % 2:
        y = y[..., 1:]
    return self.pool(y)


@forward
def asks_the_size(self, x):
    y = self.relu(self.conv(x))
    if max(y.shape[2:]) > 9 and len(y) != 1 and y.numel() > 3:
        y = self.pool(y)
    return y


@forward
def loops_while_large(self, x):
    y = self.conv(x)
    while y.shape[-1] > 3:
        y = self.pool(self.relu(self.second(y)))
    return y


@forward
def loops_by_value(self, x):
    y = self.relu(self.conv(x))
    for _ in range(int(x.abs().mean().item() * 3) + 1):
        y = self.relu(self.second(y))
    return y


@forward
def pools_by_size(self, x):
    y = self.relu(self.conv(x))
    return F.avg_pool2d(y, y.size()[2:]).flatten(1)


@forward
def max_pools_by_size(self, x):
    y = self.relu(self.conv(x))
    return F.max_pool2d(y, kernel_size=y.size()[2:]).flatten(1)


@forward
def max_pools_by_one_size(self, x):
    y = self.relu(self.conv(x))
    return F.max_pool2d(y, y.shape[-1] // 2), F.max_pool2d(y, (y.shape[2], 2), stride=1)


@forward
def max_pools_by_a_float_of_size(self, x):
    y = self.relu(self.conv(x))
    return F.max_pool2d(y, int(y.shape[-1] / 2)), F.max_pool2d(y, math.ceil(y.shape[-1] / 3))


@forward
def pyramid(self, x):
    y = self.relu(self.conv(x))
    n, _, h, w = y.size()
    levels = []
    for i in (1, 2, 3):
        size = (math.ceil(h / i), math.ceil(w / i))
        levels.append(F.max_pool2d(y, size, size).view(n, -1))
    return torch.cat(levels, 1)


@forward
def reshapes(self, x):
    y = self.relu(self.conv(x))
    b, c, h, w = y.shape
    y = y.reshape(b, 2, c // 2, h, w).permute(0, 2, 1, 3, 4).reshape(b, c, h, w)
    return self.pool(y)


@forward
def views(self, x):
    y = self.block(x)
    return y.view(y.size(0), -1), y.view(-1, *y.shape[2:]), y.view(y.shape)


@forward
def zeros_of_the_shape(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y) + torch.zeros(self.pool(y).shape), torch.zeros(y.size()), y.new_zeros(y.shape[:2])


@forward
def ones_of_two_sizes(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y) * torch.ones(y.size(0), 1, 1, 1), torch.full((y.shape[1], 2), 3.0)


@forward
def zeros_of_a_value(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y), torch.zeros(int(y.abs().max()) + 1), torch.arange(int((y > 0).sum()) % 5)


@forward
def pads_by_size(self, x):
    h, w = x.shape[-2:]
    return self.pool(self.relu(self.conv(F.pad(x, (0, (4 - w % 4) % 4, 0, (5 - h % 5) % 5)))))


@forward
def interpolates_by_size(self, x):
    y = self.block(x)
    return F.interpolate(y, size=x.shape[2:], mode="bilinear"), F.interpolate(y, scale_factor=2)


@forward
def adaptive_pool_by_size(self, x):
    y = self.relu(self.conv(x))
    return F.adaptive_max_pool2d(y, (y.size(2) // 2, y.size(3) // 2)), F.adaptive_avg_pool2d(y, y.shape[2:])


@forward
def arranges_by_size(self, x):
    y = self.relu(self.conv(x))
    grid = torch.linspace(0, 1, y.shape[-1]) + torch.arange(y.shape[-2])[:, None]
    return self.pool(y * grid), y.shape[2] * y.stride(0), np.prod(y.shape)


@forward
def formats_the_shape(self, x):
    y = self.block(x)
    return y, f"{y.shape}", f"{y.shape[0]:d}", str(y.size(1)), repr(y.dtype), hash(y.shape)


@forward
def looks_up_by_size(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y * {10: 2.0, 12: 3.0}[y.shape[-1]]), [1, 2, 3][y.shape[0]], "abc"[x.size(0)]


@forward
def uses_operator_index(self, x):
    y = self.relu(self.conv(x))
    return (
        self.pool(y),
        operator.index(y.shape[1]),
        np.zeros(y.shape[0]),
        range(y.shape[0]),
        bytes(y.shape[0]),
    )


@forward
def unpacks_the_first(self, x):
    first, *rest = x
    return self.pool(self.relu(self.conv(torch.stack([first, *rest]))))


@forward
def enumerates_a_batch(self, x):
    y = self.relu(self.conv(x))
    return sum(i * image.mean() for i, image in enumerate(y)), [i for i, _ in zip(range(9), y, strict=False)]


@forward
def lists_a_batch(self, x):
    y = self.relu(self.conv(x))
    return torch.stack(list(y)), len(y), len(list(y)), torch.stack(y.unbind()), tuple(y)[1]


@forward
def ranges_over_a_batch(self, x):
    y = self.relu(self.conv(x))
    return [self.pool(y[i : i + 1]) for i in range(len(y))]


@forward
def asks_the_size_for_its_type(self, x):
    y = self.relu(self.conv(x))
    kinds = isinstance(y.shape, torch.Size), type(y.shape[0]) is int, isinstance(y.shape[0], int)
    return self.pool(y), kinds, isinstance(y.size(), tuple), isinstance(y.size(1), float)


@forward
def compares_shapes(self, x):
    y = self.relu(self.conv(x))
    if y.shape == (2, 6, 10, 10) and x.shape[2:] in {(12, 12), (9, 9)} and y.size() != x.size():
        return self.pool(y)
    return y


@forward
def takes_roots_of_sizes(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y) * math.sqrt(y.shape[1]) / y.shape[0] ** 0.5 * np.sqrt(y.shape[2]), math.log2(
        y.size(0)
    )


@forward
def rounds_sizes(self, x):
    y = self.relu(self.conv(x))
    size = (
        round(y.shape[2] * 0.3),
        int(y.shape[3] // 4),
        divmod(y.shape[2], 3)[0],
        abs(-y.shape[2]),
        -y.shape[1],
    )
    return F.max_pool2d(y, size[0], size[1]), size, min(y.shape), sum(y.shape[2:]), sorted(y.shape)


@forward
def makes_a_mask_by_size(self, x):
    y = self.relu(self.conv(x))
    mask = torch.ones(y.shape[2:]).triu()
    mask[0, y.shape[3] // 2 :] = 0
    return (
        self.pool(y * mask),
        torch.eye(y.shape[2]),
        y.new_full((y.shape[0],), 2.0),
        torch.empty(y.shape).shape,
    )


@forward
def as_a_number_of_elements(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y).sum() / y[0].numel(), y.nelement(), torch.numel(y), y.element_size(), y.nbytes
