"""Convolutional networks as people write them, and the chains that `fastcnn.fuse` is to find in each."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

Chains = list[tuple[str, ...]]


@dataclass(frozen=True)
class Entry:
    """A network, and the chains that run in it, in order, of the kinds conv, bn, relu, lrn and pool.

    A chain is listed once for each place in a forward, however often that forward runs.

    Args:
        build: gives the network anew.
        size: of an input.
        chains: in evaluation, batch norms left as they are.
        chains_folded: in evaluation with batch norms folded, where that differs.
        training_chains: in training, batch norms to be folded or not, where that differs from ``chains``.
    """

    name: str
    build: Callable[[], nn.Module]
    size: tuple[int, ...]
    chains: Chains
    chains_folded: Chains | None = None
    training_chains: Chains | None = None


_entries: list[Entry] = []


def expect(*chains, size, folded=None, training=None):
    """Puts what it decorates into the zoo; a chain is written as a string, "conv relu pool"."""

    def split(chains):
        return None if chains is None else [tuple(chain.split()) for chain in chains]

    def register(build):
        _entries.append(Entry(build.__name__, build, size, split(chains), split(folded), split(training)))
        return build

    return register


@expect(*2 * ["conv relu lrn pool"], *2 * ["conv relu"], "conv relu pool", size=(2, 3, 67, 67))
class AlexNet(nn.Module):
    """torchvision's style, with the paper's LRN."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(8, 16, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(16, 24, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(24, 16, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(16 * 2 * 2, 32),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(32, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        x = self.classifier(x)
        return x


@expect(*4 * ["conv relu lrn pool"], "conv relu", size=(2, 3, 47, 47))
class TwoTowers(nn.Module):
    """AlexNet's two GPUs as two of everything; a layer of both reads their concatenation."""

    def __init__(self):
        super().__init__()
        self.conv1_top = nn.Conv2d(3, 6, 11, 4)
        self.conv1_bottom = nn.Conv2d(3, 6, 11, 4)
        self.conv2_top = nn.Conv2d(6, 8, 5, padding=2)
        self.conv2_bottom = nn.Conv2d(6, 8, 5, padding=2)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.LocalResponseNorm(5, k=2)
        self.pool = nn.MaxPool2d(3, 2)
        self.fc_top = nn.Linear(8, 10)
        self.fc_bottom = nn.Linear(8, 10)

    def forward(self, x):
        top = self.pool(self.norm(F.relu(self.conv1_top(x))))
        bottom = self.pool(self.norm(F.relu(self.conv1_bottom(x))))
        top = self.pool(self.norm(F.relu(self.conv2_top(top))))
        bottom = self.pool(self.norm(F.relu(self.conv2_bottom(bottom))))
        x = F.relu(self.conv3(torch.cat([top, bottom], dim=1)))
        top, bottom = x[:, :8], x[:, 8:]
        return self.fc_top(top.mean((2, 3))) + self.fc_bottom(bottom.mean((2, 3)))


@expect(*2 * ["conv relu pool lrn"], *2 * ["conv relu"], "conv relu pool", size=(2, 3, 67, 67))
class CaffeNet(nn.Module):
    """Caffe's layers by their names: pooling before LRN, ceil_mode, groups."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 11, stride=4)
        self.relu1 = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm1 = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.conv2 = nn.Conv2d(8, 16, 5, padding=2, groups=2)
        self.relu2 = nn.ReLU(inplace=True)
        self.pool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm2 = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.conv3 = nn.Conv2d(16, 24, 3, padding=1)
        self.relu3 = nn.ReLU(inplace=True)
        self.conv4 = nn.Conv2d(24, 24, 3, padding=1, groups=2)
        self.relu4 = nn.ReLU(inplace=True)
        self.conv5 = nn.Conv2d(24, 16, 3, padding=1, groups=2)
        self.relu5 = nn.ReLU(inplace=True)
        self.pool5 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.fc6 = nn.Linear(16, 32)
        self.relu6 = nn.ReLU(inplace=True)
        self.drop6 = nn.Dropout(0.5)
        self.fc8 = nn.Linear(32, 10)

    def forward(self, x):
        x = self.norm1(self.pool1(self.relu1(self.conv1(x))))
        x = self.norm2(self.pool2(self.relu2(self.conv2(x))))
        x = self.relu3(self.conv3(x))
        x = self.relu4(self.conv4(x))
        x = self.pool5(self.relu5(self.conv5(x)))
        x = x.reshape(x.shape[0], -1)
        x = self.drop6(self.relu6(self.fc6(x)))
        return self.fc8(x)


@expect(*2 * ["conv relu pool lrn"], *2 * ["conv relu"], "conv relu pool", size=(2, 3, 64, 64))
def zfnet():
    """A Sequential with names, from an OrderedDict."""
    layers = [
        ("conv1", nn.Conv2d(3, 8, 7, stride=2, padding=1)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(3, stride=2, padding=1)),
        ("norm1", nn.LocalResponseNorm(5)),
        ("conv2", nn.Conv2d(8, 16, 5, stride=2)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(3, stride=2, padding=1)),
        ("norm2", nn.LocalResponseNorm(5)),
        ("conv3", nn.Conv2d(16, 24, 3, padding=1)),
        ("relu3", nn.ReLU()),
        ("conv4", nn.Conv2d(24, 24, 3, padding=1)),
        ("relu4", nn.ReLU()),
        ("conv5", nn.Conv2d(24, 16, 3, padding=1)),
        ("relu5", nn.ReLU()),
        ("pool5", nn.MaxPool2d(3, stride=2)),
        ("flatten", nn.Flatten()),
        ("fc8", nn.Linear(16, 10)),
    ]
    return nn.Sequential(OrderedDict(layers))


@expect(*2 * ["conv relu lrn pool"], *2 * ["conv relu"], "conv relu pool", size=(2, 3, 64, 64))
class VGGCNNM(nn.Module):
    """Layers added one by one with add_module, called one by one with getattr."""

    def __init__(self):
        super().__init__()
        sizes = [(3, 8, 7, 2, 0), (8, 16, 5, 2, 1), (16, 16, 3, 1, 1), (16, 16, 3, 1, 1), (16, 16, 3, 1, 1)]
        for i, (inputs, outputs, kernel, stride, padding) in enumerate(sizes, 1):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, kernel, stride, padding))
            self.add_module(f"relu{i}", nn.ReLU(inplace=True))
        for i in (1, 2):
            self.add_module(f"norm{i}", nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2))
        for i in (1, 2, 5):
            self.add_module(f"pool{i}", nn.MaxPool2d(3, 2, ceil_mode=i == 2))
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        for i in range(1, 6):
            for kind in ("conv", "relu", "norm", "pool"):
                if hasattr(self, f"{kind}{i}"):
                    x = getattr(self, f"{kind}{i}")(x)
        return self.fc(x.flatten(1))


class ConvReLU(nn.Module):
    def __init__(self, inputs, outputs, kernel_size, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, **kwargs)

    def forward(self, x):
        return F.relu(self.conv(x))


class BasicConv2d(nn.Module):
    def __init__(self, inputs, outputs, kernel_size, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, bias=False, **kwargs)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
        x = self.conv(x)
        x = self.bn(x)
        return F.relu(x, inplace=True)


class Inception(nn.Module):
    def __init__(self, conv, inputs):
        super().__init__()
        self.branch1 = conv(inputs, 4, 1)
        self.branch2 = nn.Sequential(conv(inputs, 4, 1), conv(4, 6, 3, padding=1))
        self.branch3 = nn.Sequential(conv(inputs, 2, 1), conv(2, 4, 5, padding=2))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv(inputs, 2, 1))

    def forward(self, x):
        branches = [self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)]
        return torch.cat(branches, 1)


INCEPTION = [*5 * ["conv relu"], "pool", "conv relu"]
INCEPTION_FOLDED = [*5 * ["conv bn relu"], "pool", "conv bn relu"]


@expect(
    "conv relu pool lrn",
    "conv relu",
    "conv relu lrn pool",
    *INCEPTION,
    *INCEPTION,
    "pool",
    *INCEPTION,
    size=(2, 3, 64, 64),
)
class GoogLeNet(nn.Module):
    """Chains begun in a helper module and gone on with by its user; inception branches."""

    def __init__(self):
        super().__init__()
        self.conv1 = ConvReLU(3, 8, 7, stride=2, padding=3)
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm1 = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.conv2_reduce = ConvReLU(8, 8, 1)
        self.conv2 = ConvReLU(8, 12, 3, padding=1)
        self.norm2 = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.pool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a = Inception(ConvReLU, 12)
        self.inception3b = Inception(ConvReLU, 16)
        self.pool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = Inception(ConvReLU, 16)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.norm1(self.pool1(self.conv1(x)))
        x = self.conv2(self.conv2_reduce(x))
        x = self.pool2(self.norm2(x))
        x = self.inception3b(self.inception3a(x))
        x = self.pool3(x)
        x = self.inception4a(x)
        x = self.avgpool(x).squeeze(-1).squeeze(-1)
        return self.fc(self.dropout(x))


@expect(
    *5 * ["pool"],
    size=(2, 3, 64, 64),
    folded=[
        "conv bn relu pool",
        "conv bn relu",
        "conv bn relu pool",
        *INCEPTION_FOLDED,
        "pool",
        *INCEPTION_FOLDED,
    ],
)
class GoogLeNetBN(nn.Module):
    """torchvision's: batch norm in the helper module, and an in-place ReLU that ends it."""

    def __init__(self):
        super().__init__()
        self.conv1 = BasicConv2d(3, 8, 7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = BasicConv2d(8, 8, 1)
        self.conv3 = BasicConv2d(8, 12, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a = Inception(BasicConv2d, 12)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = Inception(BasicConv2d, 16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.conv1(x)
        x = self.maxpool1(x)
        x = self.conv2(x)
        x = self.conv3(x)
        x = self.maxpool2(x)
        x = self.inception3a(x)
        x = self.maxpool3(x)
        x = self.inception4a(x)
        return self.fc(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


@expect("conv relu pool lrn", "conv relu lrn pool", size=(2, 3, 24, 24))
class TensorFlowTutorial(nn.Module):
    """TensorFlow's CIFAR-10 tutorial, by hand: depth_radius 4 is size 9, its alpha of 0.001 / 9 is 0.001."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 5, padding="same")
        self.conv2 = nn.Conv2d(12, 12, 5, padding="same")
        self.norm = nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0)
        self.local3 = nn.Linear(12 * 6 * 6, 24)
        self.softmax_linear = nn.Linear(24, 10)

    def forward(self, images):
        conv1 = F.relu(self.conv1(images))
        pool1 = F.max_pool2d(conv1, kernel_size=3, stride=2, padding=1)
        norm1 = self.norm(pool1)
        conv2 = F.relu(self.conv2(norm1))
        norm2 = self.norm(conv2)
        pool2 = F.max_pool2d(norm2, kernel_size=3, stride=2, padding=1)
        reshape = pool2.view(images.size(0), -1)
        return self.softmax_linear(F.relu(self.local3(reshape)))


def nin_block(inputs, outputs, kernel_size, padding):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size, padding=padding),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, kernel_size=1),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, kernel_size=1),
        nn.ReLU(),
    )


@expect(*2 * ["conv relu", "conv relu", "conv relu pool"], *3 * ["conv relu"], size=(2, 3, 32, 32))
def network_in_network():
    """Sequentials in a Sequential, whose pooling goes on with the inner ones' last chain."""
    return nn.Sequential(
        nin_block(3, 8, 5, padding=2),
        nn.MaxPool2d(3, stride=2),
        nin_block(8, 12, 5, padding=2),
        nn.MaxPool2d(3, stride=2),
        nn.Dropout(0.5),
        nin_block(12, 10, 3, padding=1),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )


@expect(*2 * ["conv lrn pool"], size=(2, 3, 32, 32))
def cuda_convnet():
    """The order of the released layer files: the ReLU comes last, so it is no part of the chain."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2),
        nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.ReLU(),
        nn.Conv2d(8, 12, 5, padding=2),
        nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 8 * 8, 10),
    )


@expect(
    *3 * ["pool"],
    size=(2, 3, 32, 32),
    folded=["conv bn relu pool", *2 * ["conv bn relu", "conv bn relu pool"]],
)
class VGGBN(nn.Module):
    """torchvision's make_layers: a Sequential from a list of widths and pools."""

    def __init__(self, widths=(8, "M", 8, 12, "M", 12, 12, "M")):
        super().__init__()
        self.features = self.make_layers(widths)
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(nn.Linear(12 * 2 * 2, 16), nn.ReLU(True), nn.Linear(16, 10))

    def make_layers(self, widths):
        layers, inputs = [], 3
        for width in widths:
            if width == "M":
                layers += [nn.MaxPool2d(kernel_size=2, stride=2)]
            else:
                conv2d = nn.Conv2d(inputs, width, kernel_size=3, padding=1)
                layers += [conv2d, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                inputs = width
        return nn.Sequential(*layers)

    def forward(self, x):
        x = self.features(x)
        x = self.avgpool(x)
        return self.classifier(torch.flatten(x, 1))


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride=1, downsample=None):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = downsample

    def forward(self, x):
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return out


@expect("pool", size=(2, 3, 64, 64), folded=["conv bn relu pool", *2 * ["conv bn relu"]])
class ResNet(nn.Module):
    """torchvision's: one in-place ReLU a block, ``out += identity``, an optional downsample."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(8, 8))
        downsample = nn.Sequential(nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12))
        self.layer2 = nn.Sequential(BasicBlock(8, 12, 2, downsample))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(12, 10)

    def forward(self, x):
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.maxpool(x)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.avgpool(x)
        return self.fc(torch.flatten(x, 1))


class PreActBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out += x
        return out


@expect(size=(2, 3, 16, 16), folded=2 * ["conv bn relu"])
def pre_activation_resnet():
    """The first batch norm of a block follows no convolution of the block; the second one does."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        PreActBlock(8),
        PreActBlock(8),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    )


class Fire(nn.Module):
    def __init__(self, inputs, squeezed, expanded):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, kernel_size=1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, kernel_size=1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, kernel_size=3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat(
            [self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))], 1
        )


@expect("conv relu pool", *6 * ["conv relu"], "pool", *4 * ["conv relu"], size=(2, 3, 48, 48))
class SqueezeNet(nn.Module):
    """torchvision's: a chain's output read by two chains; a pooling after a concatenation."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, kernel_size=7, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            Fire(8, 4, 6),
            Fire(12, 4, 6),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            Fire(12, 4, 8),
        )
        final_conv = nn.Conv2d(16, 10, kernel_size=1)
        self.classifier = nn.Sequential(
            nn.Dropout(p=0.5), final_conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
        )

    def forward(self, x):
        x = self.features(x)
        x = self.classifier(x)
        return torch.flatten(x, 1)


class ConvBNReLU6(nn.Sequential):
    def __init__(self, inputs, outputs, kernel_size=3, stride=1, groups=1):
        padding = (kernel_size - 1) // 2
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel_size, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.conv = nn.Sequential(
            ConvBNReLU6(width, hidden, kernel_size=1),
            ConvBNReLU6(hidden, hidden, groups=hidden),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x):
        return x + self.conv(x)


@expect(size=(2, 3, 32, 32))
def mobilenet_v2():
    """ReLU6 is no ReLU; the last batch norm of a block has none."""
    return nn.Sequential(
        ConvBNReLU6(3, 8, stride=2),
        InvertedResidual(8, 16),
        InvertedResidual(8, 16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def double_conv(inputs, outputs):
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(inplace=True),
    ]


class Up(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, kernel_size=2, stride=2)
        self.conv = nn.Sequential(*double_conv(2 * outputs, outputs))

    def forward(self, x, skip):
        return self.conv(torch.cat([skip, self.up(x)], dim=1))


@expect(*2 * ["conv relu", "conv relu", "pool"], *6 * ["conv relu"], size=(2, 1, 32, 32))
class UNet(nn.Module):
    """What a pooling in the next module reads is read by a skip connection too."""

    def __init__(self):
        super().__init__()
        self.inc = nn.Sequential(*double_conv(1, 4))
        self.down1 = nn.Sequential(nn.MaxPool2d(2), *double_conv(4, 8))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), *double_conv(8, 16))
        self.up1 = Up(16, 8)
        self.up2 = Up(8, 4)
        self.outc = nn.Conv2d(4, 2, kernel_size=1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x = self.up1(x3, x2)
        x = self.up2(x, x1)
        return self.outc(x)


@expect(*3 * ["conv relu"], size=(2, 3, 32, 32))
class SegNet(nn.Module):
    """Pooling with return_indices, both ways of asking for it, and unpooling."""

    def __init__(self):
        super().__init__()
        self.encode1 = nn.Conv2d(3, 8, 3, padding=1)
        self.encode2 = nn.Conv2d(8, 12, 3, padding=1)
        self.decode2 = nn.Conv2d(12, 8, 3, padding=1)
        self.decode1 = nn.Conv2d(8, 2, 3, padding=1)
        self.pool = nn.MaxPool2d(2, stride=2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2, stride=2)

    def forward(self, x):
        x, indices1 = self.pool(F.relu(self.encode1(x)))
        x, indices2 = F.max_pool2d(F.relu(self.encode2(x)), 2, return_indices=True)
        x = F.relu(self.decode2(self.unpool(x, indices2)))
        return self.decode1(self.unpool(x, indices1))


@expect(size=(2, 1, 32, 32))
def lenet():
    """As published: tanh and average pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 30, 5),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(30, 10),
    )


@expect(size=(2, 3, 4, 16, 16))
def c3d():
    """Convolution and pooling of three dimensions."""
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Flatten(),
        nn.Linear(12 * 2 * 4 * 4, 10),
    )


@expect(*3 * ["conv relu"], size=(2, 1, 12, 8))
class TextCNN(nn.Module):
    """Kim's: list comprehensions over a ModuleList; a pooling of one dimension, over all there is."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1, 6, (height, 8)) for height in (3, 4, 5)])
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(18, 4)

    def forward(self, x):
        x = [F.relu(conv(x)).squeeze(3) for conv in self.convs]
        x = [F.max_pool1d(i, i.size(2)).squeeze(2) for i in x]
        x = self.dropout(torch.cat(x, 1))
        return self.fc1(x)


@expect("conv relu", size=(2, 3, 16, 16))
class CBAM(nn.Module):
    """Channel attention: poolings as large as the image, whose sizes are known only when it runs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16))

    def forward(self, x):
        x = F.relu(self.conv(x))
        size = (x.size(2), x.size(3))
        average = self.mlp(F.avg_pool2d(x, size, stride=size))
        largest = self.mlp(F.max_pool2d(x, size, stride=size))
        scale = torch.sigmoid(average + largest).unsqueeze(2).unsqueeze(3).expand_as(x)
        return x * scale


@expect(*2 * ["conv relu pool"], size=(2, 1, 28, 28))
class Autoencoder(nn.Module):
    """Transposed convolutions in the decoder."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(8, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, 2),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(4, 8, 2, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 1, 2, stride=2),
            nn.Sigmoid(),
        )

    def forward(self, x):
        x = self.encoder(x)
        return self.decoder(x)


@expect("conv relu lrn pool", "conv relu pool", size=(2, 3, 32, 32))
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


@expect(*2 * ["conv relu pool"], size=(2, 3, 24, 24))
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


@expect(*8 * ["conv relu"], size=(2, 4, 12, 12))
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


@expect(*2 * ["conv relu lrn pool"], "conv relu", "conv relu pool", size=(2, 3, 40, 40))
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


@expect("conv pool relu", "pool relu", size=(4, 1, 28, 28))
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


@expect("conv pool relu lrn", "conv pool lrn", size=(2, 1, 28, 28))
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


@expect("conv lrn", "pool", "conv pool lrn", size=(2, 3, 24, 24))
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


@expect(*3 * ["conv relu", "conv relu pool"], size=(2, 3, 32, 32))
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


@expect("conv relu pool", "conv relu lrn", size=(2, 3, 20, 20))
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


@expect(*3 * ["conv relu"], size=(4, 784))
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


@expect(*2 * ["relu pool"], size=(2, 1, 28, 28), folded=2 * ["conv bn relu pool"])
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


@expect("conv relu", "conv relu pool lrn", "conv relu", "pool", "conv relu", size=(2, 3, 32, 32))
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


@expect(*2 * ["conv relu lrn pool"], *2 * ["conv relu"], "conv relu pool", size=(2, 3, 67, 67))
class Inherited(AlexNet):
    """A model's subclass, whose forward calls super's."""

    def forward(self, x):
        return F.log_softmax(super().forward(x / 255), dim=1)


@expect("conv relu pool", size=(2, 3, 20, 20))
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


@expect("conv relu lrn", "lrn pool", size=(2, 3, 20, 20))
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


@expect("conv relu lrn pool", size=(2, 3, 20, 20))
def even_norm():
    """An LRN over an even number of channels."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.LocalResponseNorm(4, alpha=1e-2), nn.MaxPool2d(3, 2)
    )


@expect("pool", "conv relu", size=(2, 3, 24, 24))
def pool_then_conv():
    """A pooling before the first convolution."""
    return nn.Sequential(
        nn.MaxPool2d(2), nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 10 * 10, 10)
    )


@expect("lrn pool", size=(2, 6, 13, 13))
class NormAndPool(nn.Module):
    """No convolution, and no weights."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LocalResponseNorm(5, k=2.0)
        self.pool = nn.MaxPool2d(3, stride=2)

    def forward(self, x):
        return self.pool(self.norm(x))


@expect("conv relu", "pool", "conv relu", size=(2, 1, 16, 16))
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


@expect("pool relu", "relu pool", size=(2, 1, 28, 28), folded=["conv bn pool relu", "conv bn relu pool"])
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


@expect(*3 * ["relu pool"], size=(4, 1, 28, 28))
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


@expect("conv relu", "pool", size=(2, 3, 47, 47))
def homemade_norm():
    """LRN from before torch had one."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 11, stride=4), nn.ReLU(inplace=True), OldLRN(), nn.MaxPool2d(3, 2), nn.Flatten()
    )


@expect("conv relu", "pool relu", "conv relu pool", size=(2, 3, 24, 24))
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


@expect("conv relu pool", "conv relu", "conv lrn", size=(2, 3, 20, 20))
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


@expect(*3 * ["conv relu"], size=(2, 3, 16, 16))
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


@expect(*2 * ["conv relu pool"], size=(2, 8, 24, 24))
class SharedConv(nn.Module):
    """One convolution, called three times: twice it begins a chain."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return torch.sigmoid(self.conv(x))


@expect("relu pool", size=(2, 8, 16, 16), folded=["conv bn relu", "conv bn relu pool"])
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


@expect(*2 * ["conv relu pool"], size=(2, 1, 24, 24))
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


@expect("relu pool", "conv relu", size=(2, 3, 20, 20))
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


@expect("relu pool", "conv relu", size=(2, 3, 20, 20))
class WeightStandardised(nn.Module):
    """BiT's: a subclass of Conv2d with a forward of its own."""

    def __init__(self):
        super().__init__()
        self.conv1 = StdConv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return F.relu(self.conv2(x))


@expect("relu pool", size=(2, 3, 20, 20))
def weight_normalised():
    """A parametrization makes the convolution's class a subclass."""
    return nn.Sequential(
        weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 9 * 9, 10)
    )


@expect("conv relu", "relu pool", size=(2, 3, 16, 16))
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


@expect(*2 * ["conv relu", "conv relu", "pool"], "conv relu", size=(2, 3, 24, 24))
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


@expect("conv relu", "pool", "conv relu lrn", "pool", size=(2, 3, 24, 24))
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


@expect("conv relu", "pool", "conv relu", size=(2, 3, 24, 24))
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


@expect("pool", size=(2, 3, 16, 16))
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


@expect("pool", "pool", size=(2, 3, 20, 20))
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


@expect("conv relu lrn pool", "conv relu pool", "conv relu", size=(2, 3, 24, 24))
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


@expect("conv relu lrn pool", "conv relu pool", size=(2, 3, 24, 24))
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


@expect("conv relu lrn pool", "conv relu pool", size=(2, 3, 24, 24))
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


@expect(
    "conv relu pool",
    "conv relu",
    "conv relu",
    "pool",
    size=(2, 3, 24, 24),
    training=["conv relu pool", "pool"],
)
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


@expect(
    *2 * ["conv relu pool"],
    size=(2, 3, 24, 24),
    training=["conv relu pool", "conv relu", "conv relu pool"],
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


@expect("conv relu pool", "conv relu lrn", size=(2, 3, 24, 24))
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


ENTRIES = tuple(_entries)
