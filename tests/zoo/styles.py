"""Ways to write a forward: functions, methods, lists, dicts, lambdas, names, orders of the stages."""

import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F

from .classics import AlexNet, ConvReLU


class Functional(nn.Module):
    """Modules for what has weights, functions nested for the rest."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 5)
        self.conv2 = nn.Conv2d(8, 12, 3)
        self.fc = nn.Linear(12 * 5 * 5, 10)

    def forward(self, x):
        x = F.max_pool2d(F.local_response_norm(F.relu(self.conv1(x)), size=5, alpha=1e-4, k=2.0), 3, 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 3, 2)
        return self.fc(x.flatten(1))


class Methods(nn.Module):
    """Tensor methods and torch's own functions."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.conv2 = nn.Conv2d(8, 12, 3)
        self.fc = nn.Linear(12 * 4 * 4, 10)

    def forward(self, x):
        x = torch.max_pool2d(self.conv1(x).relu_(), 2)
        x = torch.max_pool2d(self.conv2(x).relu(), 2, stride=2)
        return self.fc(x.view(x.size(0), -1)).log_softmax(dim=1)


class EveryReLU(nn.Module):
    """Eight ways to write it."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(8)])
        self.relu = nn.ReLU()

    def forward(self, x):
        conv1, conv2, conv3, conv4, conv5, conv6, conv7, conv8 = self.convs
        x = self.relu(conv1(x))
        x = F.relu(conv2(x))
        x = F.relu(conv3(x), True)
        x = F.relu(input=conv4(x), inplace=True)
        x = F.relu_(conv5(x))
        x = torch.relu(conv6(x))
        x = torch.relu_(conv7(x))
        x = conv8(x).relu()
        return x.mean((2, 3))


class SharedStages(nn.Module):
    """One ReLU, one LRN and one pooling, each used wherever it is needed."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.conv2 = nn.Conv2d(8, 12, 3)
        self.conv3 = nn.Conv2d(12, 12, 3, padding=1)
        self.conv4 = nn.Conv2d(12, 12, 3)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.LocalResponseNorm(5)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1 = nn.Linear(12 * 3 * 3, 16)
        self.fc2 = nn.Linear(16, 10)

    def forward(self, x):
        x = self.pool(self.norm(self.relu(self.conv1(x))))
        x = self.pool(self.norm(self.relu(self.conv2(x))))
        x = self.relu(self.conv3(x))
        x = self.pool(self.relu(self.conv4(x)))
        x = x.reshape(-1, 12 * 3 * 3)
        return self.fc2(self.relu(self.fc1(x)))


class Mnist(nn.Module):
    """PyTorch's first MNIST example: ReLU after pooling, and Dropout2d between convolution and pooling."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.conv2_drop = nn.Dropout2d()
        self.fc1 = nn.Linear(320, 50)
        self.fc2 = nn.Linear(50, 10)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2_drop(self.conv2(x)), 2))
        x = x.view(-1, 320)
        x = F.relu(self.fc1(x))
        x = F.dropout(x, training=self.training)
        x = self.fc2(x)
        return F.log_softmax(x, dim=1)


def pool_first_then_norm():
    """ReLU between pooling and LRN; then none."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.LocalResponseNorm(5),
        nn.Conv2d(8, 12, 5),
        nn.MaxPool2d(2),
        nn.LocalResponseNorm(5),
        nn.Flatten(),
        nn.Linear(12 * 4 * 4, 10),
    )


def relu_after_norm():
    """A ReLU after an LRN is no part of a chain, and one in place begins none."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.LocalResponseNorm(5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3),
        nn.MaxPool2d(2),
        nn.LocalResponseNorm(5),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(12 * 4 * 4, 10),
    )


class ModuleLists(nn.Module):
    """VGG as a ModuleList of ModuleLists, iterated in forward."""

    def __init__(self):
        super().__init__()
        widths = (3, 8, 12, 16)
        self.blocks = nn.ModuleList()
        for inputs, outputs in itertools.pairwise(widths):
            convs = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)]
            self.blocks.append(nn.ModuleList(convs))
        self.fc = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x):
        for convs in self.blocks:
            for conv in convs:
                x = F.relu(conv(x), inplace=True)
            x = F.max_pool2d(x, kernel_size=2, stride=2)
        return self.fc(torch.flatten(x, start_dim=1))


class ModuleDicts(nn.Module):
    """Layers in a ModuleDict, called by name, and all of another in its order."""

    def __init__(self):
        super().__init__()
        self.stem = nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3), "act": nn.ReLU(), "pool": nn.MaxPool2d(2)})
        self.body = nn.ModuleDict(
            {"conv": nn.Conv2d(8, 8, 3), "act": nn.ReLU(), "norm": nn.LocalResponseNorm(5)}
        )
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem["conv"](x)
        x = self.stem["act"](x)
        x = self.stem["pool"](x)
        for layer in self.body.values():
            x = layer(x)
        return self.fc(x.mean(dim=(-2, -1)))


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def preprocess(x):
    return x.view(-1, 1, 28, 28)


def lambdas():
    """PyTorch's "What is torch.nn really?": modules made of functions."""
    return nn.Sequential(
        Lambda(preprocess),
        nn.Conv2d(1, 16, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 10, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(4),
        Lambda(lambda x: x.view(x.size(0), -1)),
    )


class LayerByLayer(nn.Module):
    """A layer is a Sequential of convolution, batch norm, ReLU and pooling."""

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(
            nn.Conv2d(1, 8, kernel_size=5, stride=1, padding=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=2, stride=2),
        )
        self.layer2 = nn.Sequential(
            nn.Conv2d(8, 12, kernel_size=5, stride=1, padding=2),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=2, stride=2),
        )
        self.fc = nn.Linear(7 * 7 * 12, 10)

    def forward(self, x):
        out = self.layer1(x)
        out = self.layer2(out)
        out = out.reshape(out.size(0), -1)
        return self.fc(out)


class Normalize(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(ConvReLU(8, 12, 3), nn.Dropout2d(0.1), nn.MaxPool2d(2))
        self.last = ConvReLU(12, 12, 3)

    def forward(self, x):
        return self.last(self.stages(x))


def nested():
    """A model in a model in a Sequential; a chain that begins three modules below where it ends."""
    return nn.Sequential(
        Normalize(),
        nn.Sequential(nn.Sequential(ConvReLU(3, 8, 3), ConvReLU(8, 8, 3)), nn.MaxPool2d(2)),
        nn.LocalResponseNorm(5),
        nn.Sequential(Body(), nn.AdaptiveAvgPool2d(2)),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


class Inherited(AlexNet):
    """A model's subclass, whose forward calls super's."""

    def forward(self, x):
        return F.log_softmax(super().forward(x / 255), dim=1)


class ViewBySize(nn.Module):
    """Sizes that are read from the pooled tensor."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.pool(self.relu(self.conv(x)))
        batch, channels, height, width = x.shape
        x = x.view(batch, channels, height * width) / math.sqrt(channels)
        return x.view(x.size(0), -1)


def two_norms():
    """Two LRNs in a row: a chain holds one, the next begins with the other."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.LocalResponseNorm(5),
        nn.LocalResponseNorm(3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 9 * 9, 10),
    )


def even_norm():
    """An LRN over an even number of channels."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.LocalResponseNorm(4, alpha=1e-2), nn.MaxPool2d(3, 2)
    )


def pool_then_conv():
    """A pooling before the first convolution."""
    return nn.Sequential(
        nn.MaxPool2d(2), nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 10 * 10, 10)
    )


class NormAndPool(nn.Module):
    """No convolution, and no weights."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LocalResponseNorm(5, k=2.0)
        self.pool = nn.MaxPool2d(3, stride=2)

    def forward(self, x):
        return self.pool(self.norm(x))


def norm_after_relu():
    """Batch norm after ReLU is never folded."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


class FunctionalBN(nn.Module):
    """ReLU before and after pooling, as functions, after batch norm."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3)
        self.bn2 = nn.BatchNorm2d(12)
        self.fc = nn.Linear(12 * 5 * 5, 10)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.bn1(self.conv1(x)), 2))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc(x.flatten(1))


def conv_block(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs, momentum=1.0, track_running_stats=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


class FewShot(nn.Module):
    """MAML's four blocks, less one: batch norms without running statistics, which nothing can fold."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(conv_block(1, 8), conv_block(8, 8), conv_block(8, 8))
        self.classifier = nn.Linear(8 * 3 * 3, 5)

    def forward(self, x):
        x = self.features(x)
        x = x.view((x.size(0), -1))
        return self.classifier(x)
