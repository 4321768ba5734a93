"""Models whose receptive fields gradients can measure."""

import torch
from torch import nn
from torch.nn import functional as F

import fastcnn
from fastcnn import LRN, MaxPool


class Forward(nn.Module):
    """A function of an image and layers."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def conv(inputs, outputs, kernel, **kwargs):
    torch.default_generator.manual_seed(0)
    return nn.Conv2d(inputs, outputs, kernel, **kwargs)


def epilogue(x):
    x = fastcnn.functional.epilogue(x, lrn=LRN(3), pool=MaxPool(3, 2), order="pool_lrn")
    return fastcnn.functional.local_response_norm(fastcnn.functional.max_pool2d(x, 2), 3)


def squeeze_and_excite(x, stem, gate, after):
    x = stem(x)
    return after(x * torch.sigmoid(gate(x.mean((2, 3), keepdim=True))))


def atrous_pyramid(x, stem, wide, narrow, after):
    x = stem(x)
    return after(torch.cat([wide(x), narrow(x), F.adaptive_avg_pool2d(x, 1).expand_as(x)], 1))


def channels_last(x, stem, norm, linear, after):
    return after(linear(norm(stem(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2))


def attention(x, stem, after):
    x = stem(x)
    tokens = x.flatten(2).transpose(1, 2)
    weights = torch.softmax(tokens @ tokens.transpose(1, 2), -1)
    return after((weights @ tokens).transpose(1, 2).reshape(x.shape))


def shuffle(x, stem, branch, after):
    left, right = stem(x).chunk(2, 1)
    return after(F.channel_shuffle(torch.cat([left, branch(right)], 1), 2))


def crop(x, stem, after):
    return after(F.pad(stem(x), (-1, 2, 3, -2))[:, :, 1:, ::2])


def added_in_place(x, narrow, wide):
    y = narrow(x)
    y += wide(x)
    return wide(y.relu_())


MEASURED = {
    "dilated": (lambda: [conv(3 if d == 1 else 8, 8, 3, dilation=d, padding=d) for d in (1, 2, 4)], 40),
    "rectangular": (
        lambda: [
            conv(3, 8, (3, 5), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
            nn.ReLU(),
            nn.AvgPool2d((2, 3), 2),
        ],
        (40, 52),
    ),
    "remainders that no window reads": (
        lambda: [conv(3, 8, 3, stride=2), nn.MaxPool2d(3, 2), conv(8, 8, 5, padding=2)],
        24,
    ),
    "ceil_mode": (lambda: [conv(3, 8, 3), nn.MaxPool2d(3, 2, ceil_mode=True), conv(8, 8, 3, padding=1)], 12),
    "a map of one unit": (
        lambda: [conv(3, 4, 3, stride=2), conv(4, 4, 3, stride=2), conv(4, 4, 3, padding=1)],
        7,
    ),
    "mirrors": (
        lambda: [
            conv(3, 4, 5, padding=4, padding_mode="reflect"),
            conv(4, 4, 3, padding=1, padding_mode="replicate"),
        ],
        9,
    ),
    "group norm": (lambda: [conv(3, 4, 3), nn.GroupNorm(2, 4), conv(4, 4, 3)], 12),
    "adaptive pooling": (
        lambda: [conv(3, 8, 3), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 4)],
        12,
    ),
    "depthwise": (lambda: [conv(3, 6, 3, groups=3), conv(6, 6, 3, groups=6), conv(6, 8, 1)], 12),
    "groups that see different columns": (
        lambda: [
            Forward(lambda x: torch.cat([x[:, :2, :, 1:], F.avg_pool2d(x[:, 2:], (1, 2), 1)], 1)),
            conv(4, 4, 3, groups=2),
        ],
        12,
    ),
    "three dimensions": (
        lambda: [nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, 3, padding=1), nn.MaxPool3d(2)],
        12,
    ),
    "epilogue": (lambda: [conv(3, 8, 3), Forward(epilogue)], 30),
    "squeeze and excite": (
        lambda: [Forward(squeeze_and_excite, conv(3, 4, 3, padding=1), conv(4, 4, 1), conv(4, 4, 3))],
        12,
    ),
    "atrous pyramid": (
        lambda: [
            Forward(
                atrous_pyramid,
                conv(3, 4, 3, stride=2),
                conv(4, 4, 3, padding=4, dilation=4),
                conv(4, 4, 1),
                conv(12, 4, 1),
            )
        ],
        24,
    ),
    "channels last": (
        lambda: [Forward(channels_last, conv(3, 4, 3), nn.LayerNorm(4), nn.Linear(4, 4), conv(4, 4, 3))],
        12,
    ),
    "attention": (lambda: [Forward(attention, conv(3, 4, 3, stride=2), conv(4, 4, 3))], 13),
    "shuffle": (
        lambda: [Forward(shuffle, conv(3, 4, 3), conv(2, 2, 5, padding=2), conv(4, 4, 3, groups=2))],
        20,
    ),
    "crop": (lambda: [Forward(crop, conv(3, 4, 3), conv(4, 4, 3))], 20),
    "added in place": (
        lambda: [Forward(added_in_place, conv(3, 3, 3, padding=1), conv(3, 3, 5, padding=2))],
        16,
    ),
}
