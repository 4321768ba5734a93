"""Timing functions in turns, and counting what they keep for backward."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from fastcnn import measure
from fastcnn.measure import Budget, Timing, bytes_kept, compare, in_turns, ratio, seconds


@pytest.fixture
def ticks(monkeypatch):
    """A clock that is one second further each time it is read."""
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=itertools.count().__next__))


def test_short_calls_are_repeated_until_the_clock_is_exact(ticks):
    calls = []
    assert seconds(lambda: calls.append(1), least=0) == 1
    assert len(calls) == 1
    assert seconds(lambda: calls.append(1), least=10) == 0.1
    assert len(calls) == 12


def test_a_gpu_is_waited_for_once_behind_all_calls(monkeypatch, ticks):
    done = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    seconds(lambda: done.append("call"), least=3)
    assert done == ["call", "wait", "call", "call", "call", "wait"]


def test_functions_take_turns_and_are_warmed_up():
    warm_ups, turns = [], []
    fns = {name: lambda name=name: warm_ups.append(name) or name for name in "ab"}

    def clock(fn):
        turns.append(fn())
        return 1.0

    assert in_turns(fns, Budget(3), clock) == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert "".join(turns) == "ababab"
    assert warm_ups[0] == "a"
    assert len(warm_ups) > len(turns)


@pytest.mark.parametrize(("took", "warmed"), [(0.1, 3), (0.3, 1)])
def test_after_a_rest_short_calls_are_warmed_up_again(took, warmed, monkeypatch):
    warm_ups = []
    monkeypatch.setattr(measure, "seconds", warm_ups.append)
    in_turns({"a": print}, Budget(3, rest=1e-9), lambda fn: took)
    assert warm_ups == [print] * warmed


def test_compare_gives_quartiles():
    given = iter([1.0, 2.0, 4.0])
    assert compare({"a": lambda: None}, 3, lambda fn: next(given)) == {"a": Timing(2, 1.5, 3)}
    for timing in compare({"a": lambda: None, "b": lambda: None}, 2).values():
        assert 0 < timing.low <= timing.median <= timing.high
    with pytest.raises(ValueError, match="repeats must be at least 2, but got 1"):
        compare({}, repeats=1)


def test_ratios_are_taken_round_by_round():
    assert ratio([2, 6, 4], [1, 2, 4]) == Timing(2, 1.5, 2.5)


def test_rounds_by_the_clock():
    budget = Budget(5, 4, 12)
    assert [budget.goes_on(2, 100), budget.goes_on(3, 100)] == [True, False]
    assert [budget.goes_on(4, 11), budget.goes_on(4, 13), budget.goes_on(5, 11)] == [True, False, False]
    assert [budget.goes_on(50, 3), budget.goes_on(50, 5)] == [True, False]
    assert [Budget(2).goes_on(1, 100), Budget(2).goes_on(2, 0)] == [True, False]


def test_whoever_fails_on_the_way_is_left_out_or_ends_it():
    fns = {"a": lambda: None, "b": lambda: 1 / 0}
    failed = {}
    assert list(in_turns(fns, Budget(3), failed=failed)) == ["a"]
    assert failed == {"b": "ZeroDivisionError: division by zero"}
    with pytest.raises(ZeroDivisionError):
        in_turns(fns, Budget(3))


def test_bytes_kept_counts_each_storage_once_without_parameters():
    linear = torch.nn.Linear(8, 8, bias=False)
    x = torch.randn(16, 8, requires_grad=True)
    assert bytes_kept(lambda: linear(x), linear.parameters()) == 16 * 8 * 4
    assert bytes_kept(lambda: linear(x) + linear(x), linear.parameters()) == 16 * 8 * 4
    assert bytes_kept(lambda: linear(x)) == (16 * 8 + 8 * 8) * 4
    with torch.no_grad():
        assert bytes_kept(lambda: linear(x)) == 0
