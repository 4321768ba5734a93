"""Contenders in turns on one GPU: each answer is compared with plain torch's first, then all are timed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from triton.testing import do_bench

Run = Callable[[], Any]
Row = dict[str, Any]
Rows = Iterator[tuple[str, Callable[[], Row]]]  # their names, and who measures them

DEVICE = "cuda"
ROUNDS = 3
CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
TOLERANCES = {torch.bfloat16: 0.05, torch.float16: 0.05, torch.float32: 1e-3}  # of the largest value


def tensor(*shape: int, dtype: torch.dtype, format: torch.memory_format = CONTIGUOUS) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=dtype).contiguous(memory_format=format)


def gpu_ms(fn: Run) -> list[float]:
    """Quartiles of the GPU's milliseconds, with L2 flushed before each call."""
    return do_bench(fn, warmup=5, rep=30, quantiles=[0.25, 0.5, 0.75])


def wall_ms(fn: Run, calls: int = 50) -> list[float]:
    """Quartiles of the milliseconds of a call among many in a row: with what launching costs in Python."""

    def once() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            fn()
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start) / calls

    once()
    return statistics.quantiles([once() for _ in range(5)], n=4, method="inclusive")


TIMERS = {"GPU time": gpu_ms, "wall time": wall_ms}


def median_ms(fn: Run) -> float:
    return statistics.median(gpu_ms(fn)[1] for _ in range(ROUNDS))


@cache
def copy_rate() -> float:
    """Bytes per second of a large copy, read and written."""
    a = torch.ones(256 << 20, dtype=torch.uint8, device=DEVICE)
    b = torch.empty_like(a)
    return 2e3 * a.nbytes / median_ms(lambda: b.copy_(a))


def matmul_rate(dtype: torch.dtype, precision: str = "highest", size: int = 8192) -> float:
    """FLOP/s; precision: of float32, in torch's words."""
    a, before = tensor(size, size, dtype=dtype), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        return 2e3 * size**3 / median_ms(lambda: a @ a)
    finally:
        torch.set_float32_matmul_precision(before)


def peak_bytes(fn: Run) -> int:
    """How much more memory than before is allocated while fn runs, at most."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fn()
    return torch.cuda.max_memory_allocated() - before


def settled(fn: Run) -> list[Tensor]:
    """What the third call gives: compilers and CUDA graphs have settled by then.

    Of a tuple, which holds gradients, an image's are summed over its pixels: where two values of a
    pooling window are nearly the same, either may get the gradient.
    """
    for _ in range(2):
        fn()
    result = fn()
    if isinstance(result, Tensor):
        return [result.detach().float()]
    return [t.sum((2, 3), dtype=torch.float32) if t.dim() == 4 else t.float() for t in result]


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:500]}"


def disagreements(contenders: dict[str, Run], reference: str, tolerance: float) -> dict[str, str]:
    """Who fails, or gives something else than the reference does."""
    expected, errors = settled(contenders[reference]), {}
    for name, fn in contenders.items():
        if name == reference:
            continue
        try:
            pairs = zip(settled(fn), expected, strict=True)
            off = [((a - e).abs().max() / e.abs().max()).item() for a, e in pairs]
        except Exception as error:
            errors[name] = describe(error)
        else:
            if not all(share <= tolerance for share in off):  # NaN is no more right than a large one
                errors[name] = f"wrong by {max(off):.3g} of the largest value, not {tolerance:g}"
    return errors


def spread(low: float, median: float, high: float) -> dict[str, float]:
    return {"low": low, "median": median, "high": high}


def race(
    contenders: dict[str, Run],
    dtype: torch.dtype,
    reference: str = "eager",
    timer: Callable[[Run], list[float]] = gpu_ms,
) -> Row:
    """Everyone's milliseconds, and how many times the first one's in the same rounds.

    Whoever is wrong is not timed; "errors" says why.
    """
    errors = disagreements(contenders, reference, TOLERANCES[dtype])
    first, right = next(iter(contenders)), [name for name in contenders if name not in errors]
    rounds = [{name: timer(contenders[name]) for name in right} for _ in range(ROUNDS)]
    row: Row = {"ms": {}, "times": {}, "errors": errors}
    for name in right:
        quartiles = zip(*(r[name] for r in rounds), strict=True)
        row["ms"][name] = spread(*map(statistics.median, quartiles))
        if name != first and first in right:
            times = [r[name][1] / r[first][1] for r in rounds]
            row["times"][name] = spread(min(times), statistics.median(times), max(times))
    return row


def measured(row: Callable[[], Row]) -> Row:
    """A row, or what went wrong with it.

    Raises:
        RuntimeError: the last row left a CUDA context in which nothing runs any more.
    """
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    try:
        return row()
    except Exception as error:
        return {"errors": {"row": describe(error)}}


def compiled(fn: Callable[..., Any], mode: str = "default") -> Callable[..., Any]:
    return torch.compile(fn, dynamic=False, mode=mode)


def graphed(fn: Run) -> Run:
    """fn's launches, captured once in a CUDA graph and replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            fn()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = fn()

    def replay() -> Any:
        graph.replay()
        return output

    return replay
