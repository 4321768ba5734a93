"""When a call may skip PyTorch's dispatcher, and that it does not when something listens there."""

import contextlib
import gc
import weakref

import pytest
import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fastcnn
from fastcnn import LRN, MaxPool
from fastcnn import functional as F
from fastcnn._dispatch import can_bypass, needs_grad


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
        assert can_bypass(torch.ones(1), None, torch.ones(1))


def test_recording_gradients_is_no_reason_and_is_told_apart():
    weight = torch.nn.Parameter(torch.ones(1))
    for _ in range(2):  # a look-up the second time
        assert can_bypass(torch.ones(1), weight)
    assert needs_grad(torch.ones(1), None, weight)
    assert not needs_grad(torch.ones(1), None)
    with torch.no_grad():
        assert can_bypass(torch.ones(1), weight)
        assert not needs_grad(torch.ones(1), weight)


@pytest.mark.parametrize("tensor", [
    torch.ones(1).as_subclass(Subclass),
    torch.ones(1, dtype=torch.complex64).conj().imag,
    torch.ones(1, device="meta"),
    torch.ones(1).to_sparse(),
], ids=["subclass", "negative bit", "meta", "sparse"])  # fmt: skip
def test_other_tensors_need_it(tensor):
    assert not can_bypass(tensor)
    assert not can_bypass(torch.ones(1), tensor)


@pytest.mark.parametrize("context", [
    lambda: torch.autocast("cpu"),
    FunctionMode,
    DispatchMode,
    torch.autograd.profiler.profile,
    forward_ad.dual_level,
], ids=["autocast", "function mode", "dispatch mode", "profiler", "forward-mode"])  # fmt: skip
def test_whoever_listens_needs_it(context):
    with context():
        assert not can_bypass(torch.ones(1))


@pytest.mark.parametrize("run", [
    lambda: torch.jit.trace(watch, torch.ones(1), check_trace=False),
    lambda: torch.func.vmap(watch)(torch.ones(2, 1)),
    lambda: torch.func.grad(lambda x: watch(x).sum())(torch.ones(1)),
], ids=["trace", "vmap", "grad"])  # fmt: skip
def test_whoever_transforms_needs_it(run):
    run()


def watch(x):
    assert not can_bypass(x)
    return x + 1


def test_a_mode_sees_the_ops():
    with DispatchMode() as mode, torch.no_grad():
        F.local_response_norm(torch.ones(1, 2, 4, 4), 2)
        F.conv2d_block(torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3), lrn=LRN())
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


BLOCK = {"padding": 1, "lrn": LRN(3, 0.1), "pool": MaxPool(2)}


def leaves(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 7, 6), (4, 3, 3, 3), (4,)
    tensors = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    return [t.requires_grad_() for t in tensors]


def light(y):
    """Whether our Function recorded it, without the dispatcher."""
    return type(y.grad_fn).__name__ == "CallBackward"


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_recorded_without_the_dispatcher_and_are_the_ops(recompute):
    given, results = leaves(), []
    for context in (contextlib.nullcontext, DispatchMode):
        with context():
            y = F.conv2d_block(*given, recompute=recompute, **BLOCK)
            z = F.local_response_norm(y, 3)
        assert light(y) == light(z) == (context is contextlib.nullcontext)
        results.append((z.detach(), *torch.autograd.grad(z.sin().sum(), given)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_only_what_needs_gradients_gets_them():
    x, weight, bias = leaves()
    expected = torch.autograd.grad(F.conv2d_block(x, weight, bias, **BLOCK).sum(), (x, weight, bias))
    for needed in ((0,), (1,), (2,), (0, 2), (1, 2)):
        given = [t.detach().requires_grad_(i in needed) for i, t in enumerate((x, weight, bias))]
        y = F.conv2d_block(*given, **BLOCK)
        assert light(y)
        y.sum().backward()
        for i, t in enumerate(given):
            assert t.grad is None if i not in needed else torch.equal(t.grad, expected[i])


def test_nothing_is_recorded_where_torch_records_nothing():
    given = leaves()
    with torch.inference_mode(), torch.enable_grad():
        assert F.conv2d_block(*given, **BLOCK).grad_fn is None
        assert F.epilogue(given[0], lrn=LRN(3)).is_inference()
    with torch._C._AutoDispatchBelowAutograd():  # as in the kernel of a user's op
        assert F.conv2d_block(*given, **BLOCK).grad_fn is None


def test_a_hessian():
    x, weight, _ = leaves()

    def loss(weight):
        return F.conv2d_block(x.detach(), weight, **BLOCK).square().sum()

    weight = weight.detach()[:1]
    each, batched = (torch.autograd.functional.hessian(loss, weight, vectorize=v) for v in (False, True))
    torch.testing.assert_close(each, batched)
    assert each.abs().sum() > 0


def test_backward_by_the_ops_where_somebody_listens_only_then():
    given = leaves()
    expected = torch.autograd.grad(F.conv2d_block(*given, **BLOCK).sum(), given)
    y = F.conv2d_block(*given, **BLOCK)
    with DispatchMode() as mode:
        found = torch.autograd.grad(y.sum(), given)
    assert "fastcnn.epilogue_backward.default" in mode.seen
    y = F.conv2d_block(*given, **BLOCK)
    batched = torch.autograd.grad(y, given, torch.ones(2, *y.shape, dtype=y.dtype), is_grads_batched=True)
    for a, b, each in zip(found, expected, batched, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(each, torch.stack([b, b]))


def test_saved_tensors_pass_through_hooks_and_are_guarded():
    given, packed = leaves(), []
    expected = torch.autograd.grad(F.conv2d_block(*given, **BLOCK).sum(), given)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: packed.append(t.shape) or t.numpy(force=True).copy(), torch.from_numpy
    ):
        y = F.conv2d_block(*given, **BLOCK)
    assert light(y)
    assert len(packed) == 4  # input, weight, r, argmax
    for a, b in zip(torch.autograd.grad(y.sum(), given), expected, strict=True):
        assert torch.equal(a, b)
    y = F.epilogue(given[0], lrn=LRN(3))
    assert light(y)
    with fastcnn.use_backend("cpu"):
        y = F.conv2d_block(*given, padding=1)
    assert light(y)
    with torch.no_grad():
        y.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_r_is_freed_with_the_graph():
    gc.disable()  # which would find a cycle of r and the node that it is an output of, and is saved by
    try:
        y = F.conv2d_block(*leaves(), **BLOCK)
        assert any(t is not None and t.shape == (2, 4, 7, 6) for t in y.grad_fn.saved_tensors)
        node = weakref.ref(y.grad_fn)
        del y
        assert node() is None
    finally:
        gc.enable()


def test_checkpoint_recomputes_a_block():
    given = leaves()
    expected = torch.autograd.grad(F.conv2d_block(*given, **BLOCK).sum(), given)
    y = checkpoint(lambda *args: F.conv2d_block(*args, **BLOCK), *given, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(y.sum(), given), expected, strict=True):
        assert torch.equal(a, b)
