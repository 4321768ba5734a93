"""Which device is current when the CUDA kernels are launched and after, with two runtimes on one driver."""

import contextlib
import types

import pytest
import torch

from fastcnn.backends import _launch, cuda
from fastcnn.stages import Stages


class Driver:
    """A driver's current device, and what each runtime holds for current: torch's and our own.

    skips: whether a runtime leaves the driver alone that is told the device it holds already.
    """

    def __init__(self, torchs, ours, skips):
        self.current = torchs
        self.held = {"torch": torchs, "ours": ours}
        self.skips, self.launched = skips, []

    def use(self, runtime, device):
        if not (self.skips and self.held[runtime] == device):
            self.current = self.held[runtime] = device

    @contextlib.contextmanager
    def torchs(self, device):
        before = self.held["torch"]
        self.use("torch", device)
        yield
        self.use("torch", before)

    def launch(self, params, device, *_):
        self.use("ours", device)  # cuda/runtime.h
        self.launched.append(self.current)


@pytest.fixture(params=[False, True], ids=["always sets", "skips"])
def skips(request):
    return request.param


@pytest.mark.parametrize("ours", [0, 1])
@pytest.mark.parametrize("torchs", [0, 1])
@pytest.mark.parametrize("device", [0, 1])
def test_the_tensors_device_is_current_and_torchs_again_after(monkeypatch, device, torchs, ours, skips):
    driver = Driver(torchs, ours, skips)
    native = types.SimpleNamespace(
        cuda_epilogue_forward=driver.launch,
        cuda_epilogue_backward=driver.launch,
        cuda_bias_parts=lambda p: 1,
    )
    monkeypatch.setattr(cuda, "_native", types.SimpleNamespace(load=lambda: native))
    monkeypatch.setattr(cuda, "params", lambda *args, **named: None)
    monkeypatch.setattr(cuda, "_where", lambda x: (device, 0))
    monkeypatch.setattr(cuda, "on_device", lambda x: driver.torchs(device))
    x = torch.randn(1, 2, 3, 3)
    y, *_ = cuda.epilogue_forward(x, None, Stages(), save=True)
    assert driver.current == driver.held["torch"] == torchs
    cuda.epilogue_backward(y, y, None, Stages(), x.shape, torch.contiguous_format, True)
    assert driver.current == driver.held["torch"] == torchs
    assert driver.launched == [device, device]


def test_a_gpus_tensor_makes_its_device_torchs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: ("device", device))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    there, here = (
        types.SimpleNamespace(is_cuda=True, device=torch.device(f"cuda:{i}"), get_device=lambda i=i: i)
        for i in (1, 0)
    )
    assert _launch.on_device(there) == ("device", torch.device("cuda:1"))
    with _launch.on_device(here) as nothing:
        assert nothing is None


def test_kernels_are_not_loaded_while_a_stream_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(cuda, "_load", lambda device: None)
    monkeypatch.setattr(cuda, "_no_code", {})
    assert "run the block once on cuda:3 before" in cuda._no_code_reason(3)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert cuda._no_code_reason(3) is None
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert cuda._no_code_reason(3) is None
