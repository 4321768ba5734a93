"""What a benchmark here is: contenders in turns, ratios round by round, and how far from the floor."""

from __future__ import annotations

import ctypes
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import openvino
import pytest
import torch

import fastcnn
from fastcnn import _native

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def seconds(fn: Callable[[], object]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def settle(fn: Callable[[], object]) -> None:
    """Let the last contender's threads fall asleep, then warm up this one's, its caches and its pages.

    Without, whoever comes after a library with threads of its own takes up to three times as long.
    """
    time.sleep(0.01)
    for _ in range(3):
        if seconds(fn) > 0.2:
            break


def quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def best_of(fn: Callable[[], object], rounds: int = 9) -> float:
    return min(seconds(fn) for _ in range(rounds))


@pytest.fixture(scope="session")
def rates() -> dict[str, float]:
    """Bytes per second of a large copy (read and written), and matmul's FLOP/s by dtype, at their best."""
    a, b = torch.ones(10 << 20), torch.empty(10 << 20)
    result = {"copy": 2 * a.nbytes / best_of(lambda: b.copy_(a))}
    for name, dtype in DTYPES.items():
        m = torch.randn(2048, 2048).to(dtype)
        result[name] = 2 * 2048**3 / best_of(lambda m=m: m @ m, 3)
    return result


def peak_bytes(fn: Callable[[], object]) -> int:
    """How much more memory than before is resident while fn runs, at most."""

    def status(field: str) -> int:
        return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    fn()
    return status("VmHWM") - before


@pytest.fixture(autouse=True)
def fresh_compiler():
    """torch.compile gives up, in silence, on code it has compiled for too many modules."""
    torch._dynamo.reset()


@pytest.fixture
def race(benchmark, rates):
    """Time contenders in turns; "fastcnn" is what pytest-benchmark sees, the others are in extra_info."""

    def run(contenders, rounds, moved=0, flops=0, dtype="float32", check=True, **extra):
        outputs = {name: fn() for name, fn in contenders.items()}
        if check:
            for name, output in outputs.items():
                error = (output.float() - outputs["eager"].float()).abs().max()
                scale = outputs["eager"].abs().max()
                assert error <= (1e-4 if dtype == "float32" else 0.05) * scale, f"{name} is wrong by {error}"
        del outputs
        times = {name: [] for name in contenders if name != "fastcnn"}

        def others():
            for name, taken in times.items():
                settle(contenders[name])
                taken.append(seconds(contenders[name]))
            settle(contenders["fastcnn"])

        benchmark.pedantic(contenders["fastcnn"], setup=others, rounds=rounds, warmup_rounds=1)
        ours = benchmark.stats.stats.data
        times = {"fastcnn": ours, **{name: taken[-len(ours) :] for name, taken in times.items()}}
        benchmark.extra_info.update(
            extra,
            dtype=dtype,
            seconds={name: quartiles(taken) for name, taken in times.items()},
            times_faster={
                name: quartiles([a / b for a, b in zip(taken, ours, strict=True)])
                for name, taken in times.items()
            },
            peak_bytes={name: peak_bytes(fn) for name, fn in contenders.items()},
            floor=moved / rates["copy"] + flops / rates[dtype],
            rates=rates,
        )

    return run


def pytest_benchmark_update_machine_info(config, machine_info):
    """Only what bears on speed, and the versions of all contenders."""
    cpu = machine_info.get("cpu", {}).get("brand_raw", machine_info["processor"])
    machine_info.clear()
    machine_info.update(
        processor=cpu,
        threads=torch.get_num_threads(),
        extension=_native.load().build_info(),
        versions={
            "fastcnn": fastcnn.__version__,
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "openvino": openvino.__version__.split("-")[0],
        },
    )


def pytest_benchmark_update_commit_info(config, commit_info):
    commit_info.clear()
