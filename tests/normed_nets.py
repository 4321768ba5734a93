"""Networks with batch norms, and what folding these gives."""

import copy
import functools

import torch
from torch import nn
from torch.nn import functional as F

import fastcnn
from fastcnn.fusion.fused import Fused, fusion_of

IMAGES = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 6e-2}


class FunctionNorm(nn.BatchNorm2d):
    """Calls torch's function, as timm's norms do."""

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Activated(nn.BatchNorm2d):
    """A norm with its activation, as timm's BatchNormAct2d."""

    def __init__(self, features, act=nn.ReLU, drop=nn.Identity):
        super().__init__(features)
        self.drop, self.act = drop(), act()

    def forward(self, x):
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        if self.momentum is None:  # noqa: SIM108 (as timm writes it)
            factor = 0.0
        else:
            factor = self.momentum
        if self.training and self.track_running_stats:  # noqa: SIM102
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
                if self.momentum is None:  # noqa: SIM108
                    factor = 1.0 / float(self.num_batches_tracked)
                else:
                    factor = self.momentum
        if self.training:  # noqa: SIM108
            bn_training = True
        else:
            bn_training = (self.running_mean is None) and (self.running_var is None)
        x = F.batch_norm(
            x,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            self.weight,
            self.bias,
            bn_training,
            factor,
            self.eps,
        )
        x = self.drop(x)
        x = self.act(x)
        return x


def filled(net, seed=0):
    """The net, with every parameter and running statistic drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                if m.running_mean is not None:
                    m.running_mean.copy_(torch.randn(m.num_features, generator=generator) * 0.3)
                    m.running_var.copy_(torch.rand(m.num_features, generator=generator) + 0.5)
                if m.weight is not None:
                    m.weight.copy_(torch.randn(m.num_features, generator=generator))
                    m.bias.copy_(torch.randn(m.num_features, generator=generator))
            elif isinstance(m, nn.Conv2d):
                m.weight.copy_(torch.randn(m.weight.shape, generator=generator) / m.weight[0].numel() ** 0.5)
                if m.bias is not None:
                    m.bias.copy_(torch.randn(m.bias.shape, generator=generator))
    return net


def conv(**options):
    return nn.Conv2d(4, 8, 3, **options)


def seq(*layers):
    return filled(nn.Sequential(*layers)).eval()


NETS = {
    "relu": lambda: seq(conv(), nn.BatchNorm2d(8), nn.ReLU()),
    "relu in place": lambda: seq(conv(), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
    "relu and pool": lambda: seq(conv(), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
    "pool": lambda: seq(conv(), nn.BatchNorm2d(8), nn.MaxPool2d(2)),
    "lrn": lambda: seq(conv(), nn.BatchNorm2d(8), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(2)),
    "no relu": lambda: seq(conv(), nn.BatchNorm2d(8)),
    "no relu, then another": lambda: seq(
        conv(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)
    ),
    "another activation": lambda: seq(conv(), nn.BatchNorm2d(8), nn.SiLU()),
    "relu6": lambda: seq(conv(), nn.BatchNorm2d(8), nn.ReLU6()),
    "identity": lambda: seq(conv(), nn.Identity(), nn.BatchNorm2d(8), nn.Identity(), nn.ReLU()),
    "dropout": lambda: seq(conv(), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.ReLU()),
    "dropout before": lambda: seq(conv(), nn.Dropout(0.5), nn.BatchNorm2d(8), nn.ReLU()),
    "dropout in place": lambda: seq(conv(), nn.BatchNorm2d(8), nn.Dropout(0.5, inplace=True), nn.ReLU()),
    "dropout of 1": lambda: seq(conv(), nn.BatchNorm2d(8), nn.Dropout(1.0), nn.ReLU()),
    "dropout2d": lambda: seq(conv(), nn.BatchNorm2d(8), nn.Dropout2d(0.5), nn.ReLU()),
    "alpha dropout": lambda: seq(conv(), nn.BatchNorm2d(8), nn.AlphaDropout(0.5), nn.ReLU()),
    "feature alpha": lambda: seq(conv(), nn.BatchNorm2d(8), nn.FeatureAlphaDropout(0.5), nn.ReLU()),
    "not affine": lambda: seq(conv(), nn.BatchNorm2d(8, affine=False), nn.ReLU()),
    "eps": lambda: seq(conv(), nn.BatchNorm2d(8, eps=0.5), nn.ReLU()),
    "momentum None": lambda: seq(conv(), nn.BatchNorm2d(8, momentum=None), nn.ReLU()),
    "batch statistics": lambda: seq(conv(), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU()),
    "no bias": lambda: seq(conv(bias=False), nn.BatchNorm2d(8), nn.ReLU()),
    "neither": lambda: seq(conv(bias=False), nn.BatchNorm2d(8, affine=False), nn.ReLU()),
    "groups": lambda: seq(conv(groups=2), nn.BatchNorm2d(8), nn.ReLU()),
    "depthwise": lambda: seq(conv(groups=4, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
    "dilation": lambda: seq(conv(dilation=2), nn.BatchNorm2d(8), nn.ReLU()),
    "stride": lambda: seq(conv(stride=(2, 1), padding=(0, 1)), nn.BatchNorm2d(8), nn.ReLU()),
    "same": lambda: seq(conv(padding="same"), nn.BatchNorm2d(8), nn.ReLU()),
    "valid": lambda: seq(conv(padding="valid"), nn.BatchNorm2d(8), nn.ReLU()),
    "reflect": lambda: seq(conv(padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), nn.ReLU()),
    "circular": lambda: seq(conv(padding=1, padding_mode="circular"), nn.BatchNorm2d(8), nn.ReLU()),
    "sync": lambda: seq(conv(), nn.SyncBatchNorm(8), nn.ReLU()),
    "two norms": lambda: seq(conv(), nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.ReLU()),
    "norm behind relu": lambda: seq(conv(), nn.ReLU(), nn.BatchNorm2d(8), nn.MaxPool2d(2)),
    "norm behind pool": lambda: seq(conv(), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU()),
    "norm first": lambda: seq(nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(8), nn.ReLU()),
    "timm's": lambda: seq(conv(bias=False), Activated(8)),
    "timm's, then a pool": lambda: seq(conv(bias=False), Activated(8), nn.MaxPool2d(3, 2, 1)),
    "timm's SiLU": lambda: seq(conv(bias=False), Activated(8, nn.SiLU)),
    "timm's Identity": lambda: seq(conv(bias=False), Activated(8, nn.Identity)),
    "timm's dropout": lambda: seq(conv(bias=False), Activated(8, nn.ReLU, nn.Dropout)),
    "timm's in place": lambda: seq(conv(), Activated(8, functools.partial(nn.ReLU, inplace=True))),
}


LEFT = ("batch statistics", "reflect", "circular", "norm behind relu", "norm behind pool")
FOLDED = [name for name in NETS if name not in {*LEFT, "sync"}]
NORMED = ("relu", "no bias", "timm's", "not affine", "groups", "lrn", "dropout", "no relu")


def fused(net):
    return fastcnn.fuse(net, fold_bn=True)


def chains(net):
    """The kinds of each chain in evaluation."""
    forwards = [fusion_of(m).forwards.get(False) for m in net.modules() if fusion_of(m) is not None]
    return [" ".join(kinds) for f in forwards if isinstance(f, Fused) for kinds, _ in f.chains]


def compare(net, plain, x=IMAGES, dtype=torch.float32, layers=1):
    tolerance = layers * TOLERANCES[dtype]
    torch.testing.assert_close(net(x), plain(x), rtol=tolerance, atol=tolerance)


def step(net, optimizer=torch.optim.SGD, mode=True):
    net.train(mode)
    optimizer = optimizer(net.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        net(IMAGES).sin().sum().backward()
        optimizer.step()
    net.zero_grad()
    net.eval()


def other_state(net):
    return filled(copy.deepcopy(fastcnn.unfuse(copy.deepcopy(net))), seed=1).state_dict()
