"""Models whose forward returns several values, overwrites one, reads one again or decides by one."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class FunctionalDropout(nn.Module):
    """Dropout as a function of self.training, within what would be a chain and after one."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.fc = nn.Linear(12 * 6 * 6, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.dropout2d(x, 0.2, training=self.training)
        x = F.relu(F.max_pool2d(x, 2))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.dropout(x, training=self.training)
        return self.fc(x.view(x.size()[0], -1))


class Fork(nn.Module):
    """A residual block that adds the convolution's own output, before its ReLU."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.conv1(x)
        z = F.max_pool2d(F.relu(y), 3, stride=1, padding=1)
        z = self.conv2(z)
        return F.relu(x + y + z)


class VggOutputs(NamedTuple):
    relu1: torch.Tensor
    relu2: torch.Tensor
    relu3: torch.Tensor


class FeatureTuple(nn.Module):
    """Fast neural style's VGG: intermediate features in a named tuple."""

    def __init__(self):
        super().__init__()
        self.conv1_1 = nn.Conv2d(3, 8, kernel_size=3, stride=1, padding=1)
        self.conv1_2 = nn.Conv2d(8, 8, kernel_size=3, stride=1, padding=1)
        self.conv2_1 = nn.Conv2d(8, 12, kernel_size=3, stride=1, padding=1)
        self.conv2_2 = nn.Conv2d(12, 12, kernel_size=3, stride=1, padding=1)
        self.conv3_1 = nn.Conv2d(12, 16, kernel_size=3, stride=1, padding=1)

    def forward(self, x):
        h = F.relu(self.conv1_1(x))
        h = F.relu(self.conv1_2(h))
        relu1_2 = h
        h = F.max_pool2d(h, kernel_size=2, stride=2)
        h = F.relu(self.conv2_1(h))
        h = F.relu(self.conv2_2(h))
        relu2_2 = h
        h = F.max_pool2d(h, kernel_size=2, stride=2)
        h = F.relu(self.conv3_1(h))
        return VggOutputs(relu1_2, relu2_2, h)


class FeatureDict(nn.Module):
    """A dict of what each slice gives; a slice begins with the pooling of the one before."""

    def __init__(self):
        super().__init__()
        self.slice1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.slice2 = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.LocalResponseNorm(5)
        )
        self.slice3 = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, x):
        features = {}
        for name in ("slice1", "slice2", "slice3"):
            x = getattr(self, name)(x)
            features[name] = x
        return features


class Perceptual(nn.Module):
    """A Sequential run layer by layer for what some of its layers give, one of them before its ReLU."""

    def __init__(self):
        super().__init__()
        self.select = ["0", "3"]
        self.vgg = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        features = []
        for name, layer in self.vgg.named_children():
            x = layer(x)
            if name in self.select:
                features.append(x)
        return [*features, x]


class InplaceReadAgain(nn.Module):
    """An in-place ReLU on a tensor that is read again, and then is rectified too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        y = self.conv(x)
        z = F.relu(y, inplace=True)
        z = F.max_pool2d(z, 2) - F.avg_pool2d(y, 2)
        return self.fc(z.mean((2, 3)))


class InplaceStatement(nn.Module):
    """An in-place ReLU whose result nobody takes."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.conv1(x)
        self.relu(x)
        x = self.pool(x)
        x = self.conv2(x)
        F.relu_(x)
        x = self.pool(x)
        return x.flatten(1)


def two_blocks():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.LocalResponseNorm(5),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )


class ControlFlow(nn.Module):
    """An ``if`` that depends on values: only what the parts do by themselves can be known."""

    def __init__(self):
        super().__init__()
        self.features = two_blocks()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.refine = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.features(x)
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        if x.mean() < 1e3:
            x = x + self.refine(x)
        return self.fc(x.mean((2, 3)))


class FrozenTrunk(nn.Module):
    """Part of forward without gradients."""

    def __init__(self):
        super().__init__()
        self.features = two_blocks()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        with torch.no_grad():
            x = self.features(x)
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.fc(x.mean((2, 3)))


class GradCAM(nn.Module):
    """Forward keeps its feature map, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.features = two_blocks()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)
        self.feature_map = None
        self.calls = 0

    def forward(self, x):
        x = F.relu(self.conv(self.features(x)))
        self.feature_map = x.detach()
        self.calls += 1
        return self.fc(x.mean((2, 3)))


class DropBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        if self.training and torch.rand(()) < 0.5:
            return x
        return x + self.conv2(F.relu(self.conv1(x)))


def stochastic_depth():
    """Blocks that chance skips in training."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        DropBlock(8),
        DropBlock(8),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 6 * 6, 10),
    )


class AuxiliaryHead(nn.Module):
    """Two outputs in training, one in evaluation."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.aux_conv = nn.Conv2d(8, 4, 1)
        self.aux_fc = nn.Linear(4, 10)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.block(x)
        if self.training:
            aux = self.aux_fc(F.adaptive_avg_pool2d(F.relu(self.aux_conv(x)), 1).flatten(1))
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = self.fc(x.mean((2, 3)))
        if self.training:
            return x, aux
        return x


class OptionalMask(nn.Module):
    """An argument that is mostly left out."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x, mask=None):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        if mask is not None:
            x = x * mask
        x = F.local_response_norm(F.relu(self.conv2(x)), 5)
        return self.fc(x.mean((2, 3)))
