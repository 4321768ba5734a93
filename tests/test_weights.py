"""Published weights into our networks, against the same networks written out in plain torch."""

import math
import pickle
import sys
import zipfile

import pytest
import torch
from published import Code, assert_same_outputs, assert_unchanged, blank, snapshot, torchvisions_alexnet
from safetensors.torch import save_file
from torch import nn

from fastcnn.models import lenet5, load_weights

SAVERS = {
    "zip.pth": torch.save,
    "legacy.pth": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "w.safetensors": save_file,
}


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
