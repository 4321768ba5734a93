"""Tensors' values, dtypes, layouts and parts."""

import torch
from torch.nn import functional as F

from .base import forward


@forward
def to_a_dtype(self, x):
    return self.pool(self.relu(self.conv(x.double().float().to(self.conv.weight.dtype).to(x.device))))


@forward
def to_channels_last(self, x):
    return self.pool(self.relu(self.conv(x.contiguous(memory_format=torch.channels_last)).contiguous()))


@forward
def asks_layout(self, x):
    y = self.block(x)
    return y, y.is_contiguous(), y.dtype, y.device, y.stride(), y.requires_grad, y.is_leaf, y.ndim


@forward
def to_numpy(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y), torch.from_numpy(y.detach().numpy().copy()).max()


@forward
def masks(self, x):
    y = self.relu(self.conv(x))
    return self.pool(torch.where(y > 0.3, y, torch.zeros_like(y))), y[y > 0.5].sum(), y.nonzero().shape[1]


@forward
def indexes(self, x):
    y = self.conv(x)
    return self.pool(F.relu(y[:, 1:5])), F.relu(y)[0], F.relu(y)[..., ::2, None]


@forward
def chunks(self, x):
    a, b = self.conv(x).chunk(2, dim=1)
    return self.pool(self.relu(a)) * self.pool(self.relu(b))


@forward
def weight_is_standardised(self, x):
    w = self.conv.weight
    w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
    return self.pool(self.relu(F.conv2d(x, w, self.conv.bias)))


@forward
def compares_tensors(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y), bool((y >= 0).all()), torch.equal(y, y.clone()), torch.allclose(y, y + 1)


@forward
def a_bool_of_a_tensor(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y) if y.sum() > 0 else y


@forward
def a_number_of_a_tensor(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y) / float(y.detach().abs().max()), y.mean().item(), y.tolist()[0][0][0][0]


@forward
def pools_with_indices(self, x):
    y, indices = F.max_pool2d(self.relu(self.conv(x)), 2, return_indices=True)
    return F.max_unpool2d(y, indices, 2)


@forward
def einsum(self, x):
    y = self.relu(self.conv(x))
    return self.pool(torch.einsum("nchw,cd->ndhw", y, torch.eye(y.shape[1]))), y @ y.mT


@forward
def sums_a_regularisation(self, x):
    return self.block(x), sum((p**2).sum() for p in self.parameters())


@forward
def asks_the_device(self, x):
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not x.is_cuda:
        return self.block(x)
    return x


@forward
def compares_objects(self, x):
    y = self.relu(self.conv(x))
    z = y
    return self.pool(y), y is z, y is x, id(y) == id(z), x is None, y in [z] if y is z else False


@forward
def reads_numbers_of_parameters(self, x):
    y = self.relu(self.conv(x) * self.conv.weight.abs().max().item())
    return self.pool(y * float(self.bn.running_var[0])), self.conv.weight.sum().item()


@forward
def sorts(self, x):
    y = self.pool(self.relu(self.conv(x)))
    return y.sort(-1).values, y.topk(2).indices, y.max(1).values, y.max(), torch.max(y, dim=1)[1], y.argmax()
