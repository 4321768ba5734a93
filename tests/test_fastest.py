"""The choice by timing, with a device whose clock is given."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from fastcnn.backends import _fastest
from fastcnn.backends._fastest import chosen, fastest


def image(images):
    return SimpleNamespace(
        is_cuda=True,
        device="cuda:0",
        dtype=torch.float32,
        shape=(images, 3, 8, 8),
        stride=lambda: (192, 64, 8, 1),
    )


class Device:
    """A queue of work, in milliseconds, on a host whose launches take time too."""

    def __init__(self):
        self.now = self.done = 0.0
        self.capturing = False

    def run(self, launching, working):
        """A way: what it takes Python, and what it takes the device."""

        def way():
            self.now += launching
            self.done = max(self.now, self.done) + working

        return way

    def sleep(self, cycles):
        self.run(0.01, cycles / 1.7e6)()

    def synchronize(self):
        self.now = max(self.now, self.done)

    def event(self, **_):
        event = SimpleNamespace(at=None)

        def record():
            event.at = max(self.now, self.done)

        def synchronize():
            self.now = max(self.now, event.at)

        event.record, event.synchronize = record, synchronize
        event.query = lambda: event.at <= self.now
        event.elapsed_time = lambda other: other.at - event.at
        return event


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(_fastest, "_choices", {})
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    monkeypatch.setattr(_fastest, "device_waits", device.sleep)
    monkeypatch.setattr(torch.cuda, "synchronize", device.synchronize)
    monkeypatch.setattr(_fastest.time, "perf_counter", lambda: device.now / 1e3)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: device.capturing)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    with torch.backends.cudnn.flags(benchmark=True):
        yield device


def never():
    raise AssertionError("timed")


@pytest.mark.parametrize(("launching", "taken"), [(0.1, "rearranged"), (1.5, "rearranged"), (30.0, "plain")])
def test_the_longer_of_the_devices_and_pythons_time_decides(device, launching, taken):
    ways = {"plain": device.run(0.01, 2.0), "rearranged": device.run(launching, 1.0)}
    assert fastest(("a key",), image(2), ways) == taken
    (choice,) = chosen()
    assert choice.key[0] == "a key"
    assert choice.way == taken
    assert choice.milliseconds == pytest.approx({"plain": 2.0, "rearranged": max(1.0, launching)})


def test_it_is_timed_once_for_a_key_and_a_shape(device):
    assert (
        fastest(("a key",), image(2), {"plain": device.run(0.1, 1), "other": device.run(0.1, 2)}) == "plain"
    )
    assert fastest(("a key",), image(2), {"plain": never, "other": never}) == "plain"
    assert (
        fastest(("a key",), image(1), {"plain": device.run(0.1, 2), "other": device.run(0.1, 1)}) == "other"
    )
    assert (
        fastest(("b key",), image(2), {"plain": device.run(0.1, 2), "other": device.run(0.1, 1)}) == "other"
    )
    assert [choice.way for choice in chosen()] == ["plain", "other", "other"]


def test_the_first_is_taken_where_nothing_may_be_timed(device):
    ways = {"plain": never, "other": never}
    with torch.backends.cudnn.flags(benchmark=False):
        assert fastest(("a key",), image(2), ways) == "plain"
    assert fastest(("a key",), torch.empty(2), ways) == "plain"
    assert fastest(("a key",), image(2), {"plain": never}) == "plain"
    device.capturing = True
    assert fastest(("a key",), image(2), ways) == "plain"
    assert not chosen()


def test_what_was_chosen_before_is_taken_in_a_capture(device):
    fastest(("a key",), image(2), {"plain": device.run(0.1, 2), "other": device.run(0.1, 1)})
    device.capturing = True
    assert fastest(("a key",), image(2), {"plain": never, "other": never}) == "other"


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, RuntimeError, NotImplementedError])
def test_a_way_that_raises_is_not_taken(device, error):
    def raises():
        raise error

    for ways in (
        {"plain": raises, "other": device.run(0.1, 1)},
        {"plain": device.run(0.1, 1), "other": raises},
    ):
        _fastest._choices.clear()
        taken = fastest(("a key",), image(2), ways)
        assert ways[taken] is not raises
        assert sorted(chosen()[0].milliseconds.values()) == pytest.approx([1, float("inf")])
    assert fastest(("all",), image(2), {"plain": raises, "other": raises}) == "plain"


def test_a_way_that_waits_for_the_device_is_timed_all_the_same(device):
    def waits():
        device.run(0.1, 1.0)()
        device.now = device.done

    assert fastest(("a key",), image(2), {"plain": waits, "other": device.run(0.1, 5.0)}) == "plain"


def test_where_a_gpu_can_not_be_made_to_wait_a_launch_may_be_timed_too(device, monkeypatch):
    monkeypatch.setattr(_fastest, "device_waits", lambda cycles: None)
    ways = {"plain": device.run(0.01, 2.0), "rearranged": device.run(0.1, 1.0)}
    assert fastest(("a key",), image(2), ways) == "rearranged"
    assert chosen()[0].milliseconds == pytest.approx({"plain": 2.0, "rearranged": 1.0}, abs=0.1)
