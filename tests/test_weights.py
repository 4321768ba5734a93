"""Published weights into our networks, against the same networks written out in plain torch."""

import math
import os
import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from fastcnn.models import alexnet, lenet5, load_caffe, load_weights
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
SAVERS = {
    "zip.pth": torch.save,
    "legacy.pth": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "w.safetensors": save_file,
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


@pytest.fixture(scope="module")
def blobs():
    return draw_blobs()


@pytest.fixture(scope="module")
def images():
    return draw_images()


@pytest.fixture(scope="module")
def caffenet():
    return blank("caffenet")


@torch.no_grad()
def assert_same_outputs(actual, expected):
    assert_close(actual / expected.abs().max(), expected / expected.abs().max())


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model, before):
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def refused(model, path, match):
    """The error's message; the model is as it was."""
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=match) as error:
        load_weights(model, path)
    assert str(path) in str(error.value)
    assert_unchanged(model, before)
    return str(error.value)


@pytest.mark.parametrize("saver", SAVERS)
def test_a_state_dict_comes_back(saver, tmp_path):
    trained, model = lenet5(), lenet5()
    SAVERS[saver](trained.state_dict(), tmp_path / saver)
    load_weights(model, tmp_path / saver)
    assert_unchanged(model, snapshot(trained))
    load_weights(lenet5(), str(tmp_path / saver))


@pytest.mark.parametrize("saver", ["zip.pth", "legacy.pth"])
def test_torchvisions_checkpoint_loads_as_it_is(saver, tmp_path):
    torch.manual_seed(0)
    theirs, path = torchvisions_alexnet(), tmp_path / saver
    SAVERS[saver](theirs.state_dict(), path)
    ours = blank("2014")
    load_weights(ours, path)
    path.unlink()  # pytest would keep its 244 MB
    with torch.no_grad():
        for size in (224, 63, 250):
            images = torch.randn(2, 3, size, size + 3)
            assert_same_outputs(ours(images), theirs(images))


def test_a_training_checkpoint_is_unwrapped(tmp_path):
    trained, model = lenet5(), lenet5()
    optimizer = torch.optim.SGD(trained.parameters(), 0.1).state_dict()
    checkpoint = {"epoch": 90, "state_dict": trained.state_dict(), "optimizer": optimizer}
    torch.save(checkpoint, tmp_path / "c.pth")
    load_weights(model, tmp_path / "c.pth")
    assert_unchanged(model, snapshot(trained))


def test_values_are_converted_to_the_models_float_type(tmp_path):
    trained, model = lenet5().half(), lenet5()
    torch.save(trained.state_dict(), tmp_path / "half.pth")
    load_weights(model, tmp_path / "half.pth")
    assert_unchanged(model, {name: value.float() for name, value in trained.state_dict().items()})


class Code:
    """Makes a folder beside its file when it is unpickled."""

    def __init__(self, path):
        self.folder = path.with_name("ran")

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def _pickle(path):
    path.write_bytes(pickle.dumps({"features.c1.weight": Code(path)}))


def _zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("holiday/beach.txt", "sand")


def _torchscript(path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)


FOREIGN = {
    "empty": (lambda path: path.touch(), "is empty"),
    "text": (lambda path: path.write_text("The quick brown fox\n" * 9), "no checkpoint of tensors"),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 9), "no checkpoint of tensors"),
    "zip": (_zip, "no checkpoint of tensors"),
    "pickle with code": (_pickle, "no checkpoint of tensors: UnpicklingError"),
    "checkpoint with code": (lambda path: torch.save({"a": Code(path)}, path), "posix.mkdir"),
    "whole module": (lambda path: torch.save(nn.Linear(2, 2), path), "torch.nn.modules.linear.Linear"),
    "torchscript": (_torchscript, "TorchScript"),
    "list": (lambda path: torch.save([torch.zeros(2)], path), "dict of tensors, but holds list"),
    "tensor": (lambda path: torch.save(torch.zeros(2), path), "dict of tensors, but holds Tensor"),
    "number": (lambda path: torch.save({"epoch": 3}, path), "under 'epoch' holds int"),
    "unnamed": (lambda path: torch.save({0: torch.zeros(2)}, path), "under 0 holds Tensor"),
}


@pytest.mark.filterwarnings("ignore:.*(pickle protocol|TorchScript|torch.jit)")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused(kind, suffix, tmp_path):
    make, match = FOREIGN[kind]
    path = tmp_path / f"weights{suffix}"
    make(path)
    message = refused(lenet5(), path, match if suffix == ".pth" else "is empty|SafetensorError")
    assert "`False`" not in message  # torch's advice, to load it unsafely
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("saver", SAVERS)
def test_a_truncated_file_is_refused(saver, tmp_path):
    path, model = tmp_path / saver, lenet5()
    SAVERS[saver](lenet5().state_dict(), path)
    whole = path.read_bytes()
    for size in [*range(0, 400, 17), *range(400, len(whole), len(whole) // 50), len(whole) - 1]:
        path.write_bytes(whole[:size])
        refused(model, path, "is empty|is damaged")


def with_bias(bias):
    """LeNet's state dict with another f6.bias."""
    return lenet5().state_dict() | {"classifier.f6.bias": bias}


def renamed(rename):
    return {rename(name): value for name, value in lenet5().state_dict().items()}


MISFITS = {
    "missing": (renamed(lambda name: name.replace("f6", "f7")), r"classifier\.f6\.bias is missing"),
    "unknown": (renamed(lambda name: name.replace("f6", "f7")), r"classifier\.f7\.bias is not in the model"),
    "shape": (with_bias(torch.zeros(1)), r"classifier\.f6\.bias must have shape \(84,\), but has \(1,\)"),
    "dtype": (
        with_bias(torch.zeros(84, dtype=torch.int8)),
        r"f6\.bias must be torch\.float32, but is torch\.int8",
    ),
    "complex": (with_bias(torch.zeros(84) * 1j), r"but is torch\.complex64"),
    "sparse": (with_bias(torch.zeros(84).to_sparse()), r"f6\.bias must be a dense tensor"),
    "meta": (with_bias(torch.zeros(84, device="meta")), r"f6\.bias must be a dense tensor"),
    "prefix of some": (
        renamed(lambda name: f"module.{name}" if "f6" in name else name),
        r"f6\.weight is missing; classifier\.f6\.bias is missing; module\.classifier\.f6\.weight is not in",
    ),
    "another prefix": (renamed(lambda name: f"net.{name}"), r"features\.c1\.weight is missing"),
    "NaN": (
        with_bias(torch.zeros(84).index_fill(0, torch.tensor([3, 5]), math.nan)),
        r"f6\.bias has 2 values",
    ),
    "inf": (with_bias(torch.full((84,), -math.inf)), r"f6\.bias has 84 values that are inf or NaN"),
    "another network": ({f"layer{i}": torch.zeros(1) for i in range(50)}, "and 55 more$"),
    "nothing": ({}, r"features\.c1\.weight is missing"),
}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_what_trainings_and_wrappers_write_is_loaded(wrapper, prefix, tmp_path):
    wanted = lenet5().state_dict()
    state = {prefix + name: value for name, value in wanted.items()}
    torch.save({"epoch": 3, wrapper: state} if wrapper else state, tmp_path / "w.pth")
    model = lenet5()
    load_weights(model, tmp_path / "w.pth")
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_refused(kind, wrapped, tmp_path):
    state, match = MISFITS[kind]
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "w.pth")
    refused(lenet5(), tmp_path / "w.pth", match)


def test_a_model_without_memory_is_refused(tmp_path):
    torch.save(lenet5().state_dict(), tmp_path / "w.pth")
    with torch.device("meta"):
        model = lenet5()
    with pytest.raises(RuntimeError, match=r"features\.c1\.weight is on the meta device in the model"):
        load_weights(model, tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_missing_file_is_torchs_own_error(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=name):
        load_weights(lenet5(), tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match=name):
        load_weights(lenet5(), tmp_path / name)


def test_safetensors_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    save_file(lenet5().state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"w\.safetensors needs safetensors: pip install safetensors"):
        load_weights(lenet5(), tmp_path / "w.safetensors")


def legacy(blobs):
    """Numpy arrays of four dimensions, as Caffe's files had them until 2014."""
    return {
        layer: [blob.numpy().reshape((1,) * (4 - blob.dim()) + blob.shape) for blob in pair]
        for layer, pair in blobs.items()
    }


@pytest.mark.parametrize("as_file", [lambda blobs: blobs, legacy], ids=["tensors", "legacy numpy"])
@pytest.mark.parametrize("variant", ["caffenet", "bvlc"])
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
