"""The choice by timing, with times that are given."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from fastcnn.backends import _fastest
from fastcnn.backends._fastest import fastest

IMAGE, FEWER = (
    SimpleNamespace(
        is_cuda=True, device="cuda:0", dtype=torch.float32, shape=(n, 3, 8, 8), stride=lambda: (192, 64, 8, 1)
    )
    for n in (2, 1)
)
WAYS = [lambda: "plain", lambda: "rearranged"]


@pytest.fixture
def times(monkeypatch):
    """Milliseconds that the next ways will take."""
    given = [1.0, 2.0, 2.0, 1.0]
    monkeypatch.setattr(_fastest, "_fastest", {})
    monkeypatch.setattr(_fastest, "_milliseconds", lambda run: given.pop(0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    return given


def test_the_fastest_is_taken_where_algorithms_may_be_tried(times):
    assert fastest("a key", FEWER, WAYS) == 0
    assert len(times) == 4
    with torch.backends.cudnn.flags(benchmark=True):
        assert fastest("a key", IMAGE, WAYS) == 0
        assert fastest("a key", FEWER, WAYS) == 1
        assert not times
        assert fastest("a key", IMAGE, WAYS) == 0
        assert fastest("a key", FEWER, WAYS) == 1


def test_a_graph_being_captured_is_not_disturbed(times, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with torch.backends.cudnn.flags(benchmark=True):
        assert fastest("a key", FEWER, WAYS) == 0
    assert len(times) == 4


def test_a_way_without_the_memory_is_not_taken():
    def too_much():
        raise torch.cuda.OutOfMemoryError

    assert _fastest._milliseconds(too_much) == float("inf")
