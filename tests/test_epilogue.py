"""Expected values by hand, and torch's answers at the edges: ties, NaN, infinities, odd sizes."""

from itertools import product

import pytest
import torch
from torch.nn import functional as TF

from fastcnn import LRN, MaxPool, use_backend
from fastcnn import functional as F
from fastcnn.backends import cpu, current_backend
from fastcnn.stages import Stages
from fastcnn.testing import DTYPES, assert_close, backends, devices, plain_epilogue

RUNS = [(device, backend) for device in devices() for backend in backends(device)]
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(params=RUNS, ids=lambda run: "-".join(run))
def device(request):
    device, backend = request.param
    with use_backend(backend):
        yield device


def image(values, device, dtype=torch.float32):
    return torch.tensor(values, device=device, dtype=dtype)


def test_bias_and_relu_by_hand(device):
    x = image([[[[1.0, -2.0]], [[0.5, 3.0]]]], device)
    y = F.epilogue(x, image([1.0, -1.0], device))
    assert y.tolist() == [[[[2.0, 0.0]], [[0.0, 2.0]]]]


def test_lrn_by_hand(device):
    # size 3, alpha 3, k 1, beta 1: r / (1 + sum of r**2 over the channel and its two neighbours)
    x = image([[[[1.0]], [[2.0]], [[3.0]], [[4.0]]]], device)
    y = F.epilogue(x, lrn=LRN(3, alpha=3.0, beta=1.0, k=1.0))
    assert_close(y.flatten(), image([1 / 6, 2 / 15, 3 / 30, 4 / 26], device))


def test_an_even_window_reaches_one_further_back(device):
    x = image([[[[1.0]], [[2.0]], [[3.0]]]], device)
    y = F.epilogue(x, lrn=LRN(2, alpha=2.0, beta=1.0, k=1.0))
    assert_close(y.flatten(), image([1 / 2, 2 / 6, 3 / 14], device))


def test_groups_do_not_see_each_other(device):
    x = image([[[[1.0]], [[2.0]], [[3.0]], [[4.0]]]], device)
    y = F.epilogue(x, lrn=LRN(3, alpha=3.0, beta=1.0, k=1.0, groups=2))
    assert_close(y.flatten(), image([1 / 6, 2 / 6, 3 / 26, 4 / 26], device))


def test_the_orders_differ_as_they_should(device):
    x = image([[[[1.0, 2.0]], [[3.0, 1.0]]]], device)
    lrn, pool = LRN(3, alpha=3.0, beta=1.0, k=1.0), MaxPool((1, 2))
    lrn_pool = F.epilogue(x, lrn=lrn, pool=pool)
    pool_lrn = F.epilogue(x, lrn=lrn, pool=pool, order="pool_lrn")
    assert_close(lrn_pool.flatten(), image([2 / 6, 3 / 11], device))
    assert_close(pool_lrn.flatten(), image([2 / 14, 3 / 14], device))


@pytest.mark.parametrize("format", FORMATS)
def test_ties_go_to_the_first_in_row_major_order(device, format):
    x = torch.ones(1, 2, 4, 4, device=device).contiguous(memory_format=format).requires_grad_()
    F.max_pool2d(x, 2).sum().backward()
    assert x.grad[0, 1].tolist() == [[1, 0, 1, 0], [0] * 4, [1, 0, 1, 0], [0] * 4]


SPECIALS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e30, -1.0, 2.0)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("stages", [
    Stages(True, None, None),
    Stages(True, LRN(5), None),
    Stages(False, LRN(3, 1.0, 0.5), None),
    Stages(False, LRN(3, 1.0, 0.6, 0.0), None),
    Stages(False, None, MaxPool(3, 2, 1)),
    Stages(True, LRN(5, 1e-4, 0.75, 2.0), MaxPool(3, 2)),
    Stages(True, LRN(5, 1e-4, 0.75, 2.0), MaxPool(3, 2), "pool_lrn"),
], ids=str)  # fmt: skip
def test_special_values_as_torch(device, stages, format):
    generator = torch.Generator().manual_seed(0)
    pick = torch.randint(0, len(SPECIALS), (2, 8, 9, 11), generator=generator)
    x = torch.tensor(SPECIALS)[pick].to(device).contiguous(memory_format=format)
    expected = plain_epilogue(x, None, stages)
    actual = F.epilogue(x, relu=stages.relu, lrn=stages.lrn, pool=stages.pool, order=stages.order)
    assert_close(actual, expected)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_pool_gradient_at_special_values_as_torch(device, format, value):
    """The last NaN of a window takes the gradient; a window of -inf keeps its first place inside."""
    x = torch.randn(1, 3, 8, 9).to(device).contiguous(memory_format=format)
    x[:, :, ::2] = value
    x[:, :, :, :3] = value
    for args in [(3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 3, 2)]:
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        F.max_pool2d(ours, *args).sum().backward()
        TF.max_pool2d(theirs, *args).sum().backward()
        assert_close(ours.grad, theirs.grad)


def test_a_window_with_no_place_inside_is_minus_infinity_without_gradient(device):
    x = torch.randn(1, 2, 1, 1, device=device, requires_grad=True)
    y = F.max_pool2d(x, 2, padding=1, dilation=2)
    assert y.tolist() == [[[[-float("inf")]]] * 2]
    y.sum().backward()
    assert not x.grad.any()


@pytest.mark.parametrize("format", FORMATS)
def test_a_nan_of_an_infinite_power_reaches_the_pooling(device, format):
    x = torch.zeros(1, 4, 6, 6, device=device)
    x[..., 0, 0] = 1
    stages = Stages(False, LRN(3, 1e-4, 4.0, 1e-13), MaxPool(3))
    x = x.contiguous(memory_format=format)
    y = F.epilogue(x, relu=False, lrn=stages.lrn, pool=stages.pool)
    assert_close(y.isnan(), plain_epilogue(x, None, stages).isnan())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("value", "k"), [(0.0, 1e-23), (1e17, 1.0)])
def test_gradients_where_a_power_alone_leaves_the_type(format, value, k):
    x = torch.full((1, 5, 2, 2), value).contiguous(memory_format=format)
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    F.local_response_norm(ours, 5, k=k).sum().backward()
    TF.local_response_norm(theirs, 5, k=k).sum().backward()
    assert_close(ours.grad / theirs.grad.abs().max(), (theirs.grad / theirs.grad.abs().max()).float())


@pytest.mark.parametrize("format", FORMATS)
def test_gradients_vanish_where_the_sum_of_squares_overflows(device, format):
    x = torch.full((1, 8, 5, 5), 1e25, device=device).contiguous(memory_format=format).requires_grad_()
    for stages in (Stages(lrn=LRN(5)), Stages(lrn=LRN(5), pool=MaxPool(3, 2))):
        y = F.epilogue(x, lrn=stages.lrn, pool=stages.pool)
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert not y.any()
        assert not grad.any()


@pytest.mark.parametrize("format", FORMATS)
def test_an_infinite_bias_makes_nan_as_in_torch(device, format):
    x = torch.randn(2, 32, 20, 20, device=device).contiguous(memory_format=format)
    x[:, ::2, ::4, ::4] = -float("inf")
    bias = torch.full((32,), float("inf"), device=device)
    assert_close(
        F.epilogue(x, bias, pool=MaxPool(3, 2)), plain_epilogue(x, bias, Stages(True, None, MaxPool(3, 2)))
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lrn_does_not_overflow_in_half_precision(device, dtype):
    x = torch.full((1, 5, 2, 2), 300.0, device=device, dtype=dtype)
    exact = TF.local_response_norm(x.double(), 5, 1.0)
    assert_close(F.local_response_norm(x, 5, 1.0), exact.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 129])
def test_weird_shapes(device, dtype, channels):
    if (device, current_backend()) == ("cpu", "triton"):
        channels = min(channels, 13)  # the interpreter takes 20 s for 129
    for size, format in product([(1, 1), (3, 17), (2, 1)], FORMATS):
        x = torch.randn(2, channels, *size, device=device).to(dtype).contiguous(memory_format=format)
        stages = Stages(True, LRN(5, 0.1), MaxPool(3, 2, 1))
        y = F.epilogue(x, lrn=stages.lrn, pool=stages.pool)
        assert_close(y, plain_epilogue(x, None, stages))


@pytest.mark.parametrize("format", FORMATS)
def test_a_nan_stays_in_its_pixel(device, format):
    x = torch.randn(2, 3, 2, 3, device=device).contiguous(memory_format=format)
    x[0, 2, 0, 2] = float("nan")
    for size in (2, 3, 4, 5):
        leaf = x.clone().requires_grad_()
        F.local_response_norm(leaf, size).sum().backward()
        touched = leaf.grad.isnan().any(1)
        assert touched.nonzero().tolist() == [[0, 0, 2]]


@pytest.mark.parametrize("format", FORMATS)
def test_without_k_zero_channels_have_finite_neighbours(device, format):
    x = torch.ones(1, 2, 1, 3, device=device).contiguous(memory_format=format)
    x[:, 1] = 0
    leaf = x.clone().requires_grad_()
    F.local_response_norm(leaf, 2, alpha=1.0, k=0.0).sum().backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("format", FORMATS)
def test_saved_tensors_may_come_back_in_other_strides(device, format):
    x = torch.randn(2, 8, 6, 6, device=device).contiguous(memory_format=format).requires_grad_()
    grads = []
    for pack in (lambda t: t, lambda t: t.contiguous().clone(memory_format=torch.contiguous_format)):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = F.epilogue(x, lrn=LRN(3, 0.1), pool=MaxPool(2))
        grads += torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(*grads)


@pytest.mark.parametrize("format", FORMATS)
def test_one_window_with_any_stride_or_padding(device, format):
    x = torch.randn(1, 2, 8, 8, device=device).contiguous(memory_format=format)
    assert_close(F.max_pool2d(x, 3, 10**9), x[..., :3, :3].amax((2, 3), keepdim=True))
    args = ((1, 400), (1, 2), (0, 200))
    y = F.epilogue(x, lrn=LRN(), pool=MaxPool(*args))
    assert_close(y, TF.max_pool2d(TF.local_response_norm(x.relu(), 5), *args))


def test_empty_batch(device):
    x = torch.randn(0, 4, 8, 8, device=device, requires_grad=True)
    bias = torch.randn(4, device=device, requires_grad=True)
    y = F.epilogue(x, bias, lrn=LRN(), pool=MaxPool(2))
    assert y.shape == (0, 4, 4, 4)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert bias.grad.tolist() == [0] * 4


def test_an_unbatched_image_is_a_batch_of_one(device):
    x = torch.randn(4, 8, 9, device=device)
    weight = torch.randn(6, 4, 3, 3, device=device)
    args = {"lrn": LRN(), "pool": MaxPool(3, 2)}
    assert_close(F.epilogue(x, **args), F.epilogue(x[None], **args)[0])
    assert_close(F.conv2d_block(x, weight, **args), F.conv2d_block(x[None], weight, **args)[0])


def test_nothing_to_do_is_the_input_itself(device):
    x = torch.randn(1, 2, 3, 4, device=device)
    assert F.epilogue(x, relu=False) is x


@pytest.mark.parametrize("format", FORMATS)
def test_the_output_and_the_gradient_keep_the_format(device, format):
    x = torch.randn(2, 6, 9, 9, device=device).contiguous(memory_format=format).requires_grad_()
    y = F.epilogue(x, lrn=LRN(), pool=MaxPool(3, 2))
    y.sum().backward()
    assert y.is_contiguous(memory_format=format)
    assert x.grad.is_contiguous(memory_format=format)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("order", ["lrn_pool", "pool_lrn"])
def test_conv_block_is_convolution_then_epilogue(device, format, order):
    x = torch.randn(3, 4, 17, 15, device=device, dtype=torch.float64)
    x = x.contiguous(memory_format=format).requires_grad_()
    weight = torch.randn(6, 2, 3, 3, device=device, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, device=device, dtype=torch.float64, requires_grad=True)
    stages = Stages(True, LRN(5, 0.1, groups=2), MaxPool(3, 2), order)
    conv = ((2, 1), (1, 2), (1, 2), 2)
    leaves = (x, weight, bias)
    ours = F.conv2d_block(*leaves, *conv, lrn=stages.lrn, pool=stages.pool, order=order)
    theirs = plain_epilogue(TF.conv2d(*leaves, *conv), None, stages)
    assert_close(ours, theirs)
    grad = torch.randn_like(theirs)
    for a, b in zip(*(torch.autograd.grad(y, leaves, grad) for y in (ours, theirs)), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("order", ["lrn_pool", "pool_lrn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conv_block_in_chunks_gives_the_same_bits(monkeypatch, dtype, order, format):
    x = torch.randn(5, 3, 33, 31, dtype=dtype).contiguous(memory_format=format)
    weight, bias = torch.randn(16, 3, 5, 5, dtype=dtype, requires_grad=True), torch.randn(16, dtype=dtype)

    def run():
        y = F.conv2d_block(x, weight, bias, 2, lrn=LRN(), pool=MaxPool(3, 2), order=order)
        return y.detach(), *torch.autograd.grad(y.sum(), weight)

    whole = run()
    for images in (1, 2, 3):
        monkeypatch.setattr(cpu, "_images_at_once", lambda *_, images=images: images)
        assert all(torch.equal(a, b) for a, b in zip(run(), whole, strict=True)), images


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("pool", [None, MaxPool(3, 2, 1, ceil_mode=True)])
def test_few_values_left_to_torch_give_what_our_kernels_give(monkeypatch, pool, format):
    x = torch.randn(2, 3, 12, 11).contiguous(memory_format=format)
    weight, bias = torch.randn(4, 3, 3, 3), torch.randn(4)

    def run():
        block = F.conv2d_block(x, weight, bias, pool=pool)
        return block, F.max_pool2d(x, 3, 2, 1, ceil_mode=True), F.epilogue(x, pool=pool)

    by_torch = run()
    monkeypatch.setattr(cpu, "slower_reason", lambda *_: None)
    monkeypatch.setattr(cpu, "SMALL", 0)
    for a, b in zip(by_torch, run(), strict=True):
        assert_close(a, b)
        assert a.stride() == b.stride()


@pytest.mark.parametrize("images", [1, 64])
def test_a_weight_of_another_dtype_is_refused_however_many_images(device, images):
    x = torch.randn(images, 3, 64, 64, device=device)
    weight = torch.randn(96, 3, 3, 3, device=device, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"expected scalar type|should be the same"):
        F.conv2d_block(x, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conv_block_where_the_processor_lacks_the_dtype(monkeypatch, dtype):
    x, weight = torch.randn(2, 3, 17, 17, dtype=dtype), torch.randn(8, 3, 3, 3, dtype=dtype)
    results = []
    for inner in (dtype, torch.float32):
        monkeypatch.setattr(cpu, "_convolves_in", lambda _, inner=inner: inner)
        results.append(F.conv2d_block(x, weight, pool=MaxPool(3, 2)))
    assert results[1].dtype == dtype
    eps = torch.finfo(dtype).eps  # both round the same sums, in different order
    torch.testing.assert_close(*results, rtol=2 * eps, atol=eps)


def test_the_inner_op_keeps_its_dtype_under_autocast():
    x, weight, bias = torch.randn(1, 3, 9, 9), torch.randn(4, 3, 3, 3), torch.randn(4)
    conv = ([1, 1], [0, 0], [1, 1], 1)
    with torch.autocast("cpu"):
        for lrn in (None, LRN()):
            y, *_ = torch.ops.fastcnn.conv2d_block_forward(
                x, weight, bias, *conv, *Stages(True, lrn).flat(), False, False
            )
            assert y.dtype == torch.float32


@pytest.mark.parametrize("kernel", [3, 4, (2, 5)])
def test_same_padding(device, kernel):
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    x, weight = torch.randn(2, 3, 9, 12, device=device), torch.randn(4, 3, *kernel, device=device)
    for padding, dilation in product(["same", "valid"], [1, (1, 2)]):
        expected = TF.conv2d(x, weight, None, 1, padding, dilation).relu()
        assert_close(F.conv2d_block(x, weight, None, 1, padding, dilation), expected)


def test_large_windows_take_wide_argmax(device):
    x = torch.randn(2, 3, 40, 41, device=device, dtype=torch.float64, requires_grad=True)
    ours, theirs = F.max_pool2d(x, 17, 5, 8), TF.max_pool2d(x, 17, 5, 8)
    assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    (a,), (b,) = (torch.autograd.grad(y, x, grad) for y in (ours, theirs))
    assert_close(a, b)


@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (3, 2)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_rows_of_more_windows_than_a_vector_holds(device, kernel, dilation, stride):
    x = torch.randn(1, 2, 9, 130, device=device, requires_grad=True)
    ours, theirs = (f.max_pool2d(x, kernel, stride, 1, dilation) for f in (F, TF))
    assert torch.equal(ours, theirs)
    grad = torch.randn_like(ours)
    assert_close(*(torch.autograd.grad(y, x, grad)[0] for y in (ours, theirs)))


def test_a_normalised_value_that_underflows_has_a_gradient(device):
    x = torch.full((1, 1, 2, 2), 1e-10, device=device, requires_grad=True)
    y = F.epilogue(x, lrn=LRN(1, 0.0, 1.0, 1e38), pool=MaxPool(2))
    assert not y.any()
    (grad,) = torch.autograd.grad(y, x, torch.full_like(y, 1e30))
    assert grad.sum().item() == pytest.approx(1e-8)
