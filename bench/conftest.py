"""A benchmark here: contenders in turns, as in fastcnn.bench, and pytest-benchmark to count and to record."""

from __future__ import annotations

import math
import time

import pytest
import torch

from fastcnn.bench import DTYPES, machine
from fastcnn.bench import rates as machine_rates
from fastcnn.bench.race import TOLERANCES, check, turn
from fastcnn.bench.rates import CLOCKS
from fastcnn.bench.result import AGAIN, Result
from fastcnn.measure import settle

LEAST, MOST, LONG = 5, 31, 20  # rounds: as many as fit into 20 seconds, within these


@pytest.fixture
def rates() -> dict[str, float]:
    return machine_rates.rates([DTYPES["float32"], DTYPES["bfloat16"]])


@pytest.fixture(autouse=True)
def fresh_compiler():
    """torch.compile gives up, in silence, on code it has compiled for too many modules."""
    torch._dynamo.reset()


@pytest.fixture
def race(benchmark, rates):
    """Time a case's contenders; "fastcnn" is what pytest-benchmark sees, the others are in extra_info."""

    def run(case, dtype):
        runs, failed = check(case.builders, TOLERANCES[DTYPES[dtype]], lambda state: None)
        assert "fastcnn" in runs, failed  # a peer that is wrong is left out, and the record says why
        ours = runs.pop("fastcnn")
        others = {"eager": runs.pop("eager"), AGAIN: ours, **runs}  # again: not right after itself
        taken = {name: [] for name in others}

        def turns():
            for name, fn in others.items():
                taken[name].append(turn(fn, taken[name], CLOCKS["cpu"]))
            settle(ours)

        start = time.perf_counter()
        turns()
        rounds = math.floor(LONG / (time.perf_counter() - start))
        benchmark.pedantic(ours, setup=turns, rounds=min(max(rounds, LEAST), MOST))
        times = {"fastcnn": benchmark.stats.stats.data}
        times |= {name: values[-len(times["fastcnn"]) :] for name, values in taken.items()}
        result = Result(case.name, times, failed, case.moved, case.flops, case.operations)
        benchmark.extra_info.update(result.record(dtype, rates), rates=rates)

    return run


def pytest_report_header():
    return machine.load()


def pytest_benchmark_update_machine_info(config, machine_info):
    """Only what bears on speed, and the versions of all contenders."""
    machine_info.clear()
    machine_info.update(machine.facts("cpu"))


def pytest_benchmark_update_commit_info(config, commit_info):
    for name in commit_info.keys() - {"id", "dirty"}:
        del commit_info[name]
