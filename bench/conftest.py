"""What a benchmark here is: contenders in turns, ratios round by round, and how far from the floor."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import openvino
import pytest
import torch
from machine import machine

from fastcnn.bench import rates as machine_rates
from fastcnn.measure import quartiles, seconds, settle

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="session")
def rates() -> dict[str, float]:
    """Bytes per second of a large copy (read and written), and matmul's FLOP/s by dtype, at their best."""
    return machine_rates.rates(DTYPES.values())


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
    """Time contenders in turns; "fastcnn" is what pytest-benchmark sees, the others are in extra_info.

    moved: bytes that must be; flops: of convolutions and dense layers, which with them make the floor.
    """

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
            {"moved": moved, "operations": flops} | extra,
            dtype=dtype,
            seconds={name: quartiles(taken)._asdict() for name, taken in times.items()},
            times_faster={
                name: quartiles([a / b for a, b in zip(taken, ours, strict=True)])._asdict()
                for name, taken in times.items()
            },
            peak_bytes={name: peak_bytes(fn) for name, fn in contenders.items()},
            floor=moved / rates["copy"] + flops / rates[dtype],
            rates=rates,
        )

    return run


def pytest_benchmark_update_machine_info(config, machine_info):
    """Only what bears on speed, and the versions of all contenders."""
    machine_info.clear()
    machine_info.update(machine())
    machine_info["versions"] |= {
        "onnxruntime": onnxruntime.__version__,
        "openvino": openvino.__version__.split("-")[0],
    }


def pytest_benchmark_update_commit_info(config, commit_info):
    commit_info.clear()
