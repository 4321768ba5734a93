"""When a call may skip PyTorch's dispatcher, and that it does not when something listens there."""

import contextlib

import pytest
import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastcnn import LRN, MaxPool
from fastcnn import functional as F
from fastcnn._dispatch import idle


class Subclass(torch.Tensor):
    pass


class FunctionMode(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class DispatchMode(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_plain_tensors_need_no_dispatch(context):
    with context():
        assert idle(torch.ones(1), None, torch.ones(1))


def test_parameters_need_it_only_where_gradients_are_recorded():
    weight = torch.nn.Parameter(torch.ones(1))
    assert not idle(torch.ones(1), weight)
    with torch.no_grad():
        assert idle(torch.ones(1), weight)


@pytest.mark.parametrize("tensor", [
    torch.ones(1).as_subclass(Subclass),
    torch.ones(1, dtype=torch.complex64).conj().imag,
    torch.ones(1, device="meta"),
    torch.ones(1).to_sparse(),
], ids=["subclass", "negative bit", "meta", "sparse"])  # fmt: skip
def test_other_tensors_need_it(tensor):
    assert not idle(tensor)
    assert not idle(torch.ones(1), tensor)


@pytest.mark.parametrize("context", [
    lambda: torch.autocast("cpu"),
    FunctionMode,
    DispatchMode,
    torch.autograd.profiler.profile,
    forward_ad.dual_level,
], ids=["autocast", "function mode", "dispatch mode", "profiler", "forward-mode"])  # fmt: skip
def test_whoever_listens_needs_it(context):
    with context():
        assert not idle(torch.ones(1))


@pytest.mark.parametrize("run", [
    lambda: torch.jit.trace(watch, torch.ones(1), check_trace=False),
    lambda: torch.func.vmap(watch)(torch.ones(2, 1)),
    lambda: torch.func.grad(lambda x: watch(x).sum())(torch.ones(1)),
], ids=["trace", "vmap", "grad"])  # fmt: skip
def test_whoever_transforms_needs_it(run):
    run()


def watch(x):
    assert not idle(x)
    return x + 1


def test_a_mode_sees_the_ops():
    with DispatchMode() as mode, torch.no_grad():
        F.max_pool2d(torch.ones(1, 2, 4, 4), 2)
        F.conv2d_block(torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3))
    assert {"fastcnn.epilogue_forward.default", "fastcnn.conv2d_block_forward.default"} <= set(mode.seen)


def test_forward_mode_has_torchs_tangent():
    x, tangent = torch.randn(2, 1, 3, 8, 8, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)

    def plain(x):
        a = torch.nn.functional.conv2d(x, weight).relu()
        return torch.nn.functional.max_pool2d(torch.nn.functional.local_response_norm(a, 3), 2)

    def jvp(fn):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(fn(forward_ad.make_dual(x, tangent))).tangent

    ours = jvp(lambda x: F.conv2d_block(x, weight, lrn=LRN(3), pool=MaxPool(2)))
    torch.testing.assert_close(ours, jvp(plain))
