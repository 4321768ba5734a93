"""Unusual layers and weights: homemade, raw, shared, standardised, normalised."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


class OldLRN(nn.Module):
    def __init__(self, local_size=5, alpha=1e-4, beta=0.75):
        super().__init__()
        padding = ((local_size - 1) // 2, 0, 0)
        self.average = nn.AvgPool3d(kernel_size=(local_size, 1, 1), stride=1, padding=padding)
        self.alpha = alpha
        self.beta = beta

    def forward(self, x):
        div = x.pow(2).unsqueeze(1)
        div = self.average(div).squeeze(1)
        div = div.mul(self.alpha).add(1.0).pow(self.beta)
        return x.div(div)


def homemade_norm():
    """LRN from before torch had one."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 11, stride=4), nn.ReLU(inplace=True), OldLRN(), nn.MaxPool2d(3, 2), nn.Flatten()
    )


class RawParameters(nn.Module):
    """Weights as Parameters, with a bias and without, and F.conv2d."""

    def __init__(self):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.1)
        self.b1 = nn.Parameter(torch.zeros(8))
        self.w2 = nn.Parameter(torch.randn(8, 4, 3, 3) * 0.1)
        self.b2 = nn.Parameter(torch.zeros(8))
        self.w3 = nn.Parameter(torch.randn(6, 8, 1, 1) * 0.1)

    def forward(self, x):
        x = F.max_pool2d(F.relu(F.conv2d(x, self.w1, self.b1, stride=1, padding=1)), 2)
        x = F.relu(F.conv2d(x, self.w2, bias=self.b2, padding="same", groups=2))
        x = F.local_response_norm(F.conv2d(x, self.w3), 3)
        return x.mean((2, 3))


class Trident(nn.Module):
    """One weight, three dilations."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8, 3, 3, 3))
        self.bias = nn.Parameter(torch.zeros(8))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x):
        return sum(
            F.relu(F.conv2d(x, self.weight, self.bias, padding=d, dilation=d)).mean((2, 3)) for d in (1, 2, 3)
        )


class SharedConv(nn.Module):
    """One convolution, called three times: twice it begins a chain."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return torch.sigmoid(self.conv(x))


class Recurrent(nn.Module):
    """CORnet's: one convolution, with a batch norm of its own for each time it is called."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        for t in range(2):
            setattr(self, f"norm_{t}", nn.BatchNorm2d(8))
            nn.init.uniform_(getattr(self, f"norm_{t}").weight, 0.5, 2)

    def forward(self, x):
        for t in range(2):
            x = self.conv(x)
            x = getattr(self, f"norm_{t}")(x)
            x = F.relu(x)
        return F.max_pool2d(x, 2)


class Siamese(nn.Module):
    """One trunk, called twice: its chains are where they are, once each."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * 4 * 4, 16),
        )
        self.out = nn.Linear(16, 1)

    def forward(self, x):
        return self.out(torch.abs(self.trunk(x) - self.trunk(x.flip(3))))


def reflect():
    """A convolution that doesn't pad with zeros."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
    )


class StdConv2d(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        v, m = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, unbiased=False)
        w = (w - m) / torch.sqrt(v + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class WeightStandardised(nn.Module):
    """BiT's: a subclass of Conv2d with a forward of its own."""

    def __init__(self):
        super().__init__()
        self.conv1 = StdConv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return F.relu(self.conv2(x))


def weight_normalised():
    """A parametrization makes the convolution's class a subclass."""
    return nn.Sequential(
        weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 9 * 9, 10)
    )
