"""Published networks written out in plain torch, and weights to put into ours."""

import os
from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

from fastcnn.models import alexnet
from fastcnn.testing import assert_close

MEANS = torch.tensor([104.007, 116.669, 122.679]).view(3, 1, 1)


CAFFE_SHAPES = {
    "conv1": (96, 3, 11, 11),
    "conv2": (256, 48, 5, 5),
    "conv3": (384, 256, 3, 3),
    "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3),
    "fc6": (4096, 9216),
    "fc7": (4096, 4096),
    "fc8": (1000, 4096),
}


def torchvisions_alexnet():
    """Its layers under its names (torchvision.models.alexnet, Krizhevsky 2014)."""
    relu, pool = nn.ReLU, nn.MaxPool2d
    features = [nn.Conv2d(3, 64, 11, 4, 2), relu(), pool(3, 2), nn.Conv2d(64, 192, 5, padding=2), relu()]
    features += [pool(3, 2), nn.Conv2d(192, 384, 3, padding=1), relu(), nn.Conv2d(384, 256, 3, padding=1)]
    features += [relu(), nn.Conv2d(256, 256, 3, padding=1), relu(), pool(3, 2)]
    classifier = [nn.Dropout(), nn.Linear(9216, 4096), relu(), nn.Dropout(), nn.Linear(4096, 4096), relu()]
    parts = {
        "features": nn.Sequential(*features),
        "avgpool": nn.AdaptiveAvgPool2d(6),
        "flatten": nn.Flatten(),
        "classifier": nn.Sequential(*classifier, nn.Linear(4096, 1000)),
    }
    return nn.Sequential(OrderedDict(parts)).eval()


def caffes_norm(x):
    return F.local_response_norm(x, 5, 1e-4, 0.75, 1.0)


def caffes_network(blobs, images, pool_first, norm=caffes_norm):
    """CaffeNet where ``pool_first``, else bvlc_alexnet, as their deploy.prototxt files have them."""

    def conv(name, x, stride=1, padding=0, groups=1):
        weight, bias = blobs[name]
        return F.relu(F.conv2d(x, weight, bias, stride, padding, groups=groups))

    def pool(x):
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    def norm_and_pool(x):
        return norm(pool(x)) if pool_first else pool(norm(x))

    x = norm_and_pool(conv("conv1", images, stride=4))
    x = norm_and_pool(conv("conv2", x, padding=2, groups=2))
    x = conv("conv4", conv("conv3", x, padding=1), padding=1, groups=2)
    x = pool(conv("conv5", x, padding=1, groups=2))
    weight, bias = blobs["fc6"]
    # Of a blob Caffe's InnerProduct takes channels, rows, columns, the last of them the fastest.
    x = torch.einsum("nchw,ochw->no", x, weight.view(4096, 256, 6, 6)) + bias
    x = F.linear(F.relu(x), *blobs["fc7"])
    return F.linear(F.relu(x), *blobs["fc8"])


def blank(variant, **kwargs):
    """A network without initial values, which take long to draw."""
    with torch.device("meta"):
        model = alexnet(variant, **kwargs)
    model = model.to_empty(device="cpu").eval()
    for p in model.parameters():
        nn.init.zeros_(p)
    return model


def draw_blobs():
    """Caffe's blobs, at random: conv1 such that the LRN has something to do."""
    torch.manual_seed(0)
    inputs = {layer: torch.Size(shape[1:]).numel() for layer, shape in CAFFE_SHAPES.items()}
    scales = {layer: (2 / count) ** 0.5 for layer, count in inputs.items()} | {"conv1": 0.05}
    return {
        layer: (torch.randn(shape) * scales[layer], torch.randn(shape[0]))
        for layer, shape in CAFFE_SHAPES.items()
    }


def draw_images():
    """Two images in Caffe's order, blue, green, red, less the means."""
    torch.manual_seed(1)
    return torch.rand(2, 3, 227, 227) * 255 - MEANS


@torch.no_grad()
def assert_same_outputs(actual, expected):
    assert_close(actual / expected.abs().max(), expected / expected.abs().max())


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model, before):
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Code:
    """Makes a folder beside its file when it is unpickled."""

    def __init__(self, path):
        self.folder = path.with_name("ran")

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)
