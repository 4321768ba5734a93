"""Networks of 1998 to 2014, most of them with local response normalisation."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F


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
