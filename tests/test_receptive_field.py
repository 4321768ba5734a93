"""Receptive fields: the published ones, and of models in any style, which gradients measure."""

import itertools
import random
import subprocess
import sys

import pytest
import torch
from receptive_models import MEASURED, Forward, conv
from torch import nn
from torch.nn import functional as F
from zoo import ENTRIES
from zoo.flow import FrozenTrunk
from zoo.layers import RawParameters, SharedConv
from zoo.styles import Functional, NormAndPool

import fastcnn
from fastcnn import receptive_field
from fastcnn.models import alexnet, lenet5

pytestmark = pytest.mark.usefixtures("one_thread")


def vgg16(width=4):
    layers, inputs = [], 3
    for outputs, count in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, outputs * width, 3, padding=1), nn.ReLU()]
            inputs = outputs * width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def squares(table, kind=""):
    """(size, jump, padding) of rows of a kind, of which rows and columns are alike."""
    rows = [row for row in table if kind in row.kind]
    assert all(a == b for row in rows for a, b in (row.size, row.jump, row.padding))
    return [(row.size[0], row.jump[0], row.padding[0]) for row in rows]


ALEXNET = [(11, 4, 0), (19, 8, 0), (51, 8, 16), (67, 16, 16), (99, 16, 32), (131, 16, 48), (163, 16, 64)]


ALEXNET += [(195, 32, 64), *3 * [(355, 32, 64)]]


@pytest.mark.parametrize("variant", ["2012", "caffenet", "bvlc"])
def test_alexnet_as_published(variant):
    table = receptive_field(alexnet(variant), 227)
    assert squares(table) == ALEXNET
    assert [row.kind for row in table[:3]] == ["conv2d", "max_pool2d", "conv2d"]
    assert [row.output for row in table[:2]] == [(55, 55), (27, 27)]
    assert [row.name for row in table[:3]] == ["features.conv1", "features.conv1", "features.conv2"]


def test_vgg16_as_published():
    assert [size for size, _, _ in squares(receptive_field(vgg16(), 224), "pool")] == [6, 16, 44, 100, 212]


def test_lenet5_as_published():
    table = receptive_field(lenet5("1998"), 32)
    assert [(row.name, row.size[0]) for row in table[:5]] == [
        ("c1", 5),
        ("s2", 6),
        ("c3", 14),
        ("s4", 16),
        ("c5", 32),
    ]
    sizes = [size for size, _, _ in squares(receptive_field(lenet5(), 32))]
    assert sizes == [5, 6, 14, 16, 32, 32, 32]


def test_five_stacked_3x3_reach_11():
    assert squares(receptive_field(nn.Sequential(*[nn.Conv2d(2, 2, 3) for _ in range(5)]), 11))[-1] == (
        11,
        1,
        0,
    )


def test_is_printed_as_a_table():
    expected = """\
layer              kind         output  field  jump  start  padding
features.c1        conv2d      28 × 28      5     1      2        0
features.c1        max_pool2d  14 × 14      6     2    2.5        0
features.c3        conv2d      10 × 10     14     2    6.5        0
features.c3        max_pool2d    5 × 5     16     4    7.5        0
classifier.c5      linear        1 × 1     32     4   15.5        0
classifier.f6      linear        1 × 1     32     4   15.5        0
classifier.output  linear        1 × 1     32     4   15.5        0"""
    assert str(receptive_field(lenet5(), 32)) == expected


def test_rows_and_columns_are_counted_apart():
    model = nn.Sequential(
        nn.Conv2d(3, 4, (3, 5), (2, 1), (1, 0), (1, 2)),
        nn.AvgPool2d((2, 3), (1, 2), (0, 1)),
        nn.Conv2d(4, 4, (1, 3)),
    )
    first, second, third = receptive_field(model, (41, 60))
    assert (first.output, first.size, first.jump, first.padding) == ((21, 52), (3, 9), (2, 1), (1, 0))
    assert (second.output, second.size, second.jump, second.padding) == ((20, 26), (5, 11), (2, 2), (1, 1))
    assert (third.output, third.size, third.jump, third.padding) == ((20, 24), (5, 15), (2, 2), (1, 1))
    assert (first.start, third.start) == ((0, 4), (1, 6))
    assert "5 × 15" in str(receptive_field(model, (41, 60)))


def test_follows_the_formula():
    draw = random.Random(0)
    for _ in range(20):
        layers, size, jump, padding = [], 1, 1, 0
        for _ in range(4):
            k, s, d = draw.randint(1, 4), draw.randint(1, 2), draw.randint(1, 3)
            p = draw.randint(0, k // 2)
            layers.append(nn.MaxPool2d(k, s, p, d) if draw.random() < 0.3 else nn.Conv2d(2, 2, k, s, p, d))
            size, padding, jump = size + (k - 1) * d * jump, padding + p * jump, jump * s
        assert squares(receptive_field(nn.Sequential(*layers), (2, 150, 150)))[-1] == (size, jump, padding)


def test_layers_written_in_any_way_see_the_same():
    plain, fused = alexnet("2012", fused=False), alexnet("2012")
    expected = receptive_field(fused, 224)
    for model in (plain, fastcnn.fuse(plain), alexnet("2012", norm=None), alexnet("2012", norm="batch")):
        table = receptive_field(model, 224)
        assert squares(table) == squares(expected)
        assert [row.box for row in table] == [row.box for row in expected]


@pytest.mark.parametrize("inplace", [False, True])
def test_units_of_activations_see_no_more(inplace):
    """Those of torch that can work in place, of which older versions say less."""
    kinds = "CELU ELU Hardsigmoid Hardswish Hardtanh LeakyReLU Mish ReLU ReLU6 SELU SiLU"
    layers = [getattr(nn, kind)(inplace=inplace) for kind in kinds.split()]
    (row,) = receptive_field(nn.Sequential(conv(3, 4, 3), *layers), 9)
    assert row.box == (3, 3, 6, 6)


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning", "ignore::DeprecationWarning:torch")
def test_compiled_layers_run_as_written():
    model = nn.Sequential(conv(3, 4, 3), nn.ReLU(), conv(4, 4, 3))
    assert squares(receptive_field(torch.compile(model), 12)) == squares(receptive_field(model, 12))


def test_needs_no_compiler():
    code = (
        "import sys, fastcnn; "
        "fastcnn.receptive_field(fastcnn.models.lenet5(), 28, measure=True); "
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_names_are_of_the_module_that_calls_or_owns_the_weight():
    model = Forward(lambda x, layer: F.conv2d(x, layer.weight), nn.Conv2d(3, 4, 3))
    assert receptive_field(model, 16)[0].name == "layers.0"
    assert [row.name for row in receptive_field(RawParameters(), 20)] == [
        "conv2d",
        "max_pool2d",
        "conv2d",
        "conv2d",
    ]
    assert [row.name for row in receptive_field(Functional(), 32)] == [
        "conv1",
        "max_pool2d",
        "conv2",
        "max_pool2d",
        "fc",
    ]
    assert [row.name for row in receptive_field(SharedConv(), (8, 24, 24))][::2] == 3 * ["conv"]
    assert receptive_field(nn.Conv2d(3, 4, 3), 16)[0].name == "conv2d"


def assert_measured(model, size):
    table = receptive_field(model, size, measure=True)
    assert table == receptive_field(model, size)
    for row in table:
        assert row.box == row.measured_box, (row.name, row.kind)


@pytest.mark.parametrize("name", MEASURED)
def test_gradients_reach_as_far_and_no_farther(name):
    layers, size = MEASURED[name]
    assert_measured(nn.Sequential(*layers()), size)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (lambda: alexnet("2012"), 224),
        (lambda: alexnet("2014"), 230),
        (lenet5, 28),
        (lambda: lenet5("1998"), 32),
    ],
    ids=["alexnet 2012", "alexnet 2014", "lenet5", "lenet5 1998"],
)
def test_gradients_of_models_reach_as_far_and_no_farther(model, size):
    torch.manual_seed(0)
    assert_measured(model(), size)


# They can't be followed, give no gradients, take no image, or pool too few values to find all that is seen.
UNMEASURED = {"UNet", "SegNet", "Autoencoder", "FrozenTrunk", "c3d", "lambdas", "TextCNN"}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_models_as_people_write_them(entry):
    torch.manual_seed(0)
    if entry.name not in UNMEASURED:
        assert_measured(entry.build(), entry.size[1:])


@pytest.mark.parametrize(
    ("name", "operation", "place"),
    [
        ("UNet", "aten.convolution with transposed=True", "up1.up"),
        ("SegNet", "aten.max_unpool2d", "unpool"),
        ("Autoencoder", "aten.convolution with transposed=True", "decoder.0"),
    ],
)
def test_what_cannot_be_followed_is_named(name, operation, place):
    entry = next(entry for entry in ENTRIES if entry.name == name)
    with pytest.raises(RuntimeError, match=f"can't follow {operation}, called in {place}"):
        receptive_field(entry.build(), entry.size[1:])


def written_under_a_view(x, layer):
    y = layer(x)
    flat = y.view(1, 3, -1)
    y += F.max_pool2d(y, 3, 1, 1)
    return flat


def written_by_parts(x, layer):
    y = layer(x)
    z = torch.zeros_like(y)
    z[:, :2] = y[:, :2]
    return z


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, layer: F.interpolate(layer(x), scale_factor=2), "can't follow aten.upsample_nearest2d"),
        (
            lambda x, layer: F.conv2d(x, layer.weight * x.mean()),
            "with another argument that is computed from the image",
        ),
        (written_by_parts, "can't follow aten.copy_ into a tensor that shares memory"),
        (written_under_a_view, "can't follow aten.add_ into a tensor that shares memory"),
        (
            lambda x, layer: (
                x.new_zeros(1, 3, 9, 9).copy_(layer(x)[..., :9, :9]).narrow(2, 0, 3).add_(x.mean())
            ),
            "memory",
        ),
        (
            lambda x, layer: nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")(x),
            "aten.copy_ into a tensor",
        ),
        (
            lambda x, layer: layer(torch.from_numpy(layer(x).detach().numpy())),
            "can't follow how Forward computes",
        ),
        (
            lambda x, layer: layer(F.adaptive_avg_pool2d(x, 7)),
            r"layers.0 \(conv2d\) has units whose fields differ",
        ),
        (lambda x, layer: x + 1, "no layer of Forward sees the image"),
    ],
)
def test_nothing_is_silently_wrong(function, message):
    with pytest.raises(RuntimeError, match=message):
        receptive_field(Forward(function, nn.Conv2d(3, 3, 3)), 16)


def test_what_has_no_gradient_cannot_be_measured():
    with pytest.raises(RuntimeError, match=r"features.0 \(conv2d\) can't be measured: it has no gradient"):
        receptive_field(FrozenTrunk(), 24, measure=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.relu, 8), TypeError, "model must be a torch.nn.Module, but got builtin_function_or_method"),
        ((nn.Conv2d(3, 4, 3), 8.0), TypeError, "input_size must be an int or ints, but got 8.0"),
        ((nn.Conv2d(3, 4, 3), ("8", "8")), TypeError, "input_size must be an int or ints, but got"),
        ((nn.Conv2d(3, 4, 3), 0), ValueError, "all at least 1, but got 0"),
        ((nn.Conv2d(3, 4, 3), (8, -1)), ValueError, r"all at least 1, but got \(8, -1\)"),
        ((nn.Conv2d(3, 4, 3), (1, 3, 8, 8)), ValueError, r"must be H, \(H, W\) or \(C, H, W\)"),
        ((nn.Conv2d(3, 4, 9), 8), RuntimeError, "Kernel size can't be greater than actual input size"),
        ((alexnet("2012"), 100), RuntimeError, "from 196 to 227"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        receptive_field(*arguments)


def test_channels_are_the_first_convolutions_or_given():
    assert receptive_field(nn.Sequential(nn.Conv2d(5, 4, 3)), 8)
    assert receptive_field(nn.Sequential(nn.LazyConv2d(4, 3)), 8)
    assert receptive_field(NormAndPool(), (6, 13, 13))


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 4, 3)).train()
    model[1].eval()
    before, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    hooks = len(nn.modules.module._global_forward_hooks)
    for measure in (False, True):
        receptive_field(model, 12, measure=measure)
    assert [m.training for m in model] == [True, False, True, True]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(generator, torch.get_rng_state())
    with pytest.raises(RuntimeError, match="Kernel size"):
        receptive_field(model, 3)
    assert model.training
    assert len(nn.modules.module._global_forward_hooks) == hooks


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_measures_under_any_mode(mode):
    model = conv(3, 4, 3)
    with mode():
        (row,) = receptive_field(model, 9, measure=True)
    assert row.measured_box == row.box == (3, 3, 6, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_takes_the_models_dtype(dtype):
    model = nn.Sequential(conv(3, 4, 3), nn.ReLU(), conv(4, 4, 3)).to(
        dtype, memory_format=torch.channels_last
    )
    assert_measured(model, 12)


def test_a_unit_that_sees_none_of_the_image():
    (row,) = receptive_field(nn.Sequential(nn.ZeroPad2d((40, 0, 0, 0)), conv(3, 4, 3)), 8, measure=True)
    assert row.padding == (0, 40)
    assert row.box == row.measured_box == (0, 0, 0, 0)


def beside_zeros(x, dim):
    first = x.narrow(dim, 0, 1)
    return torch.cat([first, torch.zeros_like(first)], dim)


@pytest.mark.parametrize(("dim", "size"), [(2, (1, 2)), (3, (2, 1))])
def test_a_line_of_constants_beside_one_of_the_image(dim, size):
    model = nn.Sequential(Forward(lambda x: beside_zeros(x, dim)), conv(3, 4, 2))
    assert_measured(model, 8)
    (row,) = receptive_field(model, 8)
    assert row.size == size


def test_a_layer_on_constants_alone_has_no_row():
    layers = nn.MaxPool2d(2), conv(3, 4, 1), conv(3, 4, 1)

    def forward(x, pool, seen, unseen):
        x = pool(x)
        return seen(x) + unseen(torch.cat([x, torch.zeros_like(x)], 1)[:, 3:])

    assert_measured(Forward(forward, *layers), 2)
    assert [row.name for row in receptive_field(Forward(forward, *layers), 2)] == ["layers.0", "layers.1"]


def test_the_effective_field_is_smaller():
    """Luo et al. 2016: the gradient falls off from the middle, like a Gaussian."""
    model = nn.Sequential(*itertools.chain(*((conv(8 if i else 3, 8, 3), nn.ReLU()) for i in range(6))))
    row = receptive_field(model, 13, measure=True)[-1]
    assert row.gradient.shape == (13, 13)
    assert row.gradient[3:10, 3:10].sum() > row.gradient.sum() / 2
