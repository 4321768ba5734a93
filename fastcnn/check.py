"""``python -m fastcnn check``: every kernel of ours on a device, each in a process of its own.

A kernel that kills its process, or leaves a GPU of no more use to it, so spoils no other's row.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import product
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from ._verify import FAMILIES, example, verify
from .backends import BACKENDS, module
from .backends.plain import epilogue
from .measure import compare
from .stages import DTYPES, Stages

# reference and plain are torch's own functions, with which the others are compared.
_OURS = [name for name in BACKENDS if name not in ("reference", "plain")]
_FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
_TIMED = {"cpu": (4, 96, 27, 27), "cuda": (256, 96, 55, 55)}  # on a GPU so much that launching is hidden
_LIMIT = 120  # seconds, of a row; Triton compiles in some


class Case(NamedTuple):
    """A backend's kernels of one family, dtype and layout."""

    backend: str
    family: str
    dtype: torch.dtype
    layout: str
    device: str


class Outcome(NamedTuple):
    """A check's result: what was wrong, or None; the speed of inference relative to plain torch."""

    wrong: str | None
    speed: float | None = None


def run(device: str, as_json: bool) -> int:
    """Prints a row for each kernel; returns 0 if all are right, 1 if one is not, 2 without such a device."""
    missing = _missing_reason(device)
    if missing is not None:
        print(f"check: {missing}", file=sys.stderr)
        return 2
    rows = []
    for case in _cases(device):
        outcome = in_process(attempt, case)
        rows.append(_row(case, outcome))
        if not as_json:
            print(_line(case, outcome), flush=True)
    if as_json:
        print(json.dumps(rows, indent=1))
    elif not rows:
        print(f"check: only torch's own functions run on {device}; python -m fastcnn info tells why")
    return int(any(row["wrong"] for row in rows))


def _missing_reason(device: str) -> str | None:
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        return f"--device must be cpu or cuda:N, but got {device!r} ({str(error).splitlines()[0]})"
    if wanted.type not in _TIMED:
        return f"--device must be cpu or cuda:N, but got {device!r}"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted.type == "cuda" and (wanted.index or 0) >= count:
        return f"there is no {device}: torch sees {count} GPUs"
    return None


def _cases(device: str) -> Iterator[Case]:
    probe = torch.empty(1, 1, 1, 1, device=device)
    for backend in _OURS:
        if module(backend).unsupported_reason(probe, Stages()) is None:
            for family, dtype, layout in product(FAMILIES, DTYPES, _FORMATS):
                yield Case(backend, family, dtype, layout, device)


def attempt(case: Case) -> Outcome:
    """Checks the kernels, and times them if they are right."""
    backend, stages, device = module(case.backend), FAMILIES[case.family], torch.device(case.device)
    format = _FORMATS[case.layout]
    try:
        verify(backend, *example((2, 48, 21, 19), case.dtype, format, device), stages)
        x, bias = example(_TIMED[device.type], case.dtype, format, device)
        with torch.inference_mode():
            times = compare({
                "plain": lambda: epilogue(x, bias, stages),
                "ours": lambda: backend.epilogue_forward(x, bias, stages, False),
            }, repeats=3)  # fmt: skip
    except Exception as error:
        return Outcome(f"{type(error).__name__}: {error}")
    return Outcome(None, times["plain"].median / times["ours"].median)


def in_process(attempt: Callable[[Case], Outcome], case: Case) -> Outcome:
    """Runs an attempt in a process of its own; returns its outcome, even if the process dies."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sending, attempt, case))
    process.start()
    sending.close()
    process.join(_LIMIT)
    if process.is_alive():
        process.kill()
        process.join()
        return Outcome(f"took more than {_LIMIT} s")
    if process.exitcode != 0:
        return Outcome(f"ended its process: {_ending(process.exitcode or 0)}")
    return receiving.recv()


def _send(connection: Connection, attempt: Callable[[Case], Outcome], case: Case) -> None:
    connection.send(attempt(case))


def _ending(exitcode: int) -> str:
    return signal.Signals(-exitcode).name if exitcode < 0 else f"exit status {exitcode}"


def _row(case: Case, outcome: Outcome) -> dict[str, Any]:
    return {**case._asdict(), "dtype": _short(case.dtype), **outcome._asdict()}


def _line(case: Case, outcome: Outcome) -> str:
    name = f"{case.backend:<7}{case.family:<21}{_short(case.dtype):<10}{case.layout:<15}"
    if outcome.wrong is not None:
        return f"{name}WRONG  {outcome.wrong}"
    return f"{name}right  {outcome.speed:.2f} times plain torch's speed"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
