"""Outputs that others write into: where torch's layers allow it ours do, since backward keeps no output."""

import functools

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as TF

import fastcnn
from fastcnn import LRN, MaxPool, _native
from fastcnn import functional as F
from fastcnn.backends import cuda
from fastcnn.stages import NO_PLACE, ORDERS, Stages
from fastcnn.testing import DTYPES, assert_close, backends, devices, plain_epilogue

ON_HOST = "host" in _native.load().build_info()["cuda"]
RUNS = [(device, backend) for device in devices() for backend in ["auto", "plain", *backends(device)]]
RUNS = [*dict.fromkeys(RUNS), *([("cpu", "cuda")] if ON_HOST else [])]
FORMATS = [torch.contiguous_format, torch.channels_last]
POOLS = [MaxPool(2), MaxPool(3, 2, 1), MaxPool(3, 1, 1, 1, True)]


@pytest.fixture(params=RUNS, ids=lambda run: "-".join(run))
def run(request, monkeypatch):
    device, backend = request.param
    if device == "cpu" and backend == "cuda":
        monkeypatch.setattr(cuda, "unsupported_reason", lambda x, stages: None)
        monkeypatch.setattr(cuda, "_where", lambda x: (0, 0))
    with fastcnn.use_backend(backend):
        yield device, backend


@pytest.fixture
def device(run):
    return run[0]


SHAPES = (2, 3, 5, 7), (5, 3, 3, 3), (5,)  # of x, weight and bias


def whole(shapes, device, dtype, format=torch.contiguous_format):
    """Small whole numbers, of which sums are exact in each dtype, and many are equal or cut."""
    generator = torch.Generator().manual_seed(0)
    values = (torch.randint(-3, 3, shape, generator=generator).to(device, dtype) for shape in shapes)
    return [t.contiguous(memory_format=format) if t.dim() == 4 else t for t in values]


# What a user may do with an output.


def masked(y):
    y[y < 0.1] = 0
    return y


def through_a_view(y):
    y.permute(0, 2, 3, 1)[..., 0].fill_(3)
    y.detach()[:, 1:2, :1].mul_(-1)
    return y


def added(y):
    y += torch.arange(y.shape[1], device=y.device, dtype=y.dtype).view(-1, 1, 1)
    return y


def dropped(y):
    torch.manual_seed(0)
    return TF.dropout(y, 0.5, inplace=True)


WRITES = {
    "mask": masked,
    "mul_": lambda y: y.mul_(2),
    "relu_": lambda y: y.relu_(),
    "dropout": dropped,
    "+=": added,
    "view": through_a_view,
    "module": nn.Hardtanh(-1, 2, inplace=True),
}

# How an output comes about: ours, and torch's layers.


def layer(x, weight, bias, pool):
    module = fastcnn.nn.ConvBlock2d(3, 5, 3, padding=1, pool=pool)
    return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x,))


CALLS = {
    "ConvBlock2d": layer,
    "conv2d_block": lambda x, weight, bias, pool: F.conv2d_block(x, weight, bias, padding=1, pool=pool),
    "recompute": lambda x, weight, bias, pool: F.conv2d_block(
        x, weight, bias, padding=1, pool=pool, recompute=True
    ),
    "epilogue": lambda x, weight, bias, pool: F.epilogue(x, bias[: x.shape[1]], pool=pool),
    "max_pool2d": lambda x, weight, bias, pool: F.max_pool2d(x, *pool.pairs, pool.ceil_mode),
    "MaxPool2d": lambda x, weight, bias, pool: fastcnn.nn.MaxPool2d(*pool.pairs, ceil_mode=pool.ceil_mode)(x),
}


def torchs(name, x, weight, bias, pool):
    if name == "epilogue":
        x = (x + bias[: x.shape[1]].view(-1, 1, 1)).relu()
    elif "ool2d" not in name:
        x = TF.conv2d(x, weight, bias, padding=1).relu()
    return TF.max_pool2d(x, *pool.pairs, pool.ceil_mode)


def results(make, write, leaves):
    """Returns what was written, and the gradients; of whole numbers, of which any sum is exact."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in leaves]
    y = write(make(*leaves))
    grad = torch.arange(y.numel(), device=y.device).remainder(5).sub(2).view(y.shape).to(y.dtype)
    return y, *torch.autograd.grad(y, leaves, grad, materialize_grads=True)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS)
def test_writes_give_what_they_give_behind_torchs_pooling(run, call, dtype, format):
    device, backend = run
    leaves = whole(SHAPES, device, dtype, format)
    some = len(WRITES)
    if (device, backend) == ("cpu", "triton"):  # its interpreter takes long
        some = len(POOLS) if dtype == torch.float32 else 1
    for i, write in enumerate(list(WRITES.values())[:some]):
        pool = POOLS[i % len(POOLS)]
        ours = results(functools.partial(CALLS[call], pool=pool), write, leaves)
        theirs = results(functools.partial(torchs, call, pool=pool), write, leaves)
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("pool", [None, MaxPool(3, 2)], ids=["", "pool"])
def test_writes_after_an_lrn_change_no_gradient_behind_them(device, pool, order, dtype, format):
    leaves = whole(((1, 3, 4, 5), (8, 3, 3, 3), (8,)), device, dtype, format)
    how = {"lrn": LRN(5, 0.1), "pool": pool, "order": order}

    def block(x, weight, bias):
        return F.conv2d_block(x, weight, bias, padding=1, **how)

    def alone(x, weight, bias):
        return F.epilogue(x, relu=False, **how) + weight.sum() + bias.sum()  # a view

    for make in (block, lambda x, _, bias: F.epilogue(x, bias[:3], **how), alone):
        ours = results(make, masked, leaves)
        apart = results(make, lambda y: masked(y.clone()), leaves)
        assert all(map(torch.equal, ours, apart))


SPECIALS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0, 2.0, -3.0, -4.0, -5.0)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", [*POOLS, MaxPool((2, 3), (2, 1), (1, 0), 1, True)], ids=str)
def test_gradients_pass_where_torchs_do(device, pool, dtype, format):
    generator = torch.Generator().manual_seed(0)
    pick = torch.randint(0, len(SPECIALS), (2, 8, 9, 11), generator=generator)
    x = torch.tensor(SPECIALS)[pick]
    x[0, :4] = -x[0, :4].nan_to_num(1).abs()  # windows of which nothing is left
    x = x.to(device, dtype).contiguous(memory_format=format)
    ours, theirs = (
        results(make, lambda y: y, [x])
        for make in (lambda x: F.epilogue(x, pool=pool), lambda x: plain_epilogue(x, None, Stages(pool=pool)))
    )
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)
    assert not ours[1][0, :4].any()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kernel", [(1, 254), (15, 17), (3, 85), (16, 16), (1, 256)])
def test_the_last_place_of_a_large_window_is_no_code(device, kernel, format):
    """255 places fit into a byte, with one more for what the ReLU cut."""
    rows, columns = (k + 5 for k in kernel)
    pool = MaxPool(kernel, (2, 3), tuple(k // 4 for k in kernel))
    assert pool.argmax_dtype == (torch.uint8 if kernel[0] * kernel[1] < 256 else torch.int32)
    x = torch.zeros(1, 4, rows, columns)
    x[:, 0] = -1
    x[:, 1, -1, -1] = 1  # the last place of the last window inside
    x[:, 2, kernel[0] - 1 - pool.pairs[2][0], kernel[1] - 1 - pool.pairs[2][1]] = 1  # that of the first
    x[:, 3] = torch.randn(rows, columns)
    x = x.to(device).contiguous(memory_format=format)
    ours, theirs = (
        results(make, masked, [x])
        for make in (lambda x: F.epilogue(x, pool=pool), lambda x: plain_epilogue(x, None, Stages(pool=pool)))
    )
    assert all(map(torch.equal, ours, theirs))
    assert ours[0][0, 2].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_kept(run, dtype):
    if run[1] in ("plain", "auto"):
        pytest.skip("torch keeps what its own functions need")
    x, weight, bias = (t.requires_grad_() for t in whole(SHAPES, run[0], dtype))

    def kept(make):
        packed = []
        with saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
            y = make()
        argmax = [t for t in packed if t.dtype == torch.uint8]
        assert all(t.shape == y.shape for t in argmax)
        return {t.data_ptr() for t in packed if t.dtype != torch.uint8}, len(argmax)

    both, pool = {x.data_ptr(), weight.data_ptr()}, MaxPool(2)
    assert kept(lambda: F.conv2d_block(x, weight, bias, pool=pool)) == (both, 1)
    assert kept(lambda: F.conv2d_block(x, weight, bias, pool=pool, recompute=True))[1] == 0
    assert kept(lambda: F.epilogue(x, bias[:3], pool=pool)) == (set(), 1)
    assert kept(lambda: F.epilogue(x, pool=pool)) == (set(), 1)


def test_a_compiled_block_is_written_into():
    torch.compiler.reset()
    leaves = whole(SHAPES, "cpu", torch.float32)
    make = functools.partial(CALLS["conv2d_block"], pool=MaxPool(2))
    with fastcnn.use_backend("cpu"):
        expected = results(make, masked, leaves)
        compiled = torch.compile(lambda *leaves: make(*leaves).mul_(1), backend="aot_eager")
        assert all(map(torch.equal, results(compiled, masked, leaves), expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_rounds_to_zero_is_cut(run, dtype):
    """A sum of tiny products that is above 0 before it is rounded."""
    scale, smallest = {torch.float16: (2.0**12, 2.0**-24), torch.bfloat16: (2.0**64, 2.0**-133)}[dtype]
    sums = smallest * torch.tensor([0.25, 0.49, 0.5, 0.51, 0.75, 1, 1.5, -0.5, 0, 2], dtype=torch.float64)
    x = (scale * sums).to(run[0], dtype).view(1, 1, 2, 5).requires_grad_()
    weight = torch.full((1, 1, 1, 1), 1 / scale, device=run[0], dtype=dtype)
    y = F.conv2d_block(x, weight, pool=MaxPool(1))
    (grad,) = torch.autograd.grad(y, x, torch.full_like(y, scale))
    assert torch.equal(grad != 0, y > 0)


def test_the_codes_agree():
    assert torch.tensor(NO_PLACE).to(torch.uint8) == 255
