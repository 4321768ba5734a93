"""The direct convolution and its gradients against float64, on drawn shapes."""

from types import SimpleNamespace

import pytest
import torch
from direct_cases import FORMATS, LAUNCHERS, Case, cases, in_dtype
from hypothesis import given, settings
from hypothesis import strategies as st
from test_properties import ISAS, LAYOUTS, PHASES, laid_out, with_isa

from fastcnn import MaxPool
from fastcnn.backends import _direct, cpu, plain, reference
from fastcnn.backends._convolution import conv_output_size, convolution_backward, output_format
from fastcnn.stages import Stages
from fastcnn.testing import assert_close, assert_within_twice

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")  # mkldnn.flags sets a GPU's flags, too


def forward(case, x, weight, bias):
    sizes = _direct.Geometry(x.shape, weight.shape, case.conv)
    return _direct.forward(x, weight, bias, case.conv, case.stages, True, sizes)


def backward(case, grad_y, x, weight, y, argmax, needed=(True, True, True)):
    sizes = _direct.Geometry(x.shape, weight.shape, case.conv)
    return _direct.backward(grad_y, x, weight, y, argmax, case.conv, case.stages, needed, sizes)


def expected_gradients(case, grad_y, x, weight, y, argmax):
    """The reference's in the tensors' dtype, for the windows' places that our forward found."""
    size = (x.shape[0], weight.shape[0], *conv_output_size(x, weight, case.conv))
    rest = (argmax, case.stages, size, torch.contiguous_format, True)
    grad_a, grad_bias = reference.epilogue_backward(grad_y, y, *rest)
    return *convolution_backward(grad_a, x, weight, case.conv, (True, True)), grad_bias


def magnitudes(*tensors):
    return [None if t is None else t.double().abs() for t in tensors]


def same(a, b):
    return (a is None and b is None) or torch.equal(a.nan_to_num(), b.nan_to_num())


def check_values(case, x, weight, bias, in_onednn):
    y, r, argmax = forward(case, x, weight, bias)
    given = x, weight, bias
    plain_y, exact_y, sums = (
        plain.conv2d_block(*tensors, case.conv, case.stages, recompute=False)
        for tensors in (in_dtype(torch.float32, *given), in_dtype(torch.float64, *given), magnitudes(*given))
    )
    # Plain layers are those in float32, rounded once. A sum in float32 is judged by the size of its terms in
    # gradients, of a few values, whose largest error is luck, and against other sums than oneDNN's.
    rounds_last = x.dtype != torch.float32
    by_itself = rounds_last or (in_onednn and y.numel() >= 100)
    assert_within_twice(y, plain_y.to(y.dtype), exact_y, None if by_itself else sums)
    assert r is None
    assert y.is_contiguous(memory_format=output_format(x, weight))
    grad_y = laid_out(case.layout if case.layout in LAYOUTS else "contiguous", *y.shape, case.values)
    grads = backward(case, grad_y, x, weight, y, argmax)
    given = grad_y, x, weight
    plains, exacts, sums = (
        expected_gradients(case, *tensors, y.to(tensors[0].dtype), argmax)
        for tensors in (in_dtype(torch.float32, *given), in_dtype(torch.float64, *given), magnitudes(*given))
    )
    for ours, theirs, right, terms in zip(grads, plains, exacts, sums, strict=True):
        assert_within_twice(ours, theirs.to(ours.dtype), right, None if rounds_last else terms)
    return y, argmax, grad_y, grads


def check(case):
    x, weight, bias = case.tensors()
    reach = [(k - 1) * d for k, d in zip(case.kernel, case.conv[2], strict=True)]
    # oneDNN crashes on some convolutions that have a window of nothing but padding.
    flat = all(p <= r for p, r in zip(case.conv[1], 2 * reach, strict=False))
    with torch.backends.mkldnn.flags(enabled=flat):
        y, argmax, grad_y, grads = check_values(case, x, weight, bias, flat)
    # The same bits again, of some gradients alone, on two threads, and of an image alone.
    some = backward(case, grad_y, x, weight, y, argmax, case.needed)
    for a, b, need in zip(some, grads, case.needed, strict=True):
        assert same(a, b) if need else a is None
    with pytest.MonkeyPatch.context() as m:
        m.setattr(_direct, "threads", lambda products: 2)
        assert all(map(same, forward(case, x, weight, bias), (y, None, argmax)))
        assert all(map(same, backward(case, grad_y, x, weight, y, argmax), grads))
    one = slice(x.shape[0] - 1, None)
    alone, _, places = forward(case, x[one], weight, bias)
    assert same(alone, y[one])
    assert argmax is None or same(places, argmax[one])
    assert same(backward(case, grad_y[one], x[one], weight, alone, places)[0], grads[0][one])


@pytest.mark.parametrize("isa", ISAS)
def test_drawn_convolutions(isa, monkeypatch):
    with_isa(monkeypatch, isa, *LAUNCHERS)

    @settings(max_examples=150, deadline=None, derandomize=True, phases=PHASES)
    @given(cases())
    def drawn(case):
        check(case)

    drawn()


@settings(max_examples=40, deadline=None, derandomize=True, phases=PHASES)
@given(st.integers(1, 40), st.integers(1, 3), st.sampled_from([(3, 1), (7, 3)]), st.integers(0, 2**31))
def test_long_sums_keep_the_error_rule(outputs, images, kernel, seed):
    size, padding = kernel
    conv = ((1, 1), (padding, padding), (1, 1), 1)
    check(Case((images, 512, 7, 7), "contiguous", torch.float32, outputs, (size, size), conv, True,
               Stages(False), (True, True, True), seed))  # fmt: skip


SHAPES = {"over pixels": (3, FORMATS[0]), "over channels": (40, FORMATS[0]), "channels_last": (5, FORMATS[1])}


@pytest.mark.parametrize("pool", [None, MaxPool(3, 2, 1), MaxPool(2, 1, 1, 4)], ids=["", "pool", "dilated"])
@pytest.mark.parametrize(("outputs", "format"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("isa", ISAS)
def test_special_values(outputs, format, pool, isa, monkeypatch):
    with_isa(monkeypatch, isa, *LAUNCHERS)
    torch.manual_seed(0)
    conv, stages = ((1, 1), (1, 1), (1, 1), 1), Stages(pool=pool)
    x, weight = torch.randn(2, 3, 9, 21).contiguous(memory_format=format), torch.randn(outputs, 3, 3, 3)
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf, -0.0)):
        x[i % 2, i % 3, 2 * i, 5 * i] = value
    case = SimpleNamespace(conv=conv, stages=stages)
    bias = torch.randn(outputs)
    y, _, argmax = forward(case, x, weight, bias)
    exact, _, places = reference.conv_block_forward(
        x.double(), weight.double(), bias.double(), conv, stages, save=True
    )
    assert_close(y, exact.float(), factor=10)
    if pool:  # of an output that is 0 in several places, or rounded, another may be named
        assert torch.equal(argmax[y != 0], places[y != 0])
    x[x.isnan() | x.isinf()] = 0
    grad_y = torch.randn_like(y)
    grad_y[0, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    expected = expected_gradients(case, *in_dtype(torch.float64, grad_y, x, weight, y), argmax)
    for ours, right in zip(backward(case, grad_y, x, weight, y, argmax), expected, strict=True):
        assert_close(ours, right.float(), factor=10)


@pytest.mark.parametrize("isa", ISAS)
def test_infinite_weights_make_nans_of_gradients_of_zero(isa, monkeypatch):
    with_isa(monkeypatch, isa, *LAUNCHERS)
    torch.manual_seed(0)
    case = SimpleNamespace(conv=((1, 1), (0, 0), (1, 1), 1), stages=Stages(pool=MaxPool(2)))
    x, weight = torch.rand(2, 3, 9, 9), torch.randn(5, 3, 3, 3)
    weight[0, 0, 1, 1] = torch.inf
    y, _, argmax = forward(case, x, weight, None)
    grad_y = torch.randn_like(y)
    expected = expected_gradients(case, *in_dtype(torch.float64, grad_y, x, weight, y), argmax)[0]
    assert expected.isnan().any()
    assert_close(backward(case, grad_y, x, weight, y, argmax)[0], expected.float(), factor=10)


@pytest.mark.parametrize("outputs", [2, 40])
@pytest.mark.parametrize("size", [(2, 3), (2, 30), (30, 3)])
def test_windows_of_nothing_but_padding(size, outputs):
    stages, conv = Stages(False, None, MaxPool(2, 1, 1, (3, 4))), ((1, 1), (0, 0), (1, 1), 1)
    x, weight, bias = torch.randn(2, 3, *size), torch.randn(outputs, 3, 1, 1), torch.randn(outputs)
    case = SimpleNamespace(conv=conv, stages=stages)
    y, _, argmax = forward(case, x, weight, bias)
    exact, _, places = reference.conv_block_forward(x, weight, bias, conv, stages, save=True)
    assert (y == -torch.inf).any()
    assert_close(y, exact)
    assert torch.equal(argmax, places)
    grad_y = torch.randn_like(y)
    expected = expected_gradients(case, grad_y, x, weight, y, argmax)
    for ours, right in zip(backward(case, grad_y, x, weight, y, argmax), expected, strict=True):
        assert_close(ours, right, factor=10)


def test_places_that_a_hook_made_up_are_within_memory():
    stages, conv = Stages(False, None, MaxPool(3, 1, 1, 2)), ((1, 1), (0, 0), (1, 1), 1)
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 1, 1)
    case = SimpleNamespace(conv=conv, stages=stages)
    y, _, argmax = forward(case, x, weight, None)
    for place in range(256):  # what is outside AddressSanitizer sees
        grads = backward(case, torch.ones_like(y), x, weight, y, argmax.fill_(place))
        assert all(g.abs().max() < 1e3 for g in grads)


def test_what_is_declined():
    x, weight, conv = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), ((1, 1), (1, 1), (1, 1), 1)
    stages = Stages(pool=MaxPool(2))
    assert _direct.geometry(x, weight, conv, stages)
    for declined in [
        (x, weight.double(), conv, stages),
        (x.double(), weight.double(), conv, stages),
        (x[:0], weight, conv, stages),
        (x, weight[:, :2], conv, stages),
        (x, weight[:3, :1], ((1, 1), (1, 1), (1, 1), 3), Stages(pool=MaxPool(9))),
        (x, weight, ((1, 1), (1, 1), (9, 9), 1), stages),
    ]:
        assert _direct.geometry(*declined) is None
    one_pixel = torch.randn(8, 16, 5, 5), torch.randn(120, 16, 5, 5), ((1, 1), (0, 0), (1, 1), 1), Stages()
    assert _direct.geometry(*one_pixel, prepared=True) and not _direct.geometry(*one_pixel)
    one_image = torch.randn(1, 3, 9, 9), torch.randn(4, 3, 3, 3), ((1, 1), (0, 0), (1, 1), 1), Stages()
    assert _direct.geometry(*one_image, prepared=True) and not _direct.geometry(*one_image)


@pytest.mark.parametrize(
    ("channels", "size", "stride", "directly"),
    [(16, 32, 1, True), (16, 32, 2, True)]
    + [(channels, size, stride, False) for channels, size in ((128, 56), (512, 7)) for stride in (1, 2)],
)
def test_depthwise_only_of_few_products(channels, size, stride, directly):
    x, weight = torch.empty(1, channels, size, size), torch.empty(channels, 1, 3, 3)
    conv = (stride, stride), (1, 1), (1, 1), channels
    assert bool(_direct.geometry(x, weight, conv, Stages(True), prepared=True)) == directly


@pytest.mark.parametrize(
    ("images", "size", "by_torch"),
    [(1, 4, True), (32, 4, True), (1, 7, True), (32, 7, False), (1, 14, False)],
)
def test_narrow_maps_are_pooled_by_torch(images, size, by_torch):
    x, weight = torch.empty(images, 64, size, size), torch.empty(512, 64, 3, 3)
    args = weight, ((1, 1), (1, 1), (1, 1), 1)
    assert bool(cpu.slower_reason(x, Stages(pool=MaxPool(2)), *args)) == by_torch
    if size > 4:
        last = x.to(memory_format=torch.channels_last)
        assert cpu.slower_reason(last, Stages(pool=MaxPool(2)), *args) is None
