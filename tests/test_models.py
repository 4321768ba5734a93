"""The networks against their published figures, and fused against plain."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fastcnn.backends import cpu
from fastcnn.models import alexnet, lenet5
from fastcnn.models.alexnet import TABLES
from fastcnn.nn import ConvBlock2d
from fastcnn.testing import assert_close

VARIANTS = ("2012", "2014", "caffenet", "bvlc")


NAMES_2012 = [f"features.conv{i}" for i in range(1, 6)] + [f"classifier.fc{i}" for i in (6, 7, 8)]


NAMES_2014 = [f"features.{i}" for i in (0, 3, 6, 8, 10)] + [f"classifier.{i}" for i in (1, 4, 6)]


SIZES_2012 = [34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000]


SIZES_2014 = [23_296, 307_392, 663_936, 884_992, 590_080, 37_752_832, 16_781_312, 4_097_000]


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
    """One variant in evaluation mode, fused and plain, with the same weights, torch's usual ones.

    The paper's weights leave values so close together that rounding decides which of them is the
    largest, and so where the gradient goes.
    """
    torch.manual_seed(0)
    fused = alexnet(request.param).eval()
    for layer in fused.modules():
        if isinstance(layer, (torch.nn.Conv2d, ConvBlock2d, torch.nn.Linear)):
            layer.reset_parameters()
    plain = alexnet(request.param, fused=False).eval()
    plain.load_state_dict(fused.state_dict())
    yield fused, plain


@pytest.fixture(scope="module")
def initial():
    """The 2012 network as it starts."""
    torch.manual_seed(0)
    return alexnet("2012")


def on_meta(*args, **kwargs):
    """A network of shapes alone."""
    with torch.device("meta"):
        return alexnet(*args, **kwargs)


def per_layer(model):
    """Layer names and how many parameters each has, in order."""
    items = [(name.rpartition(".")[0], p.numel()) for name, p in model.named_parameters()]
    groups = itertools.groupby(items, key=lambda item: item[0])
    return {name: sum(count for _, count in group) for name, group in groups}


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def gradients(model, images, labels):
    loss = F.cross_entropy(model(images), labels)
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_alexnet_has_the_published_layers_and_sizes(variant, fused):
    names, sizes = (NAMES_2014, SIZES_2014) if variant == "2014" else (NAMES_2012, SIZES_2012)
    layers = per_layer(on_meta(variant, fused=fused))
    assert layers == dict(zip(names, sizes, strict=True))
    assert sum(layers.values()) == (61_100_840 if variant == "2014" else 60_965_224)


@pytest.mark.parametrize("variant", ["2012", "2014"])
@pytest.mark.parametrize("norm", [None, "lrn", "batch"])
def test_alexnet_with_another_norm(variant, norm):
    torch.manual_seed(0)
    fused = alexnet(variant, norm=norm, num_classes=4, in_channels=1)
    plain = alexnet(variant, norm=norm, num_classes=4, in_channels=1, fused=False)
    plain.load_state_dict(fused.state_dict())
    kinds = [type(m).__name__ for m in plain.features]
    assert kinds.count("GroupedLRN") == (2 if norm == "lrn" else 0)
    assert kinds.count("BatchNorm2d") == (5 if norm == "batch" else 0)
    x = torch.randn(2, 1, 227, 227)
    for training in (False, True):
        assert_close(*(m.features.train(training)(x) for m in (fused, plain)), factor=10)


def test_an_unknown_norm_is_named():
    with pytest.raises(ValueError, match=r"alexnet: norm must be one of .* but got 'group'"):
        alexnet(norm="group")


@pytest.mark.parametrize("variant", ["2012", "caffenet", "bvlc"])
def test_one_tower_has_half_of_the_kernels_but_for_the_last_convolution(variant):
    model = on_meta(variant, towers=1)
    layers = list(per_layer(model).values())
    assert layers == [17_472, 153_728, 221_376, 331_968, 442_624, *SIZES_2012[5:]]
    assert sum(layers) == 59_798_312
    assert [block.out_channels for block in model.features] == [48, 128, 192, 192, 256]
    assert {block.groups for block in model.features} == {1}
    for block, published in zip(model.features[:2], on_meta(variant).features[:2], strict=True):
        assert block.stages.lrn == replace(published.stages.lrn, groups=1)
        assert block.stages.order == published.stages.order


@pytest.mark.parametrize(("variant", "towers"), [("2012", 2), ("bvlc", 2), ("2014", 1)])
def test_its_own_number_of_towers_is_the_published_network(variant, towers):
    assert repr(on_meta(variant, towers=towers)) == repr(on_meta(variant))
    assert on_meta(variant, towers=towers).name == f"alexnet('{variant}')"


@pytest.mark.parametrize(("variant", "towers", "words"), [("2012", 3, "1 or 2"), ("2014", 2, "1")])
def test_other_numbers_of_towers_are_refused(variant, towers, words):
    with pytest.raises(
        ValueError, match=rf"alexnet\('{variant}'\): towers must be {words}, but got {towers}"
    ):
        alexnet(variant, towers=towers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pooling_without_overlap_gives_maps_of_the_same_sizes(variant):
    def maps(model):
        x = torch.empty(1, 3, size, size, device="meta")
        return [(x := layer(x)).shape for layer in model.features]

    size = 224 if variant == "2014" else 227
    plain = on_meta(variant, overlap=False, fused=False)
    pools = [m for m in plain.features if isinstance(m, torch.nn.MaxPool2d)]
    assert [(m.kernel_size, m.stride, m.ceil_mode) for m in pools] == [((2, 2), (2, 2), False)] * 3
    assert maps(on_meta(variant, overlap=False)) == maps(on_meta(variant))
    assert shapes(plain) == shapes(on_meta(variant))


@pytest.mark.parametrize("options", [{"towers": 1}, {"overlap": False}, {"adaptive": True}])
def test_alexnet_with_options_fused_and_plain(options):
    torch.manual_seed(0)
    fused, plain = (alexnet(num_classes=4, in_channels=1, fused=f, **options) for f in (True, False))
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(2, 1, 240 if "adaptive" in options else 200, 200)
    y, expected = (m.avgpool(m.features(m.with_margins(x))) for m in (fused, plain))
    assert y.shape == (2, 256, 6, 6)
    assert_close(y, expected, factor=10)


def test_lenet_has_the_published_sizes():
    layers = per_layer(lenet5())
    assert layers == {
        "features.c1": 156,
        "features.c3": 2_416,
        "classifier.c5": 48_120,
        "classifier.f6": 10_164,
        "classifier.output": 850,
    }
    assert sum(layers.values()) == 61_706


def test_caffes_lenet_has_its_sizes_and_no_relu_before_pooling():
    fused, plain = lenet5("caffe"), lenet5("caffe", fused=False)
    assert list(per_layer(fused).values()) == [520, 25_050, 400_500, 5_010]
    assert sum(per_layer(fused).values()) == 431_080
    assert [type(m).__name__ for m in plain.features] == ["Conv2d", "MaxPool2d"] * 2
    plain.load_state_dict(fused.state_dict())
    images = torch.rand(3, 1, 28, 28)
    assert_close(fused(images), plain(images))


def test_2014_has_the_keys_shapes_and_order_of_torchvisions_checkpoint():
    convs = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3)}
    convs[10] = (256, 256, 3, 3)
    denses = {1: (4096, 9216), 4: (4096, 4096), 6: (1000, 4096)}
    expected = []
    for part, layers in (("features", convs), ("classifier", denses)):
        for place, shape in layers.items():
            expected.append((f"{part}.{place}.weight", shape))
            expected.append((f"{part}.{place}.bias", shape[:1]))
    assert list(shapes(on_meta("2014")).items()) == expected


def test_caffe_blobs_fit():
    weights = [shape for name, shape in shapes(on_meta("caffenet")).items() if "weight" in name]
    assert weights == [
        (96, 3, 11, 11),
        (256, 48, 5, 5),
        (384, 256, 3, 3),
        (384, 192, 3, 3),
        (256, 192, 3, 3),
        (4096, 9216),
        (4096, 4096),
        (1000, 4096),
    ]


def test_dropout_comes_before_the_layers_it_should():
    def followed(model):
        layers = list(model.classifier)
        names = [name for name, _ in model.classifier.named_children()]
        pairs = zip(layers, names[1:], strict=False)
        return [(after, layer.p) for layer, after in pairs if isinstance(layer, torch.nn.Dropout)]

    assert followed(on_meta("2014")) == [("1", 0.5), ("4", 0.5)]
    assert followed(on_meta("2012", dropout=0.3)) == [("fc7", 0.3), ("fc8", 0.3)]


def test_blocks_are_fused_or_are_not():
    for variant in VARIANTS:
        fused, plain = on_meta(variant), on_meta(variant, fused=False)
        assert [type(m) for m in fused.features] == [ConvBlock2d] * 5
        assert not any(type(m).__module__.startswith("fastcnn.nn") for m in plain.modules())


@pytest.mark.parametrize(
    ("variant", "order", "groups", "k"),
    [("2012", "lrn_pool", 2, 2), ("caffenet", "pool_lrn", 1, 1), ("bvlc", "lrn_pool", 1, 1)],
)
def test_normalisation_is_as_published(variant, order, groups, k):
    for block in on_meta(variant).features[:2]:
        stages = block.stages
        assert (stages.order, stages.lrn.groups, stages.lrn.k) == (order, groups, k)
        assert (stages.lrn.size, stages.lrn.alpha, stages.lrn.beta) == (5, 1e-4, 0.75)


def test_fused_and_plain_are_the_same_network(pair):
    fused, plain = pair
    assert list(shapes(fused).items()) == list(shapes(plain).items())
    fused.load_state_dict(plain.state_dict())
    size = 63 if fused.name == "alexnet('2014')" else 227
    images, labels = torch.randn(2, 3, size, size), torch.tensor([3, 5])
    with torch.no_grad():
        y = plain(images)
        assert_close(fused(images) / y.abs().max(), y / y.abs().max())
    for got, expected in zip(*(gradients(m, images, labels) for m in pair), strict=True):
        scale = expected.abs().max()
        assert_close(got / scale, expected / scale)


def test_the_same_seed_gives_the_same_weights():
    torch.manual_seed(3)
    fused = lenet5()
    torch.manual_seed(3)
    plain = lenet5(fused=False)
    for name, value in fused.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])


@pytest.mark.parametrize("size", [28, 32])
def test_lenet_fused_and_plain(size):
    fused, plain = lenet5(), lenet5(fused=False)
    plain.load_state_dict(fused.state_dict())
    fused.load_state_dict(plain.state_dict())
    images, labels = torch.rand(4, 1, size, size), torch.tensor([1, 2, 3, 4])
    y = fused(images)
    assert y.shape == (4, 10)
    assert_close(y, plain(images))
    assert_close(fused(images[0]), y[0])
    for got, expected in zip(*(gradients(m, images, labels) for m in (fused, plain)), strict=True):
        assert_close(got, expected)


def test_lenet_pads_28_evenly():
    model, images = lenet5(), torch.rand(2, 1, 28, 28)
    assert torch.equal(model(images), model(F.pad(images, (2, 2, 2, 2))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_runs_fused_and_plain(dtype):
    convs = [m.features[0:4] if p else m.features[0] for m, p in _first_blocks(dtype)]
    images = torch.randn(1, 3, 63, 63, dtype=dtype)
    fused, plain = (conv(images) for conv in convs)
    assert fused.dtype == plain.dtype == dtype
    assert_close(fused, plain)


def _first_blocks(dtype):
    """AlexNet-2012 on real memory for its first block alone."""
    networks = []
    for plain in (False, True):
        network = on_meta(fused=not plain)
        torch.manual_seed(0)
        network.features[0].to_empty(device="cpu").to(dtype)
        torch.nn.init.normal_(network.features[0].weight, std=0.05)
        torch.nn.init.zeros_(network.features[0].bias)
        networks.append((network, plain))
    return networks


def test_2012_starts_as_the_paper_says(initial):
    for name, value in initial.named_parameters():
        layer = name.split(".")[1]
        if name.endswith("weight"):
            assert value.std().item() == pytest.approx(0.01, rel=0.02)
            assert abs(value.mean().item()) < 1e-4
        else:
            one = layer in ("conv2", "conv4", "conv5", "fc6", "fc7")
            assert torch.equal(value, torch.full_like(value, float(one)))


@pytest.mark.parametrize(("variant", "bias"), [("caffenet", 1), ("bvlc", 0.1)])
def test_caffes_networks_start_as_its_files_say(variant, bias):
    table = TABLES[variant]
    assert [row.std for row in table.convs] == [0.01] * 5
    assert [row.bias for row in table.convs] == [0, bias, 0, bias, bias]
    assert [(row.std, row.bias) for row in table.denses] == [(0.005, bias)] * 2 + [(0.01, 0)]


def test_2012_pads_224_right_and_below(initial):
    images = torch.rand(1, 3, 224, 224)
    initial.eval()
    with torch.no_grad():
        assert torch.equal(initial(images), initial(F.pad(images, (0, 3, 0, 3))))


def test_2012_drops_in_training_alone(initial):
    images = torch.randn(1, 3, 224, 224)
    initial.train()
    with torch.no_grad():
        assert not torch.equal(initial(images), initial(images))
        initial.eval()
        assert torch.equal(initial(images), initial(images))


@pytest.mark.parametrize("build", [alexnet, lenet5])
def test_an_unknown_variant_names_those_there_are(build):
    known = str(VARIANTS) if build is alexnet else "('1998', 'relu', 'caffe')"
    with pytest.raises(ValueError, match=r"variant must be one of .*, but got '1066'") as error:
        build("1066")
    assert known in str(error.value)


def test_a_dropout_that_is_no_probability_is_refused():
    with pytest.raises(ValueError, match=r"between 0 and 1, but got 1\.5"):
        lenet5(dropout=1.5)


@pytest.mark.parametrize("fused", [True, False])
def test_wrong_channels_get_torchs_own_error(fused):
    with pytest.raises(RuntimeError, match="to have 1 channels, but got 3 channels instead"):
        lenet5(fused=fused)(torch.zeros(2, 3, 32, 32))


def test_other_channels_and_classes():
    assert lenet5(num_classes=3, in_channels=2)(torch.zeros(5, 2, 32, 32)).shape == (5, 3)
    assert shapes(on_meta(in_channels=1))["features.conv1.weight"] == (96, 1, 11, 11)


@pytest.mark.parametrize("prefers", [False, True])
def test_half_precision_runs_in_the_faster_format(prefers, monkeypatch):
    monkeypatch.setattr(cpu, "prefers_channels_last", lambda dtype: prefers and dtype == torch.bfloat16)
    torch.manual_seed(0)
    net, x, seen = lenet5("relu", in_channels=3).eval(), torch.randn(2, 3, 28, 28), []
    net.features[1].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        expected = net(x)
        found = net.bfloat16()(x.bfloat16())
        one = net(x[0].bfloat16())
    net(x.bfloat16())  # where gradients are recorded it stays as it is
    assert [t.is_contiguous(memory_format=torch.channels_last) for t in seen[:2]] == [False, prefers]
    assert seen[-1].is_contiguous() and found.is_contiguous()
    for y, right in ((found, expected), (one, expected[0])):
        torch.testing.assert_close(y.float(), right, rtol=0.05, atol=0.02)
