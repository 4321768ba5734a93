"""fastcnn beside what else a machine has: eager torch, torch.compile, ONNX Runtime, OpenVINO, JAX."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import torch

from .. import _files, use_backend
from .._commands import quiet
from ..measure import CLOCKS

if TYPE_CHECKING:
    from .cases import Case
    from .race import Result

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Options(NamedTuple):
    """Says what to time.

    quick: six cases in minutes, instead of all of them; device: "cpu" or "cuda"; dtype: one of DTYPES; model:
    "package.module:function" that makes a model of the user's, to be timed instead; shape: of its input.
    """

    quick: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    model: str | None = None
    shape: tuple[int, ...] = ()


def run(options: Options, save: Path | None = None) -> None:
    """Prints a table, each row as soon as its case is done; writes all of it as JSON to ``save``.

    Raises:
        ModuleNotFoundError: rich is missing.
        RuntimeError: there is no such device.
        OSError: ``save`` can't be written, which is found out before anything is measured.
        KeyboardInterrupt: Ctrl-C; the rows that were done by then are saved.
    """
    if importlib.util.find_spec("rich") is None:
        raise ModuleNotFoundError("its table needs rich; install with: pip install rich")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("--device cuda: torch sees no GPU")
    with _opened(save) as file:
        record, interrupted = _measure(options)
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


def _measure(options: Options) -> tuple[dict[str, Any], KeyboardInterrupt | None]:
    """Measures and prints; returns the record to save, and the KeyboardInterrupt that ended it, if any."""
    from rich.console import Console

    from . import contenders, machine
    from .rates import rates
    from .table import Sheet, remarks, show

    device, dtype = options.device, options.dtype
    console = Console(width=None if sys.stdout.isatty() else 100)
    say = partial(console.print, markup=False, highlight=False)
    found = _cases(options)
    facts = machine.facts(device)
    peers = ["eager", "torch.compile"] if options.model else contenders.peers(device, DTYPES[dtype])
    say(machine.describe(facts, dtype))
    for line in _beforehand(options):
        say(line)
    results: list[Result] = []
    interrupted = None
    with use_backend(facts["backend"]), quiet():
        sheet = Sheet(peers, dtype, rates([DTYPES[dtype]], device))
        try:
            show(console, sheet, _races(found, options, peers), results)
        except KeyboardInterrupt as error:
            interrupted = error
    for remark in remarks(results):
        say(remark)
    cases = [result.record(dtype, sheet.rates) for result in results]
    return {"machine_info": facts, "rates": sheet.rates, "cases": cases}, interrupted


def _beforehand(options: Options) -> Iterator[str]:
    """Yields notes for the reader of the table."""
    from . import contenders, machine

    if load := machine.load():
        yield load
    if options.model:
        yield f"{options.model} on {list(options.shape)}, as it is and with fastcnn.fuse"
        return
    if options.device == "cuda":
        yield "Not timed on a GPU: ONNX Runtime, OpenVINO, JAX"
    elif missing := contenders.not_installed():
        yield f"Not installed: {', '.join(missing)}"
    if options.device == "cpu":
        yield "Not timed: ONNX Runtime and OpenVINO in training, JAX but for layers"
        if options.dtype != "float32":
            yield f"Not timed in {options.dtype}: ONNX Runtime; OpenVINO reads and writes float32 around it"
    if options.quick:
        yield "Not timed with --quick: torch.compile's training step, which takes long to compile"


def _cases(options: Options) -> Iterator[Case]:
    """Returns the cases, each made when it is asked for; a model of the user's is loaded at once."""
    from .cases import Kind, cases
    from .own import own_cases

    kind = Kind(options.device, DTYPES[options.dtype])
    return own_cases(options.model, options.shape, kind) if options.model else cases(options.quick, kind)


def _races(
    found: Iterator[Case], options: Options, peers: list[str]
) -> Iterator[tuple[str, Callable[..., Result]]]:
    from . import race

    budget = race.QUICK if options.quick else race.THOROUGH
    for case in found:
        torch.compiler.reset()  # it gives up, in silence, on code it has compiled for too many modules
        chosen = {name: build for name, build in case.builders.items() if name in ("fastcnn", *peers)}
        case = case._replace(builders=chosen)
        yield case.name, partial(race.race, case, budget, DTYPES[options.dtype], CLOCKS[options.device])
