"""The ops in torch's machinery: derivatives, opcheck, autocast, transforms, what is kept."""

from itertools import product
from unittest import mock

import counting
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import fastcnn
from fastcnn import LRN, MaxPool, backends
from fastcnn import functional as F
from fastcnn.backends import cpu, reference
from fastcnn.testing import assert_close

POOLS = [None, MaxPool(3, 2), MaxPool(2, 1, 1, 2, True)]
NORMS = [None, LRN(5, 0.1, 0.75, 2.0), LRN(4, 0.1, 0.6, 1.0, 2), LRN(3, 0.2, 0.5), LRN(3, 0.2, 1.0)]
OPTIONS = [
    (order, lrn, pool, relu, bias)
    for order, lrn, pool, relu, bias in product(
        ("lrn_pool", "pool_lrn"), NORMS, POOLS, (True, False), (True, False)
    )
    if lrn or pool or relu or bias
]


pytestmark = pytest.mark.usefixtures("kernels_of_ours")


def leaves(bias, *shape, dtype=torch.float64):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    return (x, torch.randn(shape[1], dtype=dtype, requires_grad=True)) if bias else (x,)


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_derivatives_of_the_epilogue(format):
    for order, lrn, pool, relu, bias in OPTIONS:
        x, *rest = leaves(bias, 2, 4, 5, 6)
        x = x.detach().contiguous(memory_format=format).requires_grad_()

        def f(x, *bias, relu=relu, lrn=lrn, pool=pool, order=order):
            return F.epilogue(x, *bias, relu=relu, lrn=lrn, pool=pool, order=order)

        assert torch.autograd.gradcheck(f, (x, *rest), fast_mode=True)
        assert torch.autograd.gradgradcheck(f, (x, *rest), fast_mode=True)


BLOCKS = [
    {"lrn": LRN(3, 0.1, 0.75, 2.0), "pool": MaxPool(3, 2)},
    {"lrn": LRN(3, 0.1, 0.75, 2.0), "pool": MaxPool(3, 2), "order": "pool_lrn"},
    {"lrn": LRN(3, 0.1), "relu": False},
    {"pool": MaxPool(2)},
    {},
]


def block_leaves(dtype=torch.float64):
    torch.manual_seed(0)
    shapes = ((2, 4, 6, 7), (4, 2, 3, 3), (4,))
    return tuple(torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes)


@pytest.mark.parametrize("options", BLOCKS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("recompute", [False, True])
def test_derivatives_of_the_block(options, bias, recompute):
    def f(x, weight, bias=None):
        return F.conv2d_block(x, weight, bias, padding=1, groups=2, recompute=recompute, **options)

    args = block_leaves()[: 3 if bias else 2]
    assert torch.autograd.gradcheck(f, args, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, args, fast_mode=True)


EPILOGUE = [
    (True, [3.0, 0.1, 0.75, 2.0, 1.0], [3, 3, 2, 2, 0, 0, 1, 1, 0], "lrn_pool"),
    (True, [3.0, 0.1, 0.75, 2.0, 2.0], [2, 2, 2, 1, 1, 1, 1, 1, 1], "pool_lrn"),
    (False, [4.0, 0.1, 0.75, 2.0, 1.0], None, "lrn_pool"),
    (True, None, [2, 2, 2, 2, 0, 0, 1, 1, 0], "lrn_pool"),
    (False, None, [2, 2, 2, 2, 0, 0, 1, 1, 0], "lrn_pool"),
    (True, None, None, "lrn_pool"),
]


@pytest.mark.parametrize(
    ("backend", "stages"), [*product(["cpu"], EPILOGUE), ("reference", EPILOGUE[0])], ids=str
)
def test_opcheck(backend, stages):
    ops = torch.ops.fastcnn
    x, bias = leaves(True, 2, 4, 9, 7, dtype=torch.float32)
    _, weight, _ = block_leaves(torch.float32)
    image = torch.randn(2, 4, 9, 9, requires_grad=True)
    conv = ([1, 1], [1, 1], [1, 1], 2)
    with fastcnn.use_backend(backend):
        torch.library.opcheck(ops.epilogue.default, (x, bias, *stages))
        torch.library.opcheck(ops.epilogue_forward.default, (x, bias, *stages, True))
        torch.library.opcheck(ops.conv2d_block.default, (image, weight, bias, *conv, *stages, False))
        for how in ((False, False), (True, False), (True, True)):
            args = (image, weight, bias, *conv, *stages, *how)
            torch.library.opcheck(ops.conv2d_block_forward.default, args)
        with torch.no_grad():
            y, r, argmax = ops.epilogue_forward(x, bias, *stages, True)
            kept = r if r.numel() else (y if stages[0] and not stages[2] else None)
            rest = (argmax if stages[2] else None, *stages, list(x.shape))
            grad = torch.randn_like(y)
            for channels_last, need_bias in ((False, True), (True, False)):
                args = (grad, kept, *rest, channels_last, need_bias)
                torch.library.opcheck(ops.epilogue_backward.default, args)
                format = torch.channels_last if channels_last else torch.contiguous_format
                assert ops.epilogue_backward(*args)[0].is_contiguous(memory_format=format)


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
def test_opcheck_of_the_convolutions_backward(needed):
    """A gradient is in its tensor's format."""
    conv = ([1, 1], [1, 1], [1, 1], 2)

    def last(t):
        return t.contiguous(memory_format=torch.channels_last)

    def turned(t):
        return t.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)

    for layouts in ((torch.clone, torch.clone), (last, torch.clone), (turned, last)):
        tensors = zip(layouts, block_leaves(torch.float32), strict=False)
        image, weight = (layout(t.detach()) for layout, t in tensors)
        grad = torch.randn_like(torch.conv2d(image, weight, None, *conv))
        args = (grad, image, weight, *conv, needed)
        torch.library.opcheck(torch.ops.fastcnn.convolution_backward.default, args)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_bias_of_another_size_is_refused(device):
    """Each op checks it: an exported program may call any. So it does on the meta device."""
    x, weight, bias = (t.detach().to(device) for t in block_leaves(torch.float32))
    conv, stages = ([1, 1], [1, 1], [1, 1], 2), (*EPILOGUE[0], True)
    message = r"expected bias to be 1-dimensional with 4 .* size \[3\]"
    epilogue, block = (x, bias[:3], *stages), (x, weight, bias[:3], *conv, *stages)
    calls = (
        (torch.ops.fastcnn.epilogue, epilogue[:-1]),
        (torch.ops.fastcnn.epilogue_forward, epilogue),
        (torch.ops.fastcnn.conv2d_block_forward, (*block, False)),
        (torch.ops.fastcnn.conv2d_block, block),  # on the meta device by torch, which doesn't check
    )
    for op, args in calls if device == "cpu" else calls[:-1]:
        with pytest.raises(RuntimeError, match=message):
            op(*args)


def test_an_op_runs_kernels_of_ours_even_where_torch_is_as_fast(monkeypatch):
    """Torch's own functions would not save the call of the op, which was made already."""
    monkeypatch.setattr(cpu, "slower_reason", lambda *_: "torch is as fast")
    kernels = {}
    for name in ("conv_block_forward", "epilogue_forward", "epilogue_backward"):
        kernels[name] = mock.Mock(wraps=getattr(cpu, name))
        monkeypatch.setattr(cpu, name, kernels[name])
    x, weight, bias = block_leaves(torch.float32)
    conv, stages = ([1, 1], [1, 1], [1, 1], 2), EPILOGUE[0]
    with torch.profiler.profile():
        torch.ops.fastcnn.conv2d_block(x, weight, bias, *conv, *stages, False).sum().backward()
        kernels["conv_block_forward"].assert_called_once()
        kernels["epilogue_backward"].assert_called_once()
        for kernel in kernels.values():
            kernel.reset_mock()
        torch.ops.fastcnn.epilogue(x, bias, *stages).sum().backward()
        kernels["epilogue_forward"].assert_called_once()
        kernels["epilogue_backward"].assert_called_once()


def test_a_counter_of_flops_is_shown_torchs_own_operations():
    x, weight, bias = block_leaves(torch.float32)
    conv, stages = ([1, 1], [1, 1], [1, 1], 2), EPILOGUE[0]
    with counting.Count() as seen, FlopCounterMode(display=False) as counter:
        y = torch.ops.fastcnn.conv2d_block(x, weight, bias, *conv, *stages, False)
        torch.ops.fastcnn.epilogue(x, bias, *stages)
    assert {operation.namespace for operation in seen.operations} == {"aten"}
    assert counter.get_total_flops() == 2 * torch.conv2d(x, weight, None, *conv).numel() * weight[0].numel()
    assert_close(y, F.conv2d_block(x, weight, bias, padding=1, groups=2, **BLOCKS[0]))


def test_ops_of_the_backend_plain_are_torchs_own():
    x, weight, bias = block_leaves(torch.float32)
    with fastcnn.use_backend("plain"), counting.Count() as seen:
        torch.ops.fastcnn.conv2d_block(x, weight, bias, [1, 1], [1, 1], [1, 1], 2, *EPILOGUE[0], False)
        torch.ops.fastcnn.epilogue(x, bias, *EPILOGUE[0])
    assert {operation.namespace for operation in seen.operations} == {"aten"}


def test_backward_runs_in_forwards_backend():
    """Also by way of the ops, and if another backend was chosen in between."""
    x, weight, bias = block_leaves()
    with fastcnn.use_backend("reference"), torch.profiler.profile():
        for y in (F.epilogue(x, lrn=LRN(3)), F.conv2d_block(x, weight, bias, groups=2, lrn=LRN(3))):
            with mock.patch.object(reference, "epilogue_backward", wraps=reference.epilogue_backward) as run:
                with fastcnn.use_backend("auto"):
                    y.sum().backward()
                assert run.call_count == 1


def test_autocast_runs_the_block_in_its_dtype():
    x, weight, bias = block_leaves(torch.float32)
    options = {"groups": 2, "lrn": LRN(3), "pool": MaxPool(2)}
    with torch.autocast("cpu", torch.bfloat16):
        y = F.conv2d_block(x, weight, bias, **options)
        halves = (x.bfloat16(), weight.bfloat16(), bias.bfloat16())
        assert y.dtype == torch.bfloat16
        # a bias in float32 beside a convolution's output in bfloat16
        assert F.epilogue(y.detach(), bias, lrn=LRN(3)).dtype == torch.bfloat16
        assert F.local_response_norm(x, 3).dtype == torch.float32
    assert torch.equal(y, F.conv2d_block(*halves, **options))
    y.sum().backward()
    assert weight.grad.dtype == torch.float32


def test_autocast_takes_what_torch_does():
    """float32 becomes bfloat16, with a bias or without; float64 stays; integers are refused."""
    for dtype, expected in ((torch.float32, torch.bfloat16), (torch.float64, torch.float64)):
        x, weight, bias = block_leaves(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            for rest in ((), (bias,)):
                y = F.conv2d_block(x, weight, *rest, groups=2, pool=MaxPool(2))
                assert y.dtype == torch.conv2d(x, weight, *rest, groups=2).dtype == expected
    x, *rest = block_leaves(torch.float32)
    args = *rest, [1, 1], [1, 1], [1, 1], 2
    with torch.autocast("cpu", torch.bfloat16):
        for block in (torch.conv2d, lambda *args: torch.ops.fastcnn.conv2d_block(*args, *EPILOGUE[0], False)):
            with pytest.raises(RuntimeError, match="type"):
                block(x.int(), *args)


def test_autocast_of_a_gpu(monkeypatch):
    """Fake tensors need no GPU."""
    monkeypatch.setitem(backends.PREFERENCE, "cuda", ())
    ops, conv = torch.ops.fastcnn, ([1, 1], [1, 1], [1, 1], 2)
    with FakeTensorMode():
        x, weight, bias = (torch.empty(t.shape, device="cuda") for t in block_leaves())
        torch.set_autocast_enabled("cuda", True)
        try:
            y = ops.conv2d_block(x, weight, bias, *conv, *EPILOGUE[0], False)
            assert ops.epilogue(y, bias, *EPILOGUE[-1]).dtype == y.dtype == torch.float16
        finally:
            torch.set_autocast_enabled("cuda", False)


def test_function_transforms():
    x, weight, bias = block_leaves()
    options = {"groups": 2, "lrn": LRN(3, 0.1), "pool": MaxPool(2)}

    def loss(x, weight, bias):
        return F.conv2d_block(x, weight, bias, **options).square().sum()

    expected = torch.autograd.grad(loss(x, weight, bias), (x, weight, bias))
    actual = torch.func.grad(loss, (0, 1, 2))(x, weight, bias)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b)
    each = torch.func.vmap(torch.func.grad(loss, 1), (0, None, None))(x.detach(), weight, bias)
    assert_close(each.sum(0), expected[1])
    _, tangent = torch.func.jvp(
        lambda b: loss(x.detach(), weight.detach(), b), (bias.detach(),), (bias.detach(),)
    )
    assert_close(tangent, (expected[2] * bias).sum())


@pytest.mark.parametrize("dims", [(0, None, None), (None, 0, None), (0, 0, 0), (1, None, 0), (None, None, 0)])
def test_vmap(dims):
    args = [
        t.detach() if d is None else torch.stack([t.detach(), 2 * t.detach(), -t.detach()], d)
        for t, d in zip(block_leaves(), dims, strict=True)
    ]

    def f(x, weight, bias):
        y = F.conv2d_block(x, weight, bias, groups=2, lrn=LRN(3, 0.1), pool=MaxPool(2))
        return F.epilogue(y, bias, relu=False, lrn=LRN(3))

    expected = torch.stack(
        [f(*(t if d is None else t.select(d, i) for t, d in zip(args, dims, strict=True))) for i in range(3)]
    )
    assert_close(torch.func.vmap(f, dims)(*args), expected)


def test_mapped_images_are_a_larger_batch():
    """One call of the kernels."""
    x, weight, bias = (t.detach() for t in block_leaves(torch.float32))
    images = torch.stack([x, 2 * x])
    options = {"lrn": LRN(3, 0.1), "pool": MaxPool(2)}
    with mock.patch.object(cpu, "conv_block_forward", wraps=cpu.conv_block_forward) as block:
        torch.func.vmap(lambda x: F.conv2d_block(x, weight, bias, groups=2, **options))(images)
    with mock.patch.object(cpu, "epilogue_forward", wraps=cpu.epilogue_forward) as epilogue:
        torch.func.vmap(lambda x: F.epilogue(x, bias, **options))(images)
    for call in (block.call_args, epilogue.call_args):
        assert call.args[0].shape == (4, *x.shape[1:])
    assert block.call_count == epilogue.call_count == 1


def kept_bytes(f, *inputs):
    """Bytes that backward keeps besides what exists anyway: the inputs and the output."""
    seen = {}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = f(*inputs)
    for t in (y, *inputs):
        seen.pop(t.untyped_storage().data_ptr(), None)
    return sum(seen.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_keeps_r_once_and_one_byte_per_pooled_value(dtype):
    x, bias = leaves(True, 2, 8, 15, 15, dtype=dtype)
    full, pooled = x.numel() * x.element_size(), 2 * 8 * 7 * 7
    lrn, pool = LRN(), MaxPool(3, 2)
    assert kept_bytes(lambda x, b: F.epilogue(x, b, lrn=lrn, pool=pool), x, bias) == full + pooled
    assert kept_bytes(lambda x: F.epilogue(x, lrn=lrn), x) == full
    assert kept_bytes(lambda x: F.local_response_norm(x, 5), x) == 0
    assert kept_bytes(lambda x: F.max_pool2d(x, 3, 2), x) == pooled
    assert kept_bytes(lambda x: F.epilogue(x, pool=pool), x) == pooled
    small = pooled * x.element_size()
    assert kept_bytes(lambda x: F.epilogue(x, lrn=lrn, pool=pool, order="pool_lrn"), x) == small + pooled
    weight = torch.randn(8, 8, 1, 1, dtype=dtype, requires_grad=True)
    block = kept_bytes(lambda x, w, b: F.conv2d_block(x, w, b, lrn=lrn, pool=pool), x, weight, bias)
    assert block == full + pooled
    again = kept_bytes(
        lambda x, w, b: F.conv2d_block(x, w, b, lrn=lrn, pool=pool, recompute=True), x, weight, bias
    )
    assert again == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", BLOCKS, ids=str)
def test_recomputed_gradients_have_the_same_bits(options, dtype):
    results = []
    for recompute in (False, True):
        args = block_leaves(dtype)
        y = F.conv2d_block(*args, padding=1, groups=2, recompute=recompute, **options)
        results.append((y.detach(), *torch.autograd.grad(y.sin().sum(), args)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("order", ["lrn_pool", "pool_lrn"])
def test_the_same_bits_for_every_run_and_thread_count(format, order, monkeypatch):
    monkeypatch.setattr(cpu, "GRAIN", 1)  # as many threads as there are, for so few values
    torch.manual_seed(0)
    x = torch.randn(5, 24, 27, 27).contiguous(memory_format=format)
    x[0, 3, 1], x[4, 7, 20] = 1e12, 0.0  # values that the fast power leaves to the exact one
    x.requires_grad_()
    bias = torch.randn(24, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4, 8, 4):
            torch.set_num_threads(count)
            y = F.epilogue(x, bias, lrn=LRN(), pool=MaxPool(3, 2), order=order)
            grads = torch.autograd.grad(y.sin().sum(), (x, bias))
            results.append((y.detach(), *grads))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
