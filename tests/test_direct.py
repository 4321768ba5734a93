"""The direct convolution, its gradients and small networks against float64, on drawn shapes."""

import copy
import itertools
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_properties import ISAS, LAYOUTS, PHASES, laid_out, pools
from torch import nn
from torch.nn import functional as TF

import fastcnn
from fastcnn import MaxPool, small
from fastcnn import functional as F
from fastcnn.backends import _direct, cpu, plain, reference
from fastcnn.backends._convolution import conv_output_size, convolution_backward, output_format
from fastcnn.stages import Stages
from fastcnn.testing import TOLERANCES, assert_close, assert_within_twice

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")  # mkldnn.flags sets a GPU's flags, too
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NEEDED = [needed for needed in itertools.product([True, False], repeat=3) if any(needed)]
FORMATS = [torch.contiguous_format, torch.channels_last]


@dataclass
class Case:
    shape: tuple
    layout: str
    dtype: torch.dtype
    outputs: int
    kernel: tuple
    conv: tuple
    bias: bool
    stages: Stages
    needed: tuple
    seed: int
    weight_layout: str = "contiguous"

    def __post_init__(self):
        self.generator = torch.Generator().manual_seed(self.seed)

    def values(self, *shape):
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def tensors(self):
        if self.layout == "expanded":
            x = self.values(1, 1, *self.shape[2:]).expand(self.shape)
        else:
            x = laid_out(self.layout, *self.shape, self.values)
        weight = self.outputs, self.shape[1] // self.conv[3], *self.kernel
        weight = laid_out(self.weight_layout, *weight, self.values)
        return x, weight, self.values(self.outputs) if self.bias else None


small_pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))
kernels = st.tuples(st.integers(1, 5), st.integers(1, 5)) | st.sampled_from(
    [(1, 1), (3, 3), (7, 6), (11, 17)]
)


@st.composite
def cases(draw, dtypes=DTYPES):
    """A convolution of at most 40 channels with stages that fit it."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels, outputs = (groups * draw(st.integers(1, 40 // groups)) for _ in range(2))
    kernel, stride, dilation = draw(kernels), draw(small_pairs), draw(small_pairs)
    padding = tuple(draw(st.integers(0, 3)) for _ in range(draw(st.sampled_from([2, 4]))))
    around = (*padding, *padding)[:4]
    least = [
        max(1, (k - 1) * d + 1 - a - b)
        for k, d, a, b in zip(kernel, dilation, around[:2], around[2:], strict=True)
    ]
    shape = (draw(st.integers(1, 5)), channels, *(draw(st.integers(n, max(n, 20))) for n in least))
    conv = (stride, padding, dilation, groups)
    pool = draw(st.none() | pools())
    size = conv_output_size(
        torch.empty(shape, device="meta"), torch.empty(1, 1, *kernel, device="meta"), conv
    )
    if pool and min(pool.windows(n, axis) for axis, n in enumerate(size)) < 1:
        pool = None
    return Case(
        shape,
        draw(st.sampled_from([*LAYOUTS, "expanded"])),
        draw(st.sampled_from(dtypes)),
        outputs,
        kernel,
        conv,
        draw(st.booleans()),
        Stages(draw(st.booleans()), None, pool),
        draw(st.sampled_from(NEEDED)),
        draw(st.integers(0, 2**31)),
        draw(st.sampled_from(["contiguous", *LAYOUTS])),
    )


def with_isa(monkeypatch, isa):
    make = _direct.params

    def params(*args):
        p = make(*args)
        p.variant = ISAS.index(isa)
        return p

    for module in (_direct, small):
        monkeypatch.setattr(module, "params", params)


@pytest.fixture
def directly(monkeypatch):
    """What the kernels can do they do, however fast."""

    def geometry(x, weight, conv, stages, *_, **__):
        fits = not stages.lrn and x.dtype == weight.dtype in DTYPES
        fits = fits and _direct._fits(x.shape, weight.shape, conv)
        return _direct.Geometry(x.shape, weight.shape, conv) if fits else None

    monkeypatch.setattr(_direct, "geometry", geometry)


def forward(case, x, weight, bias):
    sizes = _direct.Geometry(x.shape, weight.shape, case.conv)
    return _direct.forward(x, weight, bias, case.conv, case.stages, True, sizes)


def backward(case, grad_y, x, weight, y, offsets, needed=(True, True, True)):
    sizes = _direct.Geometry(x.shape, weight.shape, case.conv)
    return _direct.backward(grad_y, x, weight, y, offsets, case.conv, case.stages, needed, sizes)


def expected_gradients(case, grad_y, x, weight, y, offsets):
    """The reference's in the tensors' dtype, for the windows' places that our forward found."""
    size = (x.shape[0], weight.shape[0], *conv_output_size(x, weight, case.conv))
    rest = (offsets, case.stages, size, torch.contiguous_format, True)
    grad_a, grad_bias = reference.epilogue_backward(grad_y, y, *rest)
    return *convolution_backward(grad_a, x, weight, case.conv, (True, True)), grad_bias


def in_dtype(dtype, *tensors):
    return [None if t is None else t.to(dtype) for t in tensors]


def magnitudes(*tensors):
    return [None if t is None else t.double().abs() for t in tensors]


def same(a, b):
    return (a is None and b is None) or torch.equal(a.nan_to_num(), b.nan_to_num())


def check_values(case, x, weight, bias, in_onednn):
    y, r, offsets = forward(case, x, weight, bias)
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
    grads = backward(case, grad_y, x, weight, y, offsets)
    given = grad_y, x, weight
    plains, exacts, sums = (
        expected_gradients(case, *tensors, y.to(tensors[0].dtype), offsets)
        for tensors in (in_dtype(torch.float32, *given), in_dtype(torch.float64, *given), magnitudes(*given))
    )
    for ours, theirs, right, terms in zip(grads, plains, exacts, sums, strict=True):
        assert_within_twice(ours, theirs.to(ours.dtype), right, None if rounds_last else terms)
    return y, offsets, grad_y, grads


def check(case):
    x, weight, bias = case.tensors()
    reach = [(k - 1) * d for k, d in zip(case.kernel, case.conv[2], strict=True)]
    # oneDNN crashes on some convolutions that have a window of nothing but padding.
    flat = all(p <= r for p, r in zip(case.conv[1], 2 * reach, strict=False))
    with torch.backends.mkldnn.flags(enabled=flat):
        y, offsets, grad_y, grads = check_values(case, x, weight, bias, flat)
    # The same bits again, of some gradients alone, on two threads, and of an image alone.
    some = backward(case, grad_y, x, weight, y, offsets, case.needed)
    for a, b, need in zip(some, grads, case.needed, strict=True):
        assert same(a, b) if need else a is None
    with pytest.MonkeyPatch.context() as m:
        m.setattr(_direct, "threads", lambda products: 2)
        assert all(map(same, forward(case, x, weight, bias), (y, None, offsets)))
        assert all(map(same, backward(case, grad_y, x, weight, y, offsets), grads))
    one = slice(x.shape[0] - 1, None)
    alone, _, places = forward(case, x[one], weight, bias)
    assert same(alone, y[one])
    assert offsets is None or same(places, offsets[one])
    assert same(backward(case, grad_y[one], x[one], weight, alone, places)[0], grads[0][one])


@pytest.mark.parametrize("isa", ISAS)
def test_drawn_convolutions(isa, monkeypatch):
    with_isa(monkeypatch, isa)

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
    with_isa(monkeypatch, isa)
    torch.manual_seed(0)
    conv, stages = ((1, 1), (1, 1), (1, 1), 1), Stages(pool=pool)
    x, weight = torch.randn(2, 3, 9, 21).contiguous(memory_format=format), torch.randn(outputs, 3, 3, 3)
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf, -0.0)):
        x[i % 2, i % 3, 2 * i, 5 * i] = value
    case = SimpleNamespace(conv=conv, stages=stages)
    bias = torch.randn(outputs)
    y, _, offsets = forward(case, x, weight, bias)
    exact, _, places = reference.conv_block_forward(
        x.double(), weight.double(), bias.double(), conv, stages, save=True
    )
    assert_close(y, exact.float(), factor=10)
    if pool:  # of an output that is 0 in several places, or rounded, another may be named
        assert torch.equal(offsets[y != 0], places[y != 0])
    x[x.isnan() | x.isinf()] = 0
    grad_y = torch.randn_like(y)
    grad_y[0, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    expected = expected_gradients(case, *in_dtype(torch.float64, grad_y, x, weight, y), offsets)
    for ours, right in zip(backward(case, grad_y, x, weight, y, offsets), expected, strict=True):
        assert_close(ours, right.float(), factor=10)


@pytest.mark.parametrize("isa", ISAS)
def test_infinite_weights_make_nans_of_gradients_of_zero(isa, monkeypatch):
    with_isa(monkeypatch, isa)
    torch.manual_seed(0)
    case = SimpleNamespace(conv=((1, 1), (0, 0), (1, 1), 1), stages=Stages(pool=MaxPool(2)))
    x, weight = torch.rand(2, 3, 9, 9), torch.randn(5, 3, 3, 3)
    weight[0, 0, 1, 1] = torch.inf
    y, _, offsets = forward(case, x, weight, None)
    grad_y = torch.randn_like(y)
    expected = expected_gradients(case, *in_dtype(torch.float64, grad_y, x, weight, y), offsets)[0]
    assert expected.isnan().any()
    assert_close(backward(case, grad_y, x, weight, y, offsets)[0], expected.float(), factor=10)


@pytest.mark.parametrize("outputs", [2, 40])
@pytest.mark.parametrize("size", [(2, 3), (2, 30), (30, 3)])
def test_windows_of_nothing_but_padding(size, outputs):
    stages, conv = Stages(False, None, MaxPool(2, 1, 1, (3, 4))), ((1, 1), (0, 0), (1, 1), 1)
    x, weight, bias = torch.randn(2, 3, *size), torch.randn(outputs, 3, 1, 1), torch.randn(outputs)
    case = SimpleNamespace(conv=conv, stages=stages)
    y, _, offsets = forward(case, x, weight, bias)
    exact, _, places = reference.conv_block_forward(x, weight, bias, conv, stages, save=True)
    assert (y == -torch.inf).any()
    assert_close(y, exact)
    assert torch.equal(offsets, places)
    grad_y = torch.randn_like(y)
    expected = expected_gradients(case, grad_y, x, weight, y, offsets)
    for ours, right in zip(backward(case, grad_y, x, weight, y, offsets), expected, strict=True):
        assert_close(ours, right, factor=10)


def test_places_that_a_hook_made_up_are_within_memory():
    stages, conv = Stages(False, None, MaxPool(3, 1, 1, 2)), ((1, 1), (0, 0), (1, 1), 1)
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 1, 1)
    case = SimpleNamespace(conv=conv, stages=stages)
    y, _, offsets = forward(case, x, weight, None)
    for place in range(256):  # what is outside AddressSanitizer sees
        grads = backward(case, torch.ones_like(y), x, weight, y, offsets.fill_(place))
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


# Networks: as one call, from the first that could be.


@st.composite
def networks(draw):
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


@pytest.mark.parametrize("isa", ISAS)
def test_drawn_networks(isa, directly, monkeypatch):
    with_isa(monkeypatch, isa)

    @settings(max_examples=60, deadline=None, derandomize=True, phases=PHASES)
    @given(networks())
    @torch.no_grad()
    def drawn(given):
        net, x = given
        y = small.run(net, x, small.sequence)
        exact = copy.deepcopy(net).double()(x.double())
        # Layers that cancel each other's values have larger terms than what comes out shows.
        assert_within_twice(y, net(x), exact, 8 * exact)
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
