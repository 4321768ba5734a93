"""fastcnn beside what else a machine has: eager torch, torch.compile, ONNX Runtime, OpenVINO, JAX."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from .. import _files, use_backend
from .._commands import quiet

if TYPE_CHECKING:
    from .result import Result

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def run(quick: bool = False, device: str = "cpu", dtype: str = "float32", save: Path | None = None) -> None:
    """A table to the terminal, each row as soon as its case is done; all of it as JSON to ``save``.

    Args:
        quick: six cases in minutes, instead of all of them.
        device: "cpu" or "cuda".
        dtype: one of DTYPES.
        save: a file, which is replaced.

    Raises:
        ModuleNotFoundError: rich is missing.
        RuntimeError: there is no such device.
        OSError: ``save`` can't be written, which is found out before anything is measured.
        KeyboardInterrupt: Ctrl-C; the rows that were done by then are saved.
    """
    if importlib.util.find_spec("rich") is None:
        raise ModuleNotFoundError("its table needs rich; install with: pip install rich")
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("--device cuda: torch sees no GPU")
    with _opened(save) as file:
        record, interrupted = _measure(quick, device, dtype)
        if file:
            file.write(json.dumps(record, indent=1).encode())
    if interrupted:
        raise interrupted


def _opened(path: Path | None) -> contextlib.AbstractContextManager[IO[bytes] | None]:
    if path is None:
        return contextlib.nullcontext()
    if path.is_dir():
        raise IsADirectoryError(f"--save: {path} is a folder")
    return _files.replacing(path)


def _measure(quick: bool, device: str, dtype: str) -> tuple[dict[str, Any], KeyboardInterrupt | None]:
    """Measures and prints; returns the record to save, and the KeyboardInterrupt that ended it, if any."""
    from rich.console import Console

    from . import contenders, machine
    from .rates import rates
    from .table import Sheet, remarks, show

    console = Console(width=None if sys.stdout.isatty() else 100)
    say = partial(console.print, markup=False, highlight=False)
    facts = machine.facts(device)
    peers = contenders.peers(device, DTYPES[dtype])
    say(machine.describe(facts, dtype))
    for line in _beforehand(quick, device, dtype):
        say(line)
    results: list[Result] = []
    interrupted = None
    with use_backend(facts["backend"]), quiet():
        sheet = Sheet(peers, dtype, rates([DTYPES[dtype]], device))
        try:
            show(console, sheet, _races(quick, device, dtype, peers), results)
        except KeyboardInterrupt as error:
            interrupted = error
    for remark in remarks(results):
        say(remark)
    cases = [result.record(dtype, sheet.rates) for result in results]
    return {"machine_info": facts, "rates": sheet.rates, "cases": cases}, interrupted


def _beforehand(quick: bool, device: str, dtype: str) -> Iterator[str]:
    """Yields notes for the reader of the table."""
    from . import contenders, machine

    if load := machine.load():
        yield load
    if device == "cuda":
        yield "Not timed on a GPU: ONNX Runtime, OpenVINO, JAX"
    elif missing := contenders.not_installed():
        yield f"Not installed: {', '.join(missing)}"
    if device == "cpu":
        yield "Not timed: ONNX Runtime and OpenVINO in training or in channels_last, JAX but for layers"
    if device == "cpu" and dtype != "float32":
        yield f"Not timed in {dtype}: ONNX Runtime; OpenVINO computes in it, but reads and writes float32"
    if quick:
        yield "Not timed with --quick: torch.compile's training step, which takes long to compile"


def _races(
    quick: bool, device: str, dtype: str, peers: list[str]
) -> Iterator[tuple[str, Callable[..., Result]]]:
    from .cases import cases
    from .race import QUICK, THOROUGH, race
    from .rates import CLOCKS

    budget = QUICK if quick else THOROUGH
    for case in cases(quick, device, DTYPES[dtype]):
        torch._dynamo.reset()  # it gives up, in silence, on code it has compiled for too many modules
        chosen = {name: build for name, build in case.builders.items() if name in ("fastcnn", *peers)}
        yield case.name, partial(race, case._replace(builders=chosen), budget, DTYPES[dtype], CLOCKS[device])
