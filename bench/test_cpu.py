"""Every layer and model on the CPU against its peers; `make bench-cpu` runs it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastcnn.bench import DTYPES, race
from fastcnn.bench.cases import CASES, Case, Kind
from fastcnn.bench.rates import rates
from fastcnn.measure import seconds

OF_TORCH = ("fastcnn", "eager", "torch.compile")
ONE = [name for name in CASES if "block" in name or "step" in name]  # dtype, which their names leave out
BOTH = [name for name in CASES if " map " in name] + ["AlexNet, batch 1", "AlexNet, batch 32"]
NAMES = {f"{name}, float32": (name, "float32") for name in CASES if name not in ONE}
NAMES |= {f"{name}, bfloat16": (name, "bfloat16") for name in BOTH}
NAMES |= {name: (name, "float32") for name in ONE}
REPLAY = SimpleNamespace(now=0.0)


def in_both_formats(name: str, case: str, dtype: torch.dtype) -> Case:
    """Returns the case with torch's contenders once more, weights and input in channels_last."""
    formats = torch.contiguous_format, torch.channels_last
    nchw, last = (CASES[case](name, Kind(dtype=dtype, format=format)) for format in formats)
    again = {f"{who} channels_last": last.builders[who] for who in OF_TORCH}
    return nchw._replace(builders=nchw.builders | again)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.benchmark(timer=lambda: REPLAY.now)
def test_cpu(benchmark, name):
    """Races the contenders; then pytest-benchmark sees fastcnn's times, on a clock that they move on."""
    torch.compiler.reset()  # it gives up, in silence, on code it has compiled for too many modules
    case, dtype = NAMES[name]
    typical = rates([DTYPES["float32"], DTYPES["bfloat16"]])
    case = in_both_formats(name, case, DTYPES[dtype])
    result = race.race(case, race.THOROUGH, DTYPES[dtype], seconds, lambda state: None)
    assert "fastcnn" in result.seconds, result.failed  # a peer that is wrong is left out
    benchmark.extra_info.update(result.record(dtype, typical), rates=typical)
    times = iter(result.seconds["fastcnn"])

    def advance():
        REPLAY.now += next(times)

    benchmark.pedantic(advance, rounds=len(result.seconds["fastcnn"]))
