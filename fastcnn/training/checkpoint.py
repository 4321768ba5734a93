"""All that training needs to go on as if it had not stopped, in one file."""

from __future__ import annotations

import math
import os
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import _files
from ..models.weights import reason

_FORMAT = "fastcnn training, 2"


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a state of tensors, numbers, strings, lists and dicts; whole or not at all.

    Raises:
        OSError: it can't be written, the disk is full: the file there before is as it was.
    """
    with _files.replacing(path) as file:
        writer = _File(file)
        try:
            torch.save({"format": _FORMAT, **state}, writer)  # type: ignore[arg-type]
        except Exception:
            if writer.error:  # torch tells another story
                raise writer.error from None
            raise


def copied(state: Any) -> Any:
    """Returns a copy of a state on the host, which training no longer changes."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {name: copied(value) for name, value in state.items()}
    return type(state)(map(copied, state)) if type(state) in (list, tuple) else state


class Writer:
    """Writes one thing at a time while training goes on; what goes wrong is raised by the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Starts ``work`` once the work before is done."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=[work])
        self._thread.start()

    def join(self) -> None:
        """Waits until nothing is being written."""
        if self._thread:
            self._thread.join()
        self._thread = None

    def wait(self) -> None:
        """Waits, and raises the error of what was written."""
        self.join()
        self.check()

    def check(self) -> None:
        """Raises the error of what was written, if any."""
        error, self._error = self._error, None
        if error:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # raised where it is seen
            self._error = error


class _File:
    """A file that remembers what went wrong."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def load(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Reads what :func:`save` wrote; None if there is no file. No code in the file is run.

    Args:
        path: the file.
        settings: what decides the weights; the state's "settings" must be the same.

    Raises:
        OSError: it can't be read.
        RuntimeError: it is torn, damaged, no checkpoint, or of other settings; the message says which, and
            which field.
    """
    if not os.path.lexists(path):
        return None
    if not path.is_file():
        raise RuntimeError(f"{path}: no regular file")
    state = _read(path)
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise RuntimeError(f"{path}: not a checkpoint that fastcnn's training wrote")
    theirs = state.get("settings")
    if not isinstance(theirs, dict):
        raise RuntimeError(f"{path}: damaged: its 'settings' is {_short(theirs)}")
    different = [
        f"{name} {theirs.get(name)!r}, now {value!r}"
        for name, value in settings.items()
        if repr(theirs.get(name)) != repr(value)  # a tensor's != is a tensor
    ]
    if different:
        raise RuntimeError(f"{path}: was written with different settings: {'; '.join(different)}")
    for name, is_right in _FIELDS.items():
        if not is_right(state.get(name)):
            raise RuntimeError(f"{path}: damaged: its {name!r} is {_short(state.get(name))}")
    return state


def check_fits(
    state: Mapping[str, Any],
    model: torch.nn.Module,
    make_optimizer: Callable[..., torch.optim.Optimizer],
    scaler: torch.amp.GradScaler,
    *,
    steps_per_epoch: int,
    channels: int,
) -> None:
    """Raises ValueError unless a state that :func:`load` returned is of such a training."""
    epochs, rest = divmod(state["step"], steps_per_epoch)
    if len(state["history"]) != epochs:
        raise ValueError(f"at step {state['step']}, after {len(state['history'])} epochs")
    if len(state["statistics"][0]) not in (1, channels):
        raise ValueError(f"statistics of {len(state['statistics'][0])} channels")
    if rest == 0 and state["sums"].any():
        raise ValueError("losses of an epoch that has not begun")
    own = model.state_dict()
    for name, tensor in state["model"].items():
        if name in own and own[name].dtype != tensor.dtype:
            raise ValueError(f"{name} is {tensor.dtype}")
    types = {name: type(value) for name, value in scaler.state_dict().items()}
    if {name: type(value) for name, value in state["scaler"].items()} != types:
        raise ValueError(f"the scaler's state is {state['scaler']}")
    may_be_empty = state["step"] == 0 or state["bad"] or scaler.is_enabled()  # no step was made
    if state["optimizer"] or not may_be_empty:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        _check_optimizer(state["optimizer"], parameters, make_optimizer, state["step"])


def _check_optimizer(
    given: Mapping[int, Mapping[str, torch.Tensor]],
    parameters: Sequence[torch.Tensor],
    make: Callable[..., torch.optim.Optimizer],
    steps: int,
) -> None:
    """Raises ValueError unless this is such an optimizer's state of these parameters after so many steps."""
    probe = torch.nn.Parameter(torch.zeros(1))
    probe.grad = torch.zeros(1)
    optimizer = make([probe], lr=0.0)
    optimizer.step()
    dims = {name: tensor.dim() for name, tensor in optimizer.state[probe].items()}
    if given.keys() != set(range(len(parameters))):
        raise ValueError(f"the optimizer's state is of parameters {list(given)}, of {len(parameters)}")
    for number, parameter in enumerate(parameters):
        kept, of = given[number], f"of parameter {number}"
        shapes = {name: tuple(parameter.shape) if dim else () for name, dim in dims.items()}
        if {name: tuple(tensor.shape) for name, tensor in kept.items()} != shapes:
            raise ValueError(f"the optimizer's state {of} must have shapes {shapes}")
        for name, tensor in kept.items():
            if tensor.dtype != torch.float32:
                raise ValueError(f"the optimizer's {name} {of} is {tensor.dtype}")
            if tensor.dim() == 0 and not 0 < tensor <= steps:
                raise ValueError(f"the optimizer's {name} {of} is {tensor.item()}")


def _is_finite(value: object, dtype: torch.dtype | None = None) -> bool:
    """Returns whether it is a dense tensor, of this type, without inf and NaN."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
        return False
    return dtype in (None, value.dtype) and bool(value.isfinite().all())


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_epoch(number: int, value: object) -> bool:
    """Checks a plan.Epoch: numbers, errors from 0 to 1, of which the one among five may be missing."""
    if not isinstance(value, (tuple, list)) or len(value) != 8 or (type(value[0]), value[0]) != (int, number):
        return False
    numbers = [v for i, v in enumerate(value) if i and (i != 5 or v is not None)]
    errors = [v for v in value[4:6] if v is not None]
    return all(type(v) is float and math.isfinite(v) for v in numbers) and all(0 <= v <= 1 for v in errors)


def _is_optimizer(value: object) -> bool:
    """Returns whether it has tensors by name for numbers of parameters."""
    if not isinstance(value, dict) or not all(isinstance(kept, dict) for kept in value.values()):
        return False
    return all(_is_finite(tensor) for kept in value.values() for tensor in kept.values())


def _is_statistics(value: object) -> bool:
    """Checks an augment.Statistics."""
    if not isinstance(value, (tuple, list)) or len(value) != 4:
        return False
    if not all(_is_finite(t, torch.float32) for t in value):
        return False
    channels = value[0].numel()
    shapes = [(channels,), (channels,), (channels, channels), (channels,)]
    return [tuple(t.shape) for t in value] == shapes and bool((value[1] > 0).all() and (value[3] >= 0).all())


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "step": _is_count,
    "model": lambda v: isinstance(v, dict) and all(map(_is_finite, v.values())),
    "optimizer": _is_optimizer,
    "scaler": lambda v: isinstance(v, dict),
    "sums": lambda v: _is_finite(v, torch.float64) and tuple(v.shape) == (4,),
    "bad": lambda v: isinstance(v, dict) and all(isinstance(s, str) for pair in v.items() for s in pair),
    "history": lambda v: isinstance(v, list) and all(_is_epoch(i, e) for i, e in enumerate(v, 1)),
    "statistics": _is_statistics,
}


def _short(value: object) -> str:
    """Shortens a value for a message."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of {tuple(value.shape)}" + ("" if _is_finite(value) else ", not all of it numbers")
    told = repr(value)
    return told if len(told) < 60 else f"a {type(value).__name__}, not what it should be"


def _read(path: Path) -> object:
    """Loads a file, checking each part's checksum in the zip archive, which torch does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            torn = archive.testzip()
        if torn is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged archive, or pickle in it, can fail anywhere
        raise RuntimeError(f"{path}: damaged, or no checkpoint: {reason(error)}") from error
    raise RuntimeError(f"{path}: damaged: checksum of {torn}")
