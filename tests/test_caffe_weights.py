"""Caffe's published blobs in our networks, against Caffe's networks written out in plain torch."""

import numpy as np
import pytest
import torch
from published import (
    CAFFE_SHAPES,
    assert_same_outputs,
    assert_unchanged,
    blank,
    caffes_network,
    draw_blobs,
    draw_images,
    snapshot,
)
from torch import nn

from fastcnn.models import alexnet, load_caffe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def blobs():
    return draw_blobs()


@pytest.fixture(scope="module")
def images():
    return draw_images()


@pytest.fixture(scope="module")
def caffenet():
    return blank("caffenet")


def legacy(blobs):
    """Numpy arrays of four dimensions, as Caffe's files had them until 2014."""
    return {
        layer: [blob.numpy().reshape((1,) * (4 - blob.dim()) + blob.shape) for blob in pair]
        for layer, pair in blobs.items()
    }


@pytest.mark.parametrize(("variant", "as_file"), [("caffenet", dict), ("bvlc", legacy)])
def test_caffes_blobs_give_caffes_outputs(variant, as_file, blobs, images):
    model = blank(variant)
    load_caffe(model, as_file(blobs))
    with torch.no_grad():
        ours = model(images)
        assert_same_outputs(ours, caffes_network(blobs, images, pool_first=variant == "caffenet"))
        assert_same_outputs(model.to(memory_format=torch.channels_last)(images), ours)
        other = caffes_network(blobs, images, pool_first=variant != "caffenet")
        with pytest.raises(AssertionError):
            assert_same_outputs(ours, other)


def test_caffes_blobs_fit_the_plain_network_too(blobs, images):
    model = blank("caffenet", fused=False)
    load_caffe(model, blobs)
    with torch.no_grad():
        assert_same_outputs(model(images), caffes_network(blobs, images, pool_first=True))


def test_rgb_images_give_what_bgr_images_gave(caffenet, blobs, images):
    with torch.no_grad():
        load_caffe(caffenet, blobs, channels="BGR")
        bgr = caffenet(images)
        load_caffe(caffenet, blobs, channels="RGB")
        assert_same_outputs(caffenet(images.flip(1)), bgr)
        with pytest.raises(AssertionError):
            assert_same_outputs(caffenet(images), bgr)
    assert torch.equal(blobs["conv1"][0][:, 0], caffenet.features.conv1.weight[:, 2])


def plausible(**changes):
    """Blobs of the right shapes that take no memory, some of them replaced or left out."""
    one = torch.ones(1)
    right = {layer: (one.expand(shape), one.expand(shape[0])) for layer, shape in CAFFE_SHAPES.items()}
    return {layer: pair for layer, pair in (right | changes).items() if pair is not None}


def replaced(layer, weight=None, bias=None):
    pair = zip((weight, bias), plausible()[layer], strict=True)
    return plausible(**{layer: [right if new is None else new for new, right in pair]})


BAD_BLOBS = {
    "missing": (plausible(fc7=None), RuntimeError, r"fc7\.weight is missing; fc7\.bias is missing"),
    "unknown": (
        plausible(fc9=(torch.ones(1), torch.ones(1))),
        RuntimeError,
        r"fc9\.weight is not in the model",
    ),
    "swapped": (
        replaced("conv1", weight=np.ones((11, 11, 3, 96), np.float32)),
        RuntimeError,
        r"conv1\.weight must have shape \(96, 3, 11, 11\), but has \(11, 11, 3, 96\)",
    ),
    "transposed": (
        replaced("fc6", weight=torch.ones(1).expand(9216, 4096)),
        RuntimeError,
        r"fc6\.weight must have shape \(4096, 9216\), but has \(9216, 4096\)",
    ),
    "legacy of another size": (
        replaced("fc8", weight=torch.ones(1).expand(1, 1, 20, 4096)),
        RuntimeError,
        r"fc8\.weight must have shape \(1000, 4096\), but has \(1, 1, 20, 4096\)",
    ),
    "legacy at the wrong end": (
        replaced("fc8", bias=np.ones((1000, 1, 1, 1), np.float32)),
        RuntimeError,
        r"fc8\.bias must have shape \(1000,\), but has \(1000, 1, 1, 1\)",
    ),
    "integers": (
        replaced("fc8", bias=np.ones(1000, np.int8)),
        RuntimeError,
        r"fc8\.bias must be torch\.float32, but is torch\.int8",
    ),
    "no bias": (plausible(fc7=[torch.ones(1)]), TypeError, r"fc7 must be a pair .*, but got 1 blobs"),
    "no pair": (plausible(fc7=torch.ones(2)), TypeError, "fc7 must be a pair .*, but got Tensor"),
    "no array": (replaced("fc7", bias=object()), RuntimeError, r"fc7\.bias must be an array of numbers"),
    "strings": (replaced("fc7", bias="abc"), TypeError, r"fc7\.bias must be an array of numbers"),
    "objects": (
        replaced("fc7", bias=np.array([None])),
        TypeError,
        r"fc7\.bias must be an array of numbers",
    ),
    "no mapping": ([1, 2], TypeError, "blobs must be a mapping, but got list"),
}


@pytest.mark.parametrize("kind", BAD_BLOBS)
def test_blobs_that_do_not_fit_are_refused(kind, caffenet):
    bad, error, match = BAD_BLOBS[kind]
    before = snapshot(caffenet)
    with pytest.raises(error, match=match):
        load_caffe(caffenet, bad)
    assert_unchanged(caffenet, before)


def test_unknown_channels_are_refused(caffenet):
    before = snapshot(caffenet)
    for channels in ("GBR", "bgr", None):
        with pytest.raises(ValueError, match=rf"one of \('BGR', 'RGB'\), but got {channels!r}"):
            load_caffe(caffenet, plausible(), channels=channels)
    assert_unchanged(caffenet, before)


@pytest.mark.parametrize("variant", ["2012", "2014"])
def test_blobs_go_into_caffes_networks_alone(variant):
    with torch.device("meta"):
        model = alexnet(variant)
    with pytest.raises(RuntimeError, match=rf"alexnet\('bvlc'\).*, but got alexnet\('{variant}'\)"):
        load_caffe(model, plausible())
    with pytest.raises(RuntimeError, match="but got Linear"):
        load_caffe(nn.Linear(2, 2), plausible())


def test_only_three_channels_have_another_order():
    model = blank("caffenet", in_channels=1)
    grey = replaced("conv1", weight=torch.ones(1).expand(96, 1, 11, 11))
    with pytest.raises(RuntimeError, match="channels='RGB' takes 3 channels, but conv1 has 1"):
        load_caffe(model, grey, channels="RGB")
    load_caffe(model, grey)
    assert model.features.conv1.weight.mean() == 1


def test_read_only_and_wide_arrays_are_taken(caffenet, recwarn):
    bias = np.linspace(0, 1, 1000)
    bias.setflags(write=False)
    load_caffe(caffenet, replaced("fc8", bias=bias))
    assert torch.equal(caffenet.classifier.fc8.bias, torch.from_numpy(bias.copy()).float())
    assert not recwarn.list
