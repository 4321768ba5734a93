"""Trained weights into a model, all of them or none: a file with a state dict, or Caffe's blobs."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..stages import DTYPES
from ._blocks import ConvNet

_CAFFE_MODELS = ("alexnet('caffenet')", "alexnet('bvlc')")
_CHANNELS = ("BGR", "RGB")
_STATES = ("state_dict", "model_state_dict", "model")  # what checkpoints call the state dict in them
_PREFIXES = ("module.", "_orig_mod.")


def load_weights(model: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Loads a state dict from a file; torchvision's AlexNet checkpoint fits ``alexnet("2014")`` as it is.

    No code in the file is run. Everything is checked first: whatever is raised, the model is as it was.
    Of a training checkpoint, ``{"state_dict": {...}, "epoch": ...}``, "model_state_dict" or, as of
    ``python -m fastcnn train``, "model", the state dict is taken and the rest ignored. What all names begin
    with is left out where a wrapper put it there: DataParallel's "module.", torch.compile's "_orig_mod.".

    Args:
        model: the file must have every one of its parameters and buffers, and nothing else. Values of
            float types are converted to the model's; any other type must be the same.
        path: ``.safetensors``, for which the package safetensors is needed, or from ``torch.save``.

    Raises:
        OSError: the file is missing (FileNotFoundError) or can't be opened.
        ImportError: safetensors is not installed.
        RuntimeError: the file is no state dict, is damaged, has values that are no numbers, or does not fit;
            the message names it.
    """
    path = Path(path)
    source = f"load_weights: {path}"
    given = _without_prefixes(_state_dict(source, _read(source, path)))
    _check(source, model.state_dict(), given)
    model.load_state_dict(given)


def load_with_new_last_layer(model: torch.nn.Module, path: Path) -> tuple[str, int] | None:
    """Loads weights of a network with other classes: its last layer stays as it is.

    Returns:
        That layer's name, and how many classes the file has; None where they are the model's: all is loaded.

    Raises:
        OSError, ImportError, RuntimeError: as of :func:`load_weights`.
    """
    source = f"load_weights: {path}"
    own, given = model.state_dict(), _without_prefixes(_state_dict(source, _read(source, path)))
    weight = next(name for name in reversed(own) if name.endswith("weight"))
    layer = weight.removesuffix(".weight")
    theirs = given.get(weight, own[weight])
    replaced = theirs.dim() == own[weight].dim() and len(theirs) != len(own[weight])
    if replaced:
        given |= {name: value for name, value in own.items() if name.startswith(f"{layer}.")}
    _check(source, own, given)
    model.load_state_dict(given)
    return (layer, len(theirs)) if replaced else None


def load_caffe(model: ConvNet, blobs: Mapping[str, Sequence[Any]], *, channels: str = "BGR") -> None:
    """Loads Caffe's blobs into ``alexnet("caffenet")`` or ``alexnet("bvlc")``.

    They are bvlc_reference_caffenet's and bvlc_alexnet's in Caffe's model zoo (Jia et al. 2014,
    https://caffe.berkeleyvision.org/model_zoo.html), whose names and shapes are the same: nothing tells
    which of the two models they belong to. With pycaffe:

        blobs = {layer: [blob.data for blob in pair] for layer, pair in net.params.items()}

    The models expect (N, 3, 227, 227) images, their values 0 to 255 less the means of blue, green and
    red, (104.007, 116.669, 122.679). Everything is checked first: whatever is raised, the model is as
    it was.

    Args:
        model: one of the two, fused or plain.
        blobs: (weight, bias) for each of conv1 to conv5 and fc6 to fc8, as arrays or tensors in Caffe's
            shapes, (96, 3, 11, 11) and (96,) to (1000, 4096) and (1000,), or with the leading ones of
            old files: (1, 1, 1000, 4096) and (1, 1, 1, 1000).
        channels: how the images that the model will be fed are ordered. "BGR" leaves conv1 as trained;
            "RGB" turns its input channels round. The means have the same order.

    Raises:
        TypeError: blobs is no mapping to pairs; torch's own for what is no array of numbers.
        ValueError: channels is neither "BGR" nor "RGB".
        RuntimeError: another model; a layer missing or unknown, a shape or dtype that does not fit.
    """
    if channels not in _CHANNELS:
        raise ValueError(f"load_caffe: channels must be one of {_CHANNELS}, but got {channels!r}")
    places, own = _by_caffes_names(model)
    given = _named(blobs)
    given = {name: _without_leading_ones(blob, own.get(name)) for name, blob in given.items()}
    _check("load_caffe: blobs", own, given)
    if channels == "RGB":
        given["conv1.weight"] = _turned_round(given["conv1.weight"])
    model.load_state_dict({places[name]: value for name, value in given.items()})


def _read(source: str, path: Path) -> object:
    """Reads the file."""
    if path.exists() and not path.is_file() and not path.is_dir():  # a FIFO would wait for a writer
        raise RuntimeError(f"{source} is no regular file")
    with open(path, "rb") as file:
        if not file.read(1):
            raise RuntimeError(f"{source} is empty")
    load = _safetensors(source) if path.suffix == ".safetensors" else _torch
    try:
        return load(path)
    except Exception as error:  # a damaged file can make torch's unpickler raise anything
        raise RuntimeError(f"{source} is damaged or no checkpoint of tensors: {reason(error)}") from error


def _safetensors(source: str) -> Callable[[Path], object]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{source} needs safetensors: pip install safetensors") from error
    return load_file


def _torch(path: Path) -> object:
    """Loads, mapped where torch can: torchvision's 244 MB need no second copy in memory."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def reason(error: Exception) -> str:
    """Returns the error in a line, without torch's own advice to load unsafely."""
    text = str(error).partition("\n\nCheck the documentation")[0]
    line = text.strip().rpartition("\n")[2].partition(" In PyTorch")[0].strip()
    return f"{type(error).__name__}: {line}".removesuffix(": ")


def _state_dict(source: str, held: object) -> dict[str, Tensor]:
    """Returns ``held``, or the state dict in it, if it is a dict of tensors."""
    found = [held[name] for name in _STATES if name in held] if isinstance(held, dict) else []
    held = next((state for state in found if isinstance(state, dict)), held)
    if not isinstance(held, dict):
        raise RuntimeError(f"{source} must hold a dict of tensors, but holds {type(held).__name__}")
    for name, value in held.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise RuntimeError(
                f"{source} must hold a dict of tensors, but under {name!r} holds {type(value).__name__}"
            )
    return held


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in [
        prefix for prefix in _PREFIXES if state and all(name.startswith(prefix) for name in state)
    ]:
        return _without_prefixes({name.removeprefix(prefix): value for name, value in state.items()})
    return state


def _check(source: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Raises RuntimeError unless ``given`` fits the model's ``own`` parameters, with none left over."""
    wrong = [f"{name} is missing" for name in own if name not in given]
    wrong += [f"{name} is not in the model" for name in given if name not in own]
    reasons = {name: _misfit(own[name], given[name]) for name in own if name in given}
    wrong += [f"{name} {reason}" for name, reason in reasons.items() if reason]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise RuntimeError(f"{source} does not fit: {'; '.join(wrong[:5])}{more}")


def _misfit(own: Tensor, given: Tensor) -> str | None:
    """Returns why ``given`` can't be copied into ``own``."""
    if own.is_meta:
        return "is on the meta device in the model"
    if given.layout != torch.strided or given.is_nested or given.is_meta:
        return "must be a dense tensor, but is sparse, nested or on the meta device"
    if given.shape != own.shape:
        return f"must have shape {tuple(own.shape)}, but has {tuple(given.shape)}"
    if given.dtype != own.dtype and not {given.dtype, own.dtype} <= set(DTYPES):
        return f"must be {own.dtype}, but is {given.dtype}"
    if given.is_floating_point() and not given.isfinite().all():
        return f"has {int((~given.isfinite()).sum())} values that are inf or NaN"
    return None


def _by_caffes_names(model: ConvNet) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Returns the model's own names, and its parameters, by Caffe's: "conv1.weight" to "fc8.bias"."""
    name = getattr(model, "name", type(model).__name__)
    if name not in _CAFFE_MODELS:
        raise RuntimeError(f"load_caffe: model must be one of {_CAFFE_MODELS}, but got {name}")
    own = model.state_dict()
    places = {place.partition(".")[2]: place for place in own}  # without "features." or "classifier."
    return places, {name: own[place] for name, place in places.items()}


def _named(blobs: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
    """Returns each blob as a tensor, by "layer.weight" or "layer.bias"."""
    if not isinstance(blobs, Mapping):
        raise TypeError(f"load_caffe: blobs must be a mapping, but got {type(blobs).__name__}")
    named = {}
    for layer, pair in blobs.items():
        if not isinstance(pair, Sequence) or len(pair) != 2:
            got = f"{len(pair)} blobs" if isinstance(pair, Sequence) else type(pair).__name__
            raise TypeError(f"load_caffe: {layer} must be a pair (weight, bias), but got {got}")
        for part, blob in zip(("weight", "bias"), pair, strict=True):
            named[f"{layer}.{part}"] = _tensor(f"{layer}.{part}", blob)
    return named


def _tensor(name: str, blob: Any) -> Tensor:
    if isinstance(blob, Tensor):
        return blob
    try:
        return torch.tensor(blob)
    except (RuntimeError, TypeError, ValueError) as error:
        raise type(error)(f"load_caffe: {name} must be an array of numbers: {error}") from error


def _without_leading_ones(blob: Tensor, own: Tensor | None) -> Tensor:
    """Drops leading dimensions of 1: old files have four everywhere (Caffe's Blob::ShapeEquals)."""
    if own is None or blob.shape != (1,) * (4 - own.dim()) + tuple(own.shape):
        return blob
    return blob.reshape(own.shape)


def _turned_round(weight: Tensor) -> Tensor:
    """Reorders conv1's weight (O, 3, rows, columns) for the other order of its input channels."""
    if weight.shape[1] != 3:
        raise RuntimeError(f"load_caffe: channels='RGB' takes 3 channels, but conv1 has {weight.shape[1]}")
    return weight.flip(1)
