"""Which images the networks take, and what they say of others."""

import pytest
import torch

from fastcnn.models import alexnet, lenet5


def on_meta(*args, **kwargs):
    """A network of shapes alone."""
    with torch.device("meta"):
        return alexnet(*args, **kwargs)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("variant", "size"),
    [("2012", s) for s in (196, 224, 227)]
    + [("2014", s) for s in (63, 64, 224, 227, 300)]
    + [(v, s) for v in ("caffenet", "bvlc") for s in (199, 227, 230)],
)
def test_alexnet_takes(variant, size, fused):
    model = on_meta(variant, num_classes=7, fused=fused)
    images = torch.empty(2, 3, size, size, device="meta")
    assert model(images).shape == (2, 7)
    assert model(images[0]).shape == (7,)


@pytest.mark.parametrize(
    ("variant", "adaptive", "overlap", "least", "most"),
    [
        *[("2012", False, overlap, 196, 227) for overlap in (True, False)],
        *[("2012", True, overlap, 36, None) for overlap in (True, False)],
        *[("bvlc", False, overlap, 199, 230) for overlap in (True, False)],
        *[("bvlc", True, overlap, 39, None) for overlap in (True, False)],
        ("2014", False, True, 223, 254),
        ("2014", False, False, 195, 226),
        ("2014", True, True, 63, None),
        ("2014", True, False, 35, None),
    ],
)
def test_alexnet_takes_with_options(variant, adaptive, overlap, least, most):
    model = on_meta(variant, num_classes=7, adaptive=adaptive, overlap=overlap)
    words = f"from {least} to {most} " if most else f"at least {least} "
    for size in (least, most or 500):
        assert model(torch.empty(2, 3, size, 224, device="meta")).shape == (2, 7)
    for size in (1, least - 1, *([most + 1] if most else [])):
        with pytest.raises(RuntimeError, match=words):
            model(torch.empty(2, 3, 224, size, device="meta"))


@pytest.mark.parametrize(
    ("build", "variant", "size"),
    [(alexnet, "2012", 224), (alexnet, "bvlc", 227), (lenet5, "relu", 28), (lenet5, "caffe", 28)],
)
def test_averaging_a_map_of_the_published_size_changes_no_bit(build, variant, size):
    torch.manual_seed(0)
    flattened, averaged = (build(variant, num_classes=3, in_channels=1, adaptive=a) for a in (False, True))
    averaged.load_state_dict(flattened.state_dict())
    images = torch.randn(2, 1, size, size)
    with torch.no_grad():
        maps = flattened.features(flattened.with_margins(images))
        assert torch.equal(averaged.avgpool(maps), maps)
        assert torch.equal(averaged.eval()(images), flattened.eval()(images))


@pytest.mark.parametrize("variant", ["relu", "caffe"])
@pytest.mark.parametrize("fused", [True, False])
def test_an_averaging_lenet_takes_any_size_from_16_on(variant, fused):
    model = lenet5(variant, adaptive=True, fused=fused)
    for size in (16, 29, 65):
        assert model(torch.rand(2, 1, size, 40)).shape == (2, 10)
    with pytest.raises(RuntimeError, match=r"H and W at least 16 \(28.* as published\), but got shape"):
        model(torch.rand(2, 1, 40, 15))


def test_the_lenet_of_1998_does_not_average():
    with pytest.raises(ValueError, match=r"lenet5\('1998'\): adaptive must be False, but got True"):
        lenet5("1998", adaptive=True)


@pytest.mark.parametrize(
    ("variant", "sizes", "words"),
    [
        ("2012", (195, 228), "from 196 to 227 (224 as published)"),
        ("2014", (62,), "at least 63 (224 as published)"),
        ("caffenet", (198, 231), "from 199 to 230 (227 as published)"),
        ("bvlc", (198, 231), "from 199 to 230 (227 as published)"),
    ],
)
def test_alexnet_says_which_sizes_it_takes(variant, sizes, words):
    model = on_meta(variant)
    for size in sizes:
        for shape in ((1, 3, size, 224), (1, 3, 224, size)):
            with pytest.raises(RuntimeError) as error:
                model(torch.empty(shape, device="meta"))
            assert f"alexnet('{variant}')" in str(error.value)
            assert words in str(error.value)
            assert str(shape) in str(error.value)


@pytest.mark.parametrize("shape", [(1, 1, 30, 30), (1, 1, 28, 31), (28, 28), (28,), (1, 1, 1, 28, 28)])
@pytest.mark.parametrize("fused", [True, False])
def test_lenet_says_which_sizes_it_takes(shape, fused):
    with pytest.raises(RuntimeError, match=r"H and W 28 or 32, but got shape") as error:
        lenet5(fused=fused)(torch.zeros(shape))
    assert str(shape) in str(error.value)
