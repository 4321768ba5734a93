"""The direct convolution through public functions, and as part of small networks."""

import copy
import itertools

import pytest
import torch
from direct_cases import DTYPES, FORMATS, LAUNCHERS, NEEDED, Case, in_dtype, small_pairs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_properties import ISAS, LAYOUTS, PHASES, with_isa
from torch import nn
from torch.nn import functional as TF

import fastcnn
from fastcnn import MaxPool, small
from fastcnn import functional as F
from fastcnn.backends import _direct
from fastcnn.stages import Stages
from fastcnn.testing import TOLERANCES, assert_close, assert_within_twice

# Networks: as one call, from the first that could be.


@st.composite
def networks(draw):
    torch.default_generator.manual_seed(draw(st.integers(0, 2**31)))
    rows, channels = draw(st.integers(3, 14)), draw(st.integers(1, 5))
    x, layers = (draw(st.integers(1, 9)), channels, rows, rows + draw(st.integers(0, 5))), []
    for _ in range(draw(st.integers(0, 2))):
        outputs = draw(st.integers(1, 20))
        layers += [
            nn.Conv2d(channels, outputs, draw(st.sampled_from([1, 3])), padding=1, bias=draw(st.booleans()))
        ]
        layers += [nn.ReLU()] * draw(st.booleans()) + [nn.MaxPool2d(2, ceil_mode=True)] * draw(st.booleans())
        channels = outputs
    with torch.no_grad():
        inputs = nn.Sequential(*layers, nn.Flatten())(torch.zeros(x)).shape[1]
    if layers:
        layers.append(nn.Flatten())
    else:
        x = x[0], inputs
    for _ in range(draw(st.integers(0 if layers else 1, 3))):
        outputs = draw(st.integers(1, 70))
        layers += [nn.Linear(inputs, outputs, bias=draw(st.booleans()))] + [nn.ReLU()] * draw(st.booleans())
        inputs = outputs
    return nn.Sequential(*layers).eval(), torch.randn(x)


def without_cancelling(net, x):
    """Returns what the network gives if all terms of its sums are positive: rounding is relative to those."""
    net = copy.deepcopy(net).double()
    for parameter in net.parameters():
        parameter.abs_()
    return net(x.double().abs())


@pytest.mark.parametrize("isa", ISAS)
def test_drawn_networks(isa, directly, monkeypatch):
    with_isa(monkeypatch, isa, *LAUNCHERS)

    @settings(max_examples=60, deadline=None, derandomize=True, phases=PHASES)
    @given(networks())
    @torch.no_grad()
    def drawn(given):
        net, x = given
        y = small.run(net, x, small.sequence)
        exact = copy.deepcopy(net).double()(x.double())
        assert_within_twice(y, net(x), exact, without_cancelling(net, x))
        assert torch.equal(small.run(net, x, small.sequence), y)
        for i in range(len(x)):
            assert torch.equal(small.run(net, x[i : i + 1], small.sequence), y[i : i + 1])

    drawn()


# Through the public functions.

THIN = {  # x, weight, stride, padding, dilation, groups
    "lenet": ((2, 1, 28, 28), (6, 1, 5, 5), 1, 2, 1, 1),
    "rgb": ((2, 3, 17, 16), (8, 3, 3, 3), 2, 1, 1, 1),
    "depthwise": ((3, 6, 9, 11), (6, 1, 3, 3), 1, (2, 1), (2, 1), 6),
}


BLOCKS = [dict(zip(("thin", "dtype", "pool"), v, strict=True)) for v in itertools.product(
    THIN, DTYPES, (None, MaxPool(3, 2, 1)))]  # fmt: skip


def leaves(thin, dtype):
    torch.manual_seed(0)
    x, weight, *conv = THIN[thin]
    shapes = x, weight, weight[:1]
    return [torch.randn(s).to(dtype).requires_grad_() for s in shapes], conv


@pytest.mark.parametrize("given", BLOCKS, ids=lambda g: f"{g['thin']}-{g['dtype']}-{bool(g['pool'])}")
def test_a_block_is_plain_layers(given, directly):
    tensors, conv = leaves(given["thin"], given["dtype"])
    wide = [t.detach().double().requires_grad_() for t in tensors]
    plainly = [t.detach().float().requires_grad_() for t in tensors]
    y = F.conv2d_block(*tensors, *conv, pool=given["pool"])
    with fastcnn.use_backend("plain"):
        expected, exact = (F.conv2d_block(*t, *conv, pool=given["pool"]) for t in (plainly, wide))
    assert_within_twice(y.detach(), expected.detach().to(y.dtype), exact.detach())
    with torch.no_grad():
        assert torch.equal(F.conv2d_block(*tensors, *conv, pool=given["pool"]), y)
    grads = torch.autograd.grad(y.float().sin().sum(), tensors, retain_graph=True)
    for g, e, t in zip(grads, torch.autograd.grad(exact.sin().sum(), wide), tensors, strict=True):
        assert g.dtype == t.dtype
        assert g.shape == t.shape
        # The sine of an output that was rounded, and which of two alike is the maximum, are others.
        assert (g - e).abs().mean() <= 2 * TOLERANCES[t.dtype][0] * e.abs().max()
    again = F.conv2d_block(*tensors, *conv, pool=given["pool"], recompute=True)
    assert torch.equal(again, y)
    for a, b in zip(torch.autograd.grad(again.float().sin().sum(), tensors), grads, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("thin", THIN)
def test_second_derivatives(thin, directly):
    tensors, conv = leaves(thin, torch.float32)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    seconds = []
    for leaf in (tensors, wide):
        y = F.conv2d_block(*leaf, *conv, pool=MaxPool(2))
        grads = torch.autograd.grad(y.sin().sum(), leaf, create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in grads), leaf))
    for a, b in zip(*seconds, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.mark.parametrize("back", [
    lambda t: t.clone(),
    lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
    lambda t: torch.stack([t, t], -1)[..., 0],
], ids=["clone", "channels_last", "strided"])  # fmt: skip
def test_saved_tensors_come_back_laid_out_otherwise(back, directly):
    tensors, conv = leaves("rgb", torch.float32)
    expected = torch.autograd.grad(F.conv2d_block(*tensors, *conv, pool=MaxPool(2)).sin().sum(), tensors)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, back):
        y = F.conv2d_block(*tensors, *conv, pool=MaxPool(2))
    for a, b in zip(torch.autograd.grad(y.sin().sum(), tensors), expected, strict=True):
        assert_close(a, b, factor=10)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("formats", list(itertools.product(FORMATS, FORMATS)))
@pytest.mark.parametrize("size", [(1, 1), (9, 9)])
def test_the_output_is_laid_out_as_torchs(channels, formats, size, directly):
    shapes = (2, channels, *size), (5, channels, 1, 1), (1, channels, 1, 1)
    x, *weights = (torch.randn(s).contiguous(memory_format=formats[i > 0]) for i, s in enumerate(shapes))
    for weight in weights:
        expected = TF.conv2d(x, weight).relu_()
        found = F.conv2d_block(x, weight)
        assert found.stride() == expected.stride()
        assert_close(found, expected)


WRONG = [
    {"weight": torch.ones(4, 2, 3, 3)}, {"weight": torch.ones(4, 3, 3)}, {"weight": torch.ones(4, 3)},
    {"weight": torch.ones(4, 3, 3, 3).double()}, {"weight": torch.ones(4, 3, 9, 9)},
    {"weight": torch.ones(0, 3, 3, 3)}, {"bias": torch.ones(5)}, {"bias": torch.ones(4).half()},
    {"bias": torch.ones(4, 1)}, {"input": torch.ones(2, 3, 0, 8)}, {"input": torch.ones(3, 8)},
    {"input": torch.ones(2, 0, 8, 8)}, {"stride": 0}, {"stride": (1, 1, 1)}, {"padding": -1},
    {"dilation": 0}, {"groups": 2}, {"groups": 0}, {"input": [1.0]}, {"input": None}, {"weight": None},
    {"weight": "w"}, {"bias": [1.0] * 4},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_errors_are_torchs(wrong):
    given = {
        "input": torch.randn(2, 3, 8, 8),
        "weight": torch.randn(4, 3, 3, 3),
        "bias": torch.randn(4),
    } | wrong
    messages = []
    for function in (TF.conv2d, F.conv2d_block):
        try:
            messages.append(function(**given).shape)
        except Exception as error:  # of a bias it is the epilogue that complains, in its words
            messages.append((type(error), "bias" in str(error) or str(error)))
    assert messages[0] == messages[1]


# In 16 bits torch's own convolution reads what was never written, where one column is left of several.


@st.composite
def single_columns(draw):
    groups, kernel = draw(st.sampled_from([1, 2, 3])), draw(small_pairs)
    stride, dilation = (draw(st.integers(1, 3)), draw(st.integers(2, 4))), draw(small_pairs)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = tuple(draw(st.integers(0, n // 2)) for n in reach)
    rows, columns = (max(1, n - 2 * p) for n, p in zip(reach, padding, strict=True))
    channels, outputs = (groups * draw(st.integers(1, 16)) for _ in range(2))
    size = rows + draw(st.integers(0, 9)), columns + draw(st.integers(0, stride[1] - 1))
    return Case(
        (draw(st.integers(1, 4)), channels, *size),
        draw(st.sampled_from(LAYOUTS)),
        draw(st.sampled_from(DTYPES[1:])),
        outputs,
        kernel,
        (stride, padding, dilation, groups),
        True,
        Stages(),
        NEEDED[0],
        draw(st.integers(0, 2**31)),
    )


def single(shape, outputs, kernel, conv):
    layout, dtype = "channels_last", torch.bfloat16
    return Case(shape, layout, dtype, outputs, kernel, conv, True, Stages(), NEEDED[0], seed=0)


@settings(max_examples=100, deadline=None, derandomize=True, phases=PHASES)
@example(single((2, 9, 11, 4), 48, (3, 2), ((2, 2), (1, 0), (1, 2), 3)))  # y, with AMX
@example(single((3, 4, 9, 1), 28, (1, 3), ((3, 2), (0, 1), (1, 1), 1)))  # the weight's gradient, without
@example(single((2, 5, 6, 1), 29, (3, 3), ((1, 4), (0, 1), (2, 1), 1)))
@example(single((1, 10, 9, 2), 10, (1, 4), ((1, 3), (0, 1), (2, 1), 1)))
@given(single_columns())
def test_single_columns_in_16_bits(case):
    tensors = [t.requires_grad_() for t in case.tensors()]
    exact = TF.conv2d(*in_dtype(torch.float64, *tensors), *case.conv).relu()
    expected = torch.autograd.grad(exact.sum(), tensors)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(_direct, "geometry", lambda *_: None)
        for backend in ("cpu", "plain"):
            with fastcnn.use_backend(backend):
                y = F.conv2d_block(*tensors, *case.conv)
            # What was never written is NaN or far larger, a value next to the ReLU's threshold is not.
            results, rights = [y, *torch.autograd.grad(y.sum(), tensors)], [exact, *expected]
            for found, right in zip(results, rights, strict=True):
                assert (found - right).abs().max() <= 8 + 0.1 * right.abs().max()
            assert (y - exact).abs().max() <= 4 * torch.finfo(y.dtype).eps * (1 + exact.abs().max())
