"""The formula in other operations, with other numbers, over other axes."""

import torch
from torch.nn import functional as F

from .base import form


@form
def operators(self, x):
    div = self.average((x * x).unsqueeze(1)).squeeze(1)
    return x / (self.k + self.alpha * div) ** self.beta


@form
def operators_turned(self, x):
    div = self.average((x**2).unsqueeze(1)).squeeze(1)
    return x / (div * self.alpha + self.k) ** self.beta


@form
def functions(self, x):
    div = torch.pow(x, 2).unsqueeze(1)
    div = F.avg_pool3d(div, (self.size, 1, 1), stride=1, padding=((self.size - 1) // 2, 0, 0)).squeeze(1)
    div = torch.pow(torch.add(torch.mul(div, self.alpha), self.k), self.beta)
    return torch.div(x, div)


@form
def squares(self, x):
    div = self.average(torch.square(x).unsqueeze(dim=1)).squeeze(dim=1)
    return torch.true_divide(x, (self.k + div * self.alpha).pow(self.beta))


@form
def method_square(self, x):
    return x.true_divide((self.k + self.average(x.square()[:, None])[:, 0] * self.alpha).pow(self.beta))


@form
def multiplies(self, x):
    div = self.average(torch.mul(x, x).unsqueeze(1)).squeeze(1)
    return x * (self.k + self.alpha * div) ** -self.beta


@form
def multiplies_by_a_power(self, x):
    div = self.average(x.mul(x).unsqueeze(1)).squeeze(1)
    return x.mul(torch.pow(self.alpha * div + self.k, -self.beta))


@form
def in_place(self, x):
    div = x.pow(2).unsqueeze(1)
    div = self.average(div).squeeze(1)
    div = div.mul_(self.alpha).add_(self.k).pow_(self.beta)
    return x.div(div)


@form
def augmented(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    div *= self.alpha
    div += self.k
    div **= self.beta
    return x / div


@form
def in_place_at_the_end(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1).mul(self.alpha).add(self.k).pow(self.beta)
    y = x.clone()
    y /= div
    return y


@form
def literals(self, x):
    div = F.avg_pool3d(x.pow(2).unsqueeze(1), (5, 1, 1), 1, (2, 0, 0)).squeeze(1)
    return x / (div * 0.5 + 1.0).pow(0.75)


@form
def lists(self, x):
    div = F.avg_pool3d(x.pow(2).unsqueeze(1), [5, 1, 1], [1, 1, 1], [2, 0, 0]).squeeze(1)
    return x / (div * 0.5 + 1.0).pow(0.75)


@form
def by_name(self, x):
    div = torch.unsqueeze(input=torch.pow(input=x, exponent=2), dim=1)
    div = F.avg_pool3d(input=div, kernel_size=(5, 1, 1), padding=(2, 0, 0), stride=1)
    div = torch.squeeze(input=div, dim=1)
    return torch.div(
        input=x, other=torch.pow(div.mul(other=self.alpha).add(other=self.k), exponent=self.beta)
    )


@form
def alpha_by_add(self, x):
    """torch.add's own alpha multiplies its second argument."""
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / torch.add(torch.ones_like(div), div, alpha=self.alpha).pow(self.beta)


@form
def k_with_an_alpha(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k, alpha=2).pow(self.beta)


@form
def rounded_division(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return torch.div(x, div.mul(self.alpha).add(self.k).pow(self.beta), rounding_mode="floor")


@form
def k_first(self, x):
    """The factor multiplies k, too."""
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.add(self.k).mul(self.alpha + 1).pow(self.beta)


@form
def power_first(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).pow(self.beta).add(self.k)


@form
def cubes(self, x):
    div = self.average(x.pow(3).abs().unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def another_numerator(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return (x + 1) / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def two_inputs(self, x):
    div = self.average((x * (x + 0.1)).abs().unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def upside_down(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return div.mul(self.alpha).add(self.k).pow(self.beta) / (x.abs() + 1)


@form
def square_root(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / torch.sqrt(div.mul(self.alpha).add(self.k))


@form
def max_pooling(self, x):
    div = F.max_pool3d(x.pow(2).unsqueeze(1), (5, 1, 1), 1, (2, 0, 0)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def all_axes(self, x):
    """squeeze() without an axis takes every axis of size 1."""
    div = self.average(x.pow(2).unsqueeze(1)).squeeze()
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def another_axis(self, x):
    """The new axis is the second of the image's: what is averaged over are rows."""
    div = F.avg_pool3d(x.pow(2).unsqueeze(2), (1, 5, 1), 1, (0, 2, 0)).squeeze(2)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def last_axis(self, x):
    div = F.avg_pool3d(x.pow(2).unsqueeze(-1), (1, 5, 1), 1, (0, 2, 0)).squeeze(-1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def axis_from_the_end(self, x):
    div = self.average(x.pow(2).unsqueeze(-4)).squeeze(-4)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def within_channels(self, x):
    div = F.avg_pool2d(x.pow(2), self.size, stride=1, padding=(self.size - 1) // 2)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def both(self, x):
    """The LRN of AlexNet ports: one form or the other by an attribute."""
    if self.size % 2:  # noqa: SIM108
        div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    else:
        div = F.avg_pool2d(x.pow(2), 3, 1, 1)
    return x.div(div.mul(self.alpha).add(1.0).pow(self.beta))


@form
def padded_by_hand(self, x):
    half = self.size // 2
    div = F.pad(x.pow(2).unsqueeze(1), (0, 0, 0, 0, half, (self.size - 1) // 2))
    div = F.avg_pool3d(div, (self.size, 1, 1), stride=1).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def views(self, x):
    """torch's own spelling for images, by views."""
    n, c, h, w = x.shape
    div = F.pad(x.pow(2).view(n, 1, c, h, w), (0, 0, 0, 0, self.size // 2, (self.size - 1) // 2))
    div = F.avg_pool3d(div, (self.size, 1, 1), stride=1).view(n, c, h, w)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def torchs(self, x):
    return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k)


@form
def summed(self, x):
    """Caffe's and the paper's sum, as a convolution or a product with the size."""
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1) * self.size
    return x / (self.k + self.alpha / self.size * div).pow(self.beta)


@form
def tensor_exponent(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(torch.tensor(self.beta))


@form
def a_method(self, x):
    def divisor(y):
        return self.average(y.pow(2).unsqueeze(1)).squeeze(1)

    return x.div(divisor(x).mul(self.alpha).add(self.k).pow(self.beta))


@form
def absolute(self, x):
    div = self.average(x.abs().pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def reciprocal(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x * div.mul(self.alpha).add(self.k).pow(self.beta).reciprocal()


@form
def root(self, x):
    return x * torch.rsqrt(self.average(x.pow(2).unsqueeze(1)).squeeze(1).mul(self.alpha).add(self.k))


@form
def float_exponent(self, x):
    div = self.average((x**2.0).unsqueeze(1)).squeeze(1)
    return torch.divide(x, div.multiply(self.alpha).add(self.k) ** self.beta)


@form
def with_an_epsilon(self, x):
    div = self.average(x.pow(2).add(1e-3).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def size_by_channels(self, x):
    n = min(5, x.shape[-3]) | 1
    div = F.avg_pool3d(x.pow(2).unsqueeze(-4), (n, 1, 1), 1, (n // 2, 0, 0)).squeeze(-4)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def size_by_rows(self, x):
    n = 3 if x.shape[-1] > 8 else 5
    div = F.avg_pool3d(x.pow(2).unsqueeze(-4), (n, 1, 1), 1, (n // 2, 0, 0)).squeeze(-4)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def alpha_by_batch(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha * x.shape[0]).add(self.k).pow(self.beta)
