"""The formula with gradients cut, values clamped or rounded, tensors written or read elsewhere."""

import torch
from torch.nn import functional as F

from .base import form


@form
def read_again(self, x):
    """The divisor is read once more."""
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1).mul(self.alpha).add(self.k).pow(self.beta)
    return x / div + div.mean()


@form
def detached(self, x):
    """The divisor is taken as a constant in the gradient."""
    div = self.average(x.detach().pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def detached_divisor(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta).detach()


@form
def without_gradients(self, x):
    with torch.no_grad():
        div = self.average(x.pow(2).unsqueeze(1)).squeeze(1).mul(self.alpha).add(self.k).pow(self.beta)
    return x / div


@form
def in_doubles(self, x):
    div = self.average(x.double().pow(2).unsqueeze(1)).squeeze(1)
    return (x / div.mul(self.alpha).add(self.k).pow(self.beta)).float()


@form
def clamped(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).clamp(max=1.2).pow(self.beta)


@form
def data(self, x):
    div = self.average(x.data.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def half_detached(self, x):
    """The gradient of x · x.detach() is half of the square's."""
    div = self.average((x * x.detach()).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def numerator_detached(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x.detach() / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def average_detached(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).detach().squeeze(1)
    return x.div(div.mul(self.alpha).add(self.k).pow(self.beta))


@form
def cloned(self, x):
    div = self.average(x.clone().pow(2).contiguous().unsqueeze(1)).squeeze(1).clone()
    return x.contiguous() / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def through_a_dropout(self, x):
    div = self.average(F.dropout(x.pow(2), 0.3, False).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def of_another_tensor(self, x):
    y = x.flip(1)
    div = self.average(y.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def written_between(self, x):
    x = x * 1
    div = self.average(x.detach().clone().pow(2).unsqueeze(1)).squeeze(1)
    x = x.mul_(2)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def numerator_written_between(self, x):
    with torch.no_grad():
        y = x * 1
        div = self.average(y.pow(2).unsqueeze(1)).squeeze(1)
        y.mul_(2)
        return y / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def numerator_written_in_place(self, x):
    """The divisor is of what x was before it was written."""
    y = x * 1
    z = y * 2
    div = self.average(z.pow(2).unsqueeze(1)).squeeze(1)
    y.add_(1)
    return z / div.mul(self.alpha).add(self.k).pow(self.beta) + y


@form
def divided_in_place(self, x):
    y = x * 1
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    y.div_(div.mul(self.alpha).add(self.k).pow(self.beta))
    return y


@form
def clamped_high(self, x):
    """Differs from LRN for large inputs only."""
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).clamp(max=1e4).pow(self.beta)


@form
def input_clamped(self, x):
    div = self.average(x.clamp(-50, 50).pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def divisor_at_least(self, x):
    """Differs for small inputs only."""
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).clamp(min=1.001).pow(self.beta)


@form
def alpha_by_training(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha if self.training else 2.0).add(self.k).pow(self.beta)


@form
def alpha_by_gradients(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha if x.requires_grad else 2.0).add(self.k).pow(self.beta)


@form
def without_nan(self, x):
    div = self.average(torch.nan_to_num(x).pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def square_clamped(self, x):
    div = self.average(x.pow(2).clamp(max=1e3).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def hardtanh(self, x):
    y = F.hardtanh(x, -100.0, 100.0)
    return x / self.average((y * x).unsqueeze(1)).squeeze(1).mul(self.alpha).add(self.k).pow(self.beta)


@form
def numerator_clamped(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x.clamp(-80, 80) / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def quotient_clamped(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return (x / div.mul(self.alpha).add(self.k).pow(self.beta)).clamp(-9, 9)


@form
def input_in_half(self, x):
    div = self.average(x.half().to(x.dtype).pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def input_reversed_gradient(self, x):
    y = x.clone()
    if y.requires_grad:
        y.register_hook(lambda grad: -grad)
    div = self.average(y.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)
