"""Tensors whose class handles torch's operations itself, and knows nothing of our ops, as DTensor."""

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.utils._pytree import tree_map_only

import fastcnn
from fastcnn import LRN, MaxPool
from fastcnn import functional as F
from fastcnn.testing import assert_close


class Wrapper(torch.Tensor):
    """A tensor that holds another one, and takes torch's operations alone."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), dtype=held.dtype, requires_grad=held.requires_grad
        )

    def __init__(self, held):
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        assert op.namespace in ("aten", "prim")
        args, kwargs = tree_map_only(cls, lambda t: t.held, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, cls, op(*args, **kwargs))


def inputs():
    torch.manual_seed(0)
    shapes = (2, 4, 12, 11), (8, 4, 3, 3), (8,)
    return [torch.randn(shape).requires_grad_() for shape in shapes]


CALLS = {
    "block": lambda x, w, b: F.conv2d_block(x, w, b, padding=1, pool=MaxPool(2)),
    "same": lambda x, w, b: F.conv2d_block(x, w, b, padding="same", dilation=2),
    "recompute": lambda x, w, b: F.conv2d_block(x, w, b, stride=2, recompute=True),
    "epilogue": lambda x, w, b: F.epilogue(x, b[:4], pool=MaxPool(3, 2)) + w.mean(),
    "image": lambda x, w, b: F.epilogue(x[0], b[:4]) + w.mean(),
    "max_pool2d": lambda x, w, b: F.max_pool2d(x, 2) + w.mean() + b.mean(),
}
LRNS = {
    "block with an LRN": lambda x, w, b: F.conv2d_block(x, w, b, lrn=LRN(3, 0.5), pool=MaxPool(2)),
    "pool, lrn": lambda x, w, b: F.epilogue(x, b[:4], lrn=LRN(2), pool=MaxPool(2), order="pool_lrn"),
    "groups": lambda x, w, b: F.epilogue(x, lrn=LRN(3, groups=2)),
    "local_response_norm": lambda x, w, b: F.local_response_norm(x, 3, 0.5),
}


@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize("call", [*CALLS.values(), *LRNS.values()], ids=[*CALLS, *LRNS])
def test_a_wrapper_has_the_results_and_gradients_of_what_it_holds(call, backend):
    given = inputs()
    with fastcnn.use_backend(backend):
        y = call(*map(Wrapper, given))
        expected = call(*given)
        assert isinstance(y, Wrapper)
        assert_close(y.held, expected)
        for grad in (False, True):
            with torch.inference_mode(not grad):
                assert_close(call(*map(Wrapper, given)).held.detach(), expected.detach())


@pytest.fixture
def mesh():
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        pytest.skip("torch's own convolutions and poolings take no DTensor before 2.13")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def results(call, given, grads=True):
    y = call(*given)
    found = [y, *(torch.autograd.grad(y.square().sum(), given, allow_unused=True) if grads else ())]
    return [t.full_tensor() if isinstance(t, DTensor) else t for t in found]


@pytest.mark.parametrize("placement", [Replicate(), Shard(0)], ids=str)
@pytest.mark.parametrize("call", [*CALLS.values(), *LRNS.values()], ids=[*CALLS, *LRNS])
def test_dtensors_have_plain_tensors_results(call, placement, mesh):
    given = inputs()
    placements = placement, Replicate(), Replicate()
    spread = [distribute_tensor(t, mesh, [p]) for t, p in zip(given, placements, strict=True)]
    grads = call in CALLS.values()  # torch 2.13 has no sharding for the backward of an LRN's average
    pairs = zip(results(call, spread, grads), results(call, given, grads), strict=True)
    for a, b in pairs:
        assert (a is None and b is None) or assert_close(a, b, 4) is None


def test_distributed_layers(mesh):
    x = inputs()[0].detach()
    block = fastcnn.nn.ConvBlock2d(4, 8, 3, lrn=LRN(3, 0.5))
    m = nn.Sequential(block, fastcnn.nn.LocalResponseNorm(3), fastcnn.nn.MaxPool2d(2)).eval()
    expected = m(x)
    spread = distribute_module(m, mesh)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert_close(spread(distribute_tensor(x, mesh, [Shard(0)])).full_tensor(), expected)


class Overriding:
    """Not a tensor: it takes over what is called with it, and says what that was."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return function, args, kwargs or {}


X, EPILOGUE = Overriding(), {"relu": False, "lrn": LRN(3), "pool": MaxPool(2), "order": "pool_lrn"}


@pytest.mark.parametrize(("function", "args", "kwargs"), [
    (F.local_response_norm, (X, 3, 0.5, 0.25, 2.0), {}),
    (F.max_pool2d, (X, 3, 4, 1, 2, True, True), {}),
    (F.max_pool2d, (X, 3, 4, 1, 2, True, False), {}),
    (F.epilogue, (X, None), EPILOGUE),
    (F.epilogue, (torch.ones(2), X), EPILOGUE),
    (F.conv2d_block, (X, None, None, 2, 3, 4, 5), EPILOGUE | {"recompute": True}),
    (F.conv2d_block, (torch.ones(2), X, None, 2, 3, 4, 5), EPILOGUE | {"recompute": True}),
    (F.conv2d_block, (torch.ones(2), torch.ones(2), X, 2, 3, 4, 5), EPILOGUE | {"recompute": True}),
])  # fmt: skip
def test_a_type_that_overrides_functions_gets_all_arguments(function, args, kwargs):
    assert function(*args, **kwargs) == (function, args, kwargs)
