"""How a block convolves: every way gives torch's convolution and gradients, also with four paddings."""

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as TF
from torch.utils._python_dispatch import TorchDispatchMode

import fastcnn
from fastcnn import LRN, MaxPool, _native
from fastcnn import functional as F
from fastcnn._calls import block
from fastcnn.backends import _convolution, cuda
from fastcnn.backends._convolution import (
    applies,
    conv_output_size,
    convolution_backward,
    convolution_backward_fastest,
    convolve,
    convolve_fastest,
    rearranged,
)
from fastcnn.models import alexnet, lenet5
from fastcnn.stages import Stages
from fastcnn.testing import assert_close

WAYS = ("as it is", "space to depth", "by group")
FORMATS = [torch.contiguous_format, torch.channels_last]
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """The way that is taken where it applies; the names of those that were taken."""
    taken = []

    def fastest(key, x, ways):
        taken.append(request.param if request.param in ways else next(iter(ways)))
        return taken[-1]

    monkeypatch.setattr(_convolution, "fastest", fastest)
    return taken


@st.composite
def convolutions(draw):
    """x, weight and conv; half of them as a first layer's, for space to depth."""
    groups, first = draw(st.sampled_from([1, 2, 3])), draw(st.booleans())
    kernel, image = (draw(st.tuples(st.integers(a, b), st.integers(a, b))) for a, b in ((1, 7), (7, 20)))
    channels = draw(st.integers(1, 4))
    if first:
        stride, dilation, groups = [draw(st.integers(2, 4))] * 2, [1, 1], 1
    else:
        stride, dilation = (list(draw(pairs)) for _ in range(2))
    padding = list(draw(st.tuples(*[st.integers(0, 3)] * draw(st.sampled_from([2, 4])))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(2, groups * channels + 1, *image, generator=generator, dtype=torch.float64)
    weight = torch.randn(groups * 2, channels, *kernel, generator=generator, dtype=torch.float64)
    x, weight = (t.contiguous(memory_format=draw(st.sampled_from(FORMATS))) for t in (x, weight))
    conv = (stride, padding, dilation, groups)
    x = x[:, 1:] if draw(st.booleans()) else x[:, :-1].clone()
    assume(min(conv_output_size(x, weight, conv)) > 0)
    return x, weight, conv


def by_torch(x, weight, conv):
    stride, padding, dilation, groups = conv
    top, left, bottom, right = padding if len(padding) == 4 else 2 * padding
    return TF.conv2d(TF.pad(x, (left, right, top, bottom)), weight, None, stride, 0, dilation, groups)


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.sampled_from([(True, True), (True, False), (False, True)]))
def check_a_way(case, needed):
    x, weight, conv = case
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight)]
    expected = by_torch(*leaves, conv)
    found = convolve_fastest(x, weight, conv)
    assert list(found.shape[2:]) == conv_output_size(x, weight, conv)
    torch.testing.assert_close(found, expected.detach())
    grad = torch.randn_like(expected)
    grads = convolution_backward_fastest(grad, x, weight, conv, needed)
    for g, e, leaf, need in zip(
        grads, torch.autograd.grad(expected, leaves, grad), leaves, needed, strict=True
    ):
        if need:
            assert g.shape == leaf.shape
            torch.testing.assert_close(g, e)
        else:
            assert g is None


def test_every_way_is_torchs_convolution_and_its_gradients(way, request):
    check_a_way()
    assert request.node.callspec.params["way"] in way  # it was taken at least once


FIRST = {  # image, kernel, stride, padding
    "AlexNet": ((227, 227), (11, 11), 4, (0, 0)),
    "AlexNet 2012 on 224": ((224, 224), (11, 11), 4, (0, 0, 3, 3)),
    "AlexNet 2014": ((224, 224), (11, 11), 4, (2, 2)),
    "uneven": ((25, 35), (5, 7), 2, (0, 1)),
    "kernel as wide as the stride": ((12, 15), (3, 3), 3, (0, 0)),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", FIRST)
def test_a_first_layer_by_space_to_depth(name, format):
    size, kernel, stride, padding = FIRST[name]
    x = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=format)
    weight = torch.randn(8, 3, *kernel, dtype=torch.float64).contiguous(memory_format=format)
    conv = ((stride, stride), padding, (1, 1), 1)
    assert applies(x, weight, conv)
    others = rearranged(x, weight, conv)
    assert others[0].is_contiguous(memory_format=format)
    torch.testing.assert_close(convolve(*others), convolve(x, weight, conv))


@pytest.mark.parametrize(("size", "conv"), [
    ((226, 226), ((4, 4), (0, 0), (1, 1), 1)),
    ((227, 227), ((1, 1), (0, 0), (1, 1), 1)),
    ((227, 227), ((4, 2), (0, 0), (1, 1), 1)),
    ((227, 227), ((4, 4), (0, 0), (2, 2), 1)),
    ((228, 228), ((4, 4), (-1, 0), (1, 1), 1)),
    ((227, 227), ((4, 4, 4), (0, 0), (1, 1), 1)),
], ids=["a window too many", "no stride", "two strides", "dilation", "below 0", "three strides"])  # fmt: skip
def test_what_space_to_depth_does_not_apply_to(size, conv):
    assert not applies(torch.empty(1, 3, *size), torch.empty(8, 3, 11, 11), conv)
    many = torch.empty(1, 64, 227, 227), torch.empty(8, 64, 11, 11)
    assert not applies(*many, ((4, 4), (0, 0), (1, 1), 1))


def test_what_torch_refuses_no_way_takes(way):
    x = torch.randn(1, 4, 9, 9)
    for weight, conv in [
        (torch.randn(3, 2, 3, 3), ([1, 1], [0, 0], [1, 1], 2)),  # 3 maps in 2 groups
        (torch.randn(4, 3, 3, 3), ([1, 1], [0, 0], [1, 1], 2)),
        (torch.randn(4, 4, 3, 3), ([2, 2], [-1, -1], [1, 1], 1)),
        (torch.randn(4, 4, 3, 3), ([2, 2], [0, 0, 0], [1, 1], 1)),
    ]:
        with pytest.raises(RuntimeError):
            convolve_fastest(x, weight, conv)


STAGES = {"lrn": LRN(3, 0.1), "pool": MaxPool(2)}


def asymmetric(x, weight, bias=None, *, padding=(1, 0, 2, 3), recompute=False):
    return block(x, weight, bias, (2, 1), 0, 1, 2, Stages(**STAGES), recompute, padding)


def leaves(dtype=torch.float64):
    torch.manual_seed(0)
    shapes = (2, 4, 8, 7), (4, 2, 3, 3), (4,)
    return tuple(torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_derivatives_with_four_paddings(recompute, format):
    x, *rest = leaves()
    x = x.detach().contiguous(memory_format=format).requires_grad_()

    def f(*args):
        return asymmetric(*args, recompute=recompute)

    assert torch.autograd.gradcheck(f, (x, *rest), fast_mode=True)
    assert torch.autograd.gradgradcheck(f, (x, *rest), fast_mode=True)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_four_paddings_are_zeros_around_the_input(backend):
    args = leaves()
    wide = TF.pad(args[0], (0, 3, 1, 2))
    with fastcnn.use_backend(backend):
        expected = F.conv2d_block(wide, *args[1:], stride=(2, 1), groups=2, **STAGES)
        found = asymmetric(*args)
    assert torch.equal(found, expected)
    for g, e in zip(*(torch.autograd.grad(y.sin().sum(), args) for y in (found, expected)), strict=True):
        assert_close(g, e)
    with torch.no_grad(), fastcnn.use_backend(backend):
        assert torch.equal(asymmetric(*args), expected)
    with torch.autocast("cpu", torch.bfloat16), fastcnn.use_backend(backend):
        lower = [t.bfloat16() for t in (wide, *args[1:])]
        assert torch.equal(
            asymmetric(*(t.float() for t in args)),
            F.conv2d_block(*lower, stride=(2, 1), groups=2, **STAGES),
        )


def test_four_paddings_in_torchs_machinery():
    x, weight, bias = leaves(torch.float32)
    conv = ([2, 1], [1, 0, 2, 3], [1, 1], 2)
    stages = Stages(**STAGES).flat()
    ops = torch.ops.fastcnn
    torch.library.opcheck(ops.conv2d_block.default, (x, weight, bias, *conv, *stages, False))
    torch.library.opcheck(ops.conv2d_block_forward.default, (x, weight, bias, *conv, *stages, True, False))
    grad = torch.randn(2, 4, *conv_output_size(x, weight, conv))
    given = [t.detach() for t in (grad, x, weight)]
    for needed in ([True, True], [False, True], [True, False]):
        torch.library.opcheck(ops.convolution_backward.default, (*given, *conv, needed))
    args = (x, weight, bias)
    expected = asymmetric(*args)
    compiled = torch.compile(asymmetric, fullgraph=True, backend="aot_eager")(*args)
    assert torch.equal(compiled, expected)
    for g, e in zip(*(torch.autograd.grad(y.sum(), args) for y in (compiled, expected)), strict=True):
        assert_close(g, e)
    mapped = torch.func.vmap(asymmetric, (0, None, None))(torch.stack([x, -x]), weight, bias)
    assert_close(mapped[0], expected)
    _, tangent = torch.func.jvp(
        asymmetric, tuple(t.detach() for t in args), tuple(map(torch.ones_like, args))
    )
    assert tangent.shape == expected.shape


def test_four_paddings_of_a_users_are_refused_as_torch_does():
    x, weight, bias = leaves()
    messages = []
    for conv2d in (TF.conv2d, F.conv2d_block):
        with pytest.raises(RuntimeError) as raised:
            conv2d(x, weight, bias, 1, (1, 0, 2, 3), 1, 2)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    layer = fastcnn.nn.ConvBlock2d(4, 4, 3, padding=(1, 0, 2, 3))
    with pytest.raises(RuntimeError, match="padding"):
        layer(x.float())


class Counted(TorchDispatchMode):
    """The operations that a call comes down to, by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("build", "name", "size"), [(alexnet, "2012", 224), (alexnet, "2012", 201), (lenet5, "relu", 28)]
)
def test_a_models_margins_are_the_first_blocks(build, name, size):
    torch.manual_seed(0)
    fused, plain = (build(name, num_classes=3, in_channels=1, fused=fused).eval() for fused in (True, False))
    plain.load_state_dict(fused.state_dict())
    images = torch.randn(2, 1, size, size)
    with Counted() as counted, torch.enable_grad():
        y = fused(images)
    assert "constant_pad_nd" not in counted.names
    with Counted() as counted:
        expected = plain(images)
    assert "constant_pad_nd" in counted.names
    assert_close(y, expected, factor=10)
    with torch.no_grad():
        assert_close(fused(images[0]), expected[0], factor=10)
        assert_close(fused.double()(images.double()), plain.double()(images.double()))


@pytest.fixture
def by_space_to_depth(monkeypatch):
    """Space to depth wherever it applies."""
    pick = "space to depth"
    monkeypatch.setattr(_convolution, "fastest", lambda key, x, ways: pick if pick in ways else min(ways))


def test_the_copy_of_space_to_depth_has_the_models_margins(by_space_to_depth, monkeypatch):
    """A backend that takes margins is one that convolves so."""
    pads, images = [], torch.randn(2, 3, 224, 224)
    block = alexnet("2012", num_classes=3).features[0]
    conv = ([4, 4], [0, 0, 3, 3], [1, 1], 1)
    pad = TF.pad
    monkeypatch.setattr(TF, "pad", lambda x, sizes: pads.append((len(x), sizes)) or pad(x, sizes))
    found = convolve_fastest(images, block.weight.detach(), conv)
    # By torch's own functions, for want of a kernel: one of the images, one of the weight.
    copies = [(2, (0, 4, 0, 4)), (96, (0, 1, 0, 1))]
    assert pads == copies
    grad = torch.randn_like(found)
    convolution_backward_fastest(grad, images, block.weight.detach(), conv, (False, True))
    assert pads == 2 * copies


@pytest.mark.skipif(
    "host" not in _native.load().build_info()["cuda"], reason="the extension's kernels are not on the host"
)
@pytest.mark.parametrize("format", FORMATS)
def test_the_first_block_of_2012_by_kernels_alone(by_space_to_depth, monkeypatch, format):
    monkeypatch.setattr(cuda, "unsupported_reason", lambda x, stages: None)
    monkeypatch.setattr(cuda, "_where", lambda x: (0, 0))
    monkeypatch.setattr(cuda, "copies", lambda x, side: True)  # its check takes torch's own copies
    torch.manual_seed(0)
    block, margins = alexnet("2012", num_classes=3).features[0], (0, 0, 3, 3)
    images = torch.randn(1, 3, 224, 224).contiguous(memory_format=format)
    expected = block(images, margins)
    conv = ([4, 4], margins, [1, 1], 1)
    grad = torch.randn_like(convolve(images, block.weight.detach(), conv))
    given = (grad, images, block.weight.detach(), conv, (False, True))
    _, expected_grad = convolution_backward(*given)

    def no_pad(*args, **kwargs):
        raise AssertionError("F.pad")

    monkeypatch.setattr(TF, "pad", no_pad)
    with fastcnn.use_backend("cuda"):
        y = block(images, margins)
    _, grad = convolution_backward_fastest(*given)
    monkeypatch.undo()
    assert_close(y, expected)
    assert_close(grad, expected_grad, factor=100)  # of many summed values


def test_the_padding_of_same_is_in_the_op():
    x, weight = torch.randn(1, 3, 8, 9), torch.randn(4, 3, 4, 2)
    with Counted() as counted, fastcnn.use_backend("cpu"):
        found = F.conv2d_block(x, weight, padding="same", dilation=(1, 3))
    assert counted.names == ["conv2d_block_forward"]
    torch.testing.assert_close(found, TF.conv2d(x, weight, padding="same", dilation=(1, 3)).relu())


@pytest.mark.parametrize("options", list(itertools.product([1, 2], [True, False])))
def test_margins_beside_named_padding(options):
    dilation, three = options
    x, weight = torch.randn(1, 3, 8, 9), torch.randn(4, 3, 4, 3)
    x = x[0] if three else x
    conv = (1, "same", dilation, 1)
    found = block(x, weight, None, *conv, Stages(), margins=(1, 2, 0, 3))
    expected = F.conv2d_block(TF.pad(x, (2, 3, 1, 0)), weight, None, *conv)
    torch.testing.assert_close(found, expected)
    long = block(
        x.to(torch.complex64),
        weight.to(torch.complex64),
        None,
        *conv,
        Stages(relu=False),
        margins=(1, 2, 0, 3),
    )
    assert long.shape == expected.shape


LAYER_1 = (3, 224, 96, 11, 4, 1)  # channels, side, maps, side of windows, stride, groups
LAYER_2, LAYER_4, SMALL = (96, 27, 256, 5, 1, 2), (384, 13, 384, 3, 1, 2), (16, 27, 16, 3, 1, 2)


@pytest.mark.parametrize(("layer", "images", "forward", "backward"), [
    (LAYER_1, 32, "space to depth", "space to depth"),
    (LAYER_1, 8, "as it is", "as it is"),
    ((3, 224, 64, 7, 2, 1), 128, "as it is", "as it is"),
    (LAYER_2, 32, "by group", "by group"),
    (LAYER_2, 8, "as it is", "by group"),
    (LAYER_4, 128, "by group", "by group"),
    (LAYER_4, 64, "as it is", "by group"),
    (LAYER_4, 8, "as it is", "as it is"),
    (SMALL, 128, "as it is", "as it is"),
    ((256, 27, 256, 3, 1, 4), 128, "as it is", "as it is"),
])  # fmt: skip
def test_the_way_where_nothing_may_be_timed(monkeypatch, layer, images, forward, backward):
    """As bench/results/gpu_first.json and gpu_full.json have them, of an H200."""
    channels, side, maps, k, stride, groups = layer
    x = torch.empty(images, channels, side, side, device="meta", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.empty(maps, channels // groups, k, k, device="meta", dtype=torch.bfloat16)
    conv = (stride, stride), (2, 2) if stride > 1 else (k // 2, k // 2), (1, 1), groups
    plain = [_convolution._ways(x, weight, conv, phase)[0] for phase in ("forward", "backward")]
    assert plain == ["as it is"] * 2  # on what was not measured
    monkeypatch.setattr(_convolution, "_is_measured", lambda device: True)
    taken = [_convolution._ways(x, weight, conv, phase)[0] for phase in ("forward", "backward")]
    assert taken == [forward, backward]
    if groups == 2:
        assert _convolution._ways(x.contiguous(), weight, conv, "forward")[0] == "as it is"
