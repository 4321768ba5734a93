"""Ports of networks that were first written for Caffe, with LRN as a module of the port's own."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .entry import Entry


class SpatialCrossMapLRN(nn.Module):
    """LRN across channels by an average pooling in three dimensions, or within one by one in two."""

    def __init__(self, local_size=1, alpha=1.0, beta=0.75, k=1, across_channels=True):
        super().__init__()
        self.across_channels = across_channels
        padding = int((local_size - 1.0) / 2)
        if across_channels:
            self.average = nn.AvgPool3d((local_size, 1, 1), stride=1, padding=(padding, 0, 0))
        else:
            self.average = nn.AvgPool2d(local_size, stride=1, padding=padding)
        self.alpha = alpha
        self.beta = beta
        self.k = k

    def forward(self, x):
        if self.across_channels:
            div = x.pow(2).unsqueeze(1)
            div = self.average(div).squeeze(1)
            div = div.mul(self.alpha).add(self.k).pow(self.beta)
        else:
            div = x.pow(2)
            div = self.average(div)
            div = div.mul(self.alpha).add(self.k).pow(self.beta)
        x = x.div(div)
        return x


class AlexNet(nn.Module):
    """Krizhevsky et al. 2012 as most write it, with LRN across both towers."""

    def __init__(self, num_classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.LocalResponseNorm(5, k=2.0)
        self.pool = nn.MaxPool2d(3, 2)
        self.dropout = nn.Dropout()
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)

    def forward(self, x):
        x = self.pool(self.norm(self.relu(self.conv1(x))))
        x = self.pool(self.norm(self.relu(self.conv2(x))))
        x = self.relu(self.conv4(self.relu(self.conv3(x))))
        x = self.pool(self.relu(self.conv5(x))).flatten(1)
        x = self.relu(self.fc7(self.dropout(self.relu(self.fc6(x)))))
        return self.fc8(self.dropout(x))


class CaffeNet(nn.Module):
    """AlexNet with pooling before LRN."""

    def __init__(self, num_classes=1000):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, kernel_size=11, stride=4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            SpatialCrossMapLRN(local_size=5, alpha=0.0001, beta=0.75),
            nn.Conv2d(96, 256, kernel_size=5, padding=2, groups=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            SpatialCrossMapLRN(local_size=5, alpha=0.0001, beta=0.75),
            nn.Conv2d(256, 384, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 384, kernel_size=3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, kernel_size=3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x):
        x = self.features(x)
        x = x.view(x.size(0), 256 * 6 * 6)
        x = self.classifier(x)
        return x


class VGGM(nn.Module):
    def __init__(self, num_classes=1000):
        super().__init__()
        self.num_classes = num_classes
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, (7, 7), (2, 2)),
            nn.ReLU(),
            SpatialCrossMapLRN(5, 0.0005, 0.75, 2),
            nn.MaxPool2d((3, 3), (2, 2), (0, 0), ceil_mode=True),
            nn.Conv2d(96, 256, (5, 5), (2, 2), (1, 1)),
            nn.ReLU(),
            SpatialCrossMapLRN(5, 0.0005, 0.75, 2),
            nn.MaxPool2d((3, 3), (2, 2), (0, 0), ceil_mode=True),
            nn.Conv2d(256, 512, (3, 3), (1, 1), (1, 1)),
            nn.ReLU(),
            nn.Conv2d(512, 512, (3, 3), (1, 1), (1, 1)),
            nn.ReLU(),
            nn.Conv2d(512, 512, (3, 3), (1, 1), (1, 1)),
            nn.ReLU(),
            nn.MaxPool2d((3, 3), (2, 2), (0, 0), ceil_mode=True),
        )
        self.classif = nn.Sequential(
            nn.Linear(18432, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x):
        x = self.features(x)
        x = x.view(x.size(0), -1)
        x = self.classif(x)
        return x


class ZFNet(nn.Module):
    def __init__(self, num_classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, kernel_size=7, stride=2, padding=1)
        self.conv2 = nn.Conv2d(96, 256, kernel_size=5, stride=2)
        self.conv3 = nn.Conv2d(256, 384, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, kernel_size=3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, kernel_size=3, padding=1)
        self.lrn = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, stride=2, padding=1)
        x = self.lrn(x)
        x = F.max_pool2d(F.relu(self.conv2(x)), 3, stride=2, padding=1)
        x = self.lrn(x)
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        x = F.max_pool2d(F.relu(self.conv5(x)), 3, stride=2)
        x = x.view(x.size(0), -1)
        x = F.dropout(F.relu(self.fc6(x)), training=self.training)
        x = F.dropout(F.relu(self.fc7(x)), training=self.training)
        return self.fc8(x)


class NiN(nn.Module):
    """Network in network, for ImageNet."""

    def __init__(self, num_classes=1000):
        super().__init__()
        self.features = nn.Sequential(
            *self._mlpconv(3, 96, 11, stride=4),
            nn.MaxPool2d(3, stride=2),
            *self._mlpconv(96, 256, 5, padding=2),
            nn.MaxPool2d(3, stride=2),
            *self._mlpconv(256, 384, 3, padding=1),
            nn.MaxPool2d(3, stride=2),
            nn.Dropout(p=0.5),
            *self._mlpconv(384, num_classes, 3, padding=1),
            nn.AdaptiveAvgPool2d((1, 1)),
        )

    def _mlpconv(self, in_channels, out_channels, kernel_size, **kwargs):
        return [
            nn.Conv2d(in_channels, out_channels, kernel_size, **kwargs),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=1),
            nn.ReLU(inplace=True),
        ]

    def forward(self, x):
        x = self.features(x)
        return torch.flatten(x, 1)


class LRN(nn.Module):
    """The same, by functions."""

    def __init__(self, local_size=5, alpha=1e-4, beta=0.75):
        super().__init__()
        self.local_size, self.alpha, self.beta = local_size, alpha, beta

    def forward(self, x):
        pad = (self.local_size - 1) // 2
        div = F.avg_pool3d(x.pow(2).unsqueeze(1), (self.local_size, 1, 1), stride=1, padding=(pad, 0, 0))
        return x / (1.0 + self.alpha * div.squeeze(1)).pow(self.beta)


class Inception(nn.Module):
    def __init__(self, in_channels, ch1x1, ch3x3red, ch3x3, ch5x5red, ch5x5, pool_proj):
        super().__init__()
        self.conv_1x1 = nn.Conv2d(in_channels, ch1x1, 1)
        self.conv_3x3_reduce = nn.Conv2d(in_channels, ch3x3red, 1)
        self.conv_3x3 = nn.Conv2d(ch3x3red, ch3x3, 3, padding=1)
        self.conv_5x5_reduce = nn.Conv2d(in_channels, ch5x5red, 1)
        self.conv_5x5 = nn.Conv2d(ch5x5red, ch5x5, 5, padding=2)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.pool_proj = nn.Conv2d(in_channels, pool_proj, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        conv_1x1 = self.relu(self.conv_1x1(x))
        conv_3x3 = self.relu(self.conv_3x3(self.relu(self.conv_3x3_reduce(x))))
        conv_5x5 = self.relu(self.conv_5x5(self.relu(self.conv_5x5_reduce(x))))
        pool_proj = self.relu(self.pool_proj(self.pool(x)))
        return torch.cat([conv_1x1, conv_3x3, conv_5x5, pool_proj], dim=1)


class GoogLeNet(nn.Module):
    """Version 1, with its two LRNs and without batch norms."""

    def __init__(self, num_classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3)
        self.conv2_reduce = nn.Conv2d(64, 64, kernel_size=1)
        self.conv2 = nn.Conv2d(64, 192, kernel_size=3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm = LRN(5, 1e-4, 0.75)
        self.inception_3a = Inception(192, 64, 96, 128, 16, 32, 32)
        self.inception_3b = Inception(256, 128, 128, 192, 32, 96, 64)
        self.inception_4a = Inception(480, 192, 96, 208, 16, 48, 64)
        self.inception_4b = Inception(512, 160, 112, 224, 24, 64, 64)
        self.inception_4c = Inception(512, 128, 128, 256, 24, 64, 64)
        self.inception_4d = Inception(512, 112, 144, 288, 32, 64, 64)
        self.inception_4e = Inception(528, 256, 160, 320, 32, 128, 128)
        self.inception_5a = Inception(832, 256, 160, 320, 32, 128, 128)
        self.inception_5b = Inception(832, 384, 192, 384, 48, 128, 128)
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x):
        x = self.norm(self.pool(self.relu(self.conv1(x))))
        x = self.relu(self.conv2(self.relu(self.conv2_reduce(x))))
        x = self.pool(self.norm(x))
        x = self.inception_3b(self.inception_3a(x))
        x = self.pool(x)
        x = self.inception_4c(self.inception_4b(self.inception_4a(x)))
        x = self.inception_4e(self.inception_4d(x))
        x = self.pool(x)
        x = self.inception_5b(self.inception_5a(x))
        x = F.avg_pool2d(x, x.size(2)).flatten(1)
        return self.fc(self.dropout(x))


# Of each unit: channels in; of 1×1; of 3×3 and its reduction; of double 3×3; of the pooling's projection.
BN_INCEPTION = {
    "inception_3a": (192, 64, (64, 64), (64, 96), 32),
    "inception_3b": (256, 64, (64, 96), (64, 96), 64),
    "inception_3c": (320, 0, (128, 160), (64, 96), 0),
    "inception_4a": (576, 224, (64, 96), (96, 128), 128),
    "inception_4b": (576, 192, (96, 128), (96, 128), 128),
    "inception_4c": (576, 160, (128, 160), (128, 160), 128),
    "inception_4d": (608, 96, (128, 192), (160, 192), 128),
    "inception_4e": (608, 0, (128, 192), (192, 256), 0),
    "inception_5a": (1056, 352, (192, 320), (160, 224), 128),
    "inception_5b": (1024, 352, (192, 320), (192, 224), 128),
}


class BNInception(nn.Module):
    """All layers attributes of the one module, as a converter writes them."""

    def __init__(self, num_classes=1000):
        super().__init__()
        self._add("conv1_7x7_s2", 3, 64, 7, 2)
        self._add("conv2_3x3_reduce", 64, 64, 1)
        self._add("conv2_3x3", 64, 192, 3)
        self.pool1_3x3_s2 = nn.MaxPool2d((3, 3), stride=(2, 2), dilation=(1, 1), ceil_mode=True)
        self.pool2_3x3_s2 = nn.MaxPool2d((3, 3), stride=(2, 2), dilation=(1, 1), ceil_mode=True)
        for name, unit in BN_INCEPTION.items():
            self._add_unit(name, *unit)
        self.last_linear = nn.Linear(1024, num_classes)

    def _add(self, name, in_channels, out_channels, kernel_size, stride=1):
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)
        setattr(self, name, conv)
        setattr(self, f"{name}_bn", nn.BatchNorm2d(out_channels, affine=True))
        setattr(self, f"{name}_relu", nn.ReLU(inplace=True))

    def _add_unit(self, name, channels, single, triple, double, projection):
        stride = 1 if single else 2
        if single:
            self._add(f"{name}_1x1", channels, single, 1)
        self._add(f"{name}_3x3_reduce", channels, triple[0], 1)
        self._add(f"{name}_3x3", *triple, 3, stride)
        self._add(f"{name}_double_3x3_reduce", channels, double[0], 1)
        self._add(f"{name}_double_3x3_1", *double, 3)
        self._add(f"{name}_double_3x3_2", double[1], double[1], 3, stride)
        if name == "inception_5b" or not single:
            pool = nn.MaxPool2d((3, 3), stride=stride, padding=int(bool(single)), ceil_mode=True)
        else:
            pool = nn.AvgPool2d(3, stride=1, padding=1, ceil_mode=True, count_include_pad=True)
        setattr(self, f"{name}_pool", pool)
        if projection:
            self._add(f"{name}_pool_proj", channels, projection, 1)

    def _run(self, name, x):
        x = getattr(self, name)(x)
        x = getattr(self, f"{name}_bn")(x)
        return getattr(self, f"{name}_relu")(x)

    def _run_unit(self, name, x):
        _, single, _, _, projection = BN_INCEPTION[name]
        outputs = [self._run(f"{name}_1x1", x)] if single else []
        outputs.append(self._run(f"{name}_3x3", self._run(f"{name}_3x3_reduce", x)))
        double = self._run(f"{name}_double_3x3_1", self._run(f"{name}_double_3x3_reduce", x))
        outputs.append(self._run(f"{name}_double_3x3_2", double))
        pool = getattr(self, f"{name}_pool")(x)
        outputs.append(self._run(f"{name}_pool_proj", pool) if projection else pool)
        return torch.cat(outputs, 1)

    def features(self, input):
        x = self.pool1_3x3_s2(self._run("conv1_7x7_s2", input))
        x = self._run("conv2_3x3", self._run("conv2_3x3_reduce", x))
        x = self.pool2_3x3_s2(x)
        for name in BN_INCEPTION:
            x = self._run_unit(name, x)
        return x

    def logits(self, features):
        x = F.adaptive_avg_pool2d(features, 1)
        x = x.view(x.size(0), -1)
        return self.last_linear(x)

    def forward(self, input):
        x = self.features(input)
        x = self.logits(x)
        return x


ENTRIES = [
    Entry("caffe/alexnet", AlexNet, (3, 227, 227)),
    Entry("caffe/caffenet", CaffeNet, (3, 227, 227)),
    Entry("caffe/vgg_m", VGGM, (3, 221, 221)),
    Entry("caffe/zfnet", ZFNet),
    Entry("caffe/nin", NiN, (3, 227, 227)),
    Entry("caffe/googlenet", GoogLeNet),
    Entry("caffe/bn_inception", BNInception),
]
