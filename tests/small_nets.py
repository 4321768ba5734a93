"""Small networks, made of layers and of modules."""

import torch
from module_classes import Inner, Super, build
from torch import nn


def sequence(*layers):
    torch.default_generator.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.LocalResponseNorm(3, 0.5), nn.MaxPool2d(2), *layers
    )


def normed():
    torch.default_generator.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.ReLU()
    )
    with torch.no_grad():
        net[1].running_mean.normal_()
    return net


NETS = {"sequence": sequence, "normed": normed, "module": lambda: build(Inner), "super": lambda: build(Super)}
