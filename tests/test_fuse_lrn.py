"""Local response normalisation as people write it: a block where it is torch's, and always its values."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastcnn
from fastcnn.fusion.fused import Fused, fusion_of

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(2, 3, 10, 10, generator=GENERATOR)
MAPS = torch.randn(2, 8, 7, 7, generator=GENERATOR)


class Module(nn.Module):
    """The form most public code has, module and attributes as there."""

    def __init__(self, size=5, alpha=0.5, beta=0.75, k=1.0, **options):
        super().__init__()
        padding = options.pop("padding", ((size - 1) // 2, 0, 0))
        kernel = options.pop("kernel_size", (size, 1, 1))
        self.average = nn.AvgPool3d(kernel_size=kernel, stride=1, padding=padding, **options)
        self.alpha, self.beta, self.k, self.size = alpha, beta, k, size

    def forward(self, x):
        div = x.pow(2).unsqueeze(1)
        div = self.average(div).squeeze(1)
        div = div.mul(self.alpha).add(self.k).pow(self.beta)
        return x.div(div)


def spelled(forward):
    """A form of its own forward."""
    return type(forward.__name__, (Module,), {"forward": forward})


FORMS = {"module": Module}


def form(forward):
    FORMS[forward.__name__] = spelled(forward)
    return forward


@form
def operators(self, x):
    div = self.average((x * x).unsqueeze(1)).squeeze(1)
    return x / (self.k + self.alpha * div) ** self.beta


@form
def operators_turned(self, x):
    div = self.average((x**2).unsqueeze(1)).squeeze(1)
    return x / (div * self.alpha + self.k) ** self.beta


@form
def functions(self, x):
    div = torch.pow(x, 2).unsqueeze(1)
    div = F.avg_pool3d(div, (self.size, 1, 1), stride=1, padding=((self.size - 1) // 2, 0, 0)).squeeze(1)
    div = torch.pow(torch.add(torch.mul(div, self.alpha), self.k), self.beta)
    return torch.div(x, div)


@form
def squares(self, x):
    div = self.average(torch.square(x).unsqueeze(dim=1)).squeeze(dim=1)
    return torch.true_divide(x, (self.k + div * self.alpha).pow(self.beta))


@form
def method_square(self, x):
    return x.true_divide((self.k + self.average(x.square()[:, None])[:, 0] * self.alpha).pow(self.beta))


@form
def multiplies(self, x):
    div = self.average(torch.mul(x, x).unsqueeze(1)).squeeze(1)
    return x * (self.k + self.alpha * div) ** -self.beta


@form
def multiplies_by_a_power(self, x):
    div = self.average(x.mul(x).unsqueeze(1)).squeeze(1)
    return x.mul(torch.pow(self.alpha * div + self.k, -self.beta))


@form
def in_place(self, x):
    div = x.pow(2).unsqueeze(1)
    div = self.average(div).squeeze(1)
    div = div.mul_(self.alpha).add_(self.k).pow_(self.beta)
    return x.div(div)


@form
def augmented(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    div *= self.alpha
    div += self.k
    div **= self.beta
    return x / div


@form
def in_place_at_the_end(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1).mul(self.alpha).add(self.k).pow(self.beta)
    y = x.clone()
    y /= div
    return y


@form
def literals(self, x):
    div = F.avg_pool3d(x.pow(2).unsqueeze(1), (5, 1, 1), 1, (2, 0, 0)).squeeze(1)
    return x / (div * 0.5 + 1.0).pow(0.75)


@form
def lists(self, x):
    div = F.avg_pool3d(x.pow(2).unsqueeze(1), [5, 1, 1], [1, 1, 1], [2, 0, 0]).squeeze(1)
    return x / (div * 0.5 + 1.0).pow(0.75)


@form
def by_name(self, x):
    div = torch.unsqueeze(input=torch.pow(input=x, exponent=2), dim=1)
    div = F.avg_pool3d(input=div, kernel_size=(5, 1, 1), padding=(2, 0, 0), stride=1)
    div = torch.squeeze(input=div, dim=1)
    return torch.div(
        input=x, other=torch.pow(div.mul(other=self.alpha).add(other=self.k), exponent=self.beta)
    )


@form
def alpha_by_add(self, x):
    """torch.add's own alpha multiplies its second argument."""
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / torch.add(torch.ones_like(div), div, alpha=self.alpha).pow(self.beta)


@form
def k_with_an_alpha(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k, alpha=2).pow(self.beta)


@form
def rounded_division(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return torch.div(x, div.mul(self.alpha).add(self.k).pow(self.beta), rounding_mode="floor")


@form
def k_first(self, x):
    """The factor multiplies k, too."""
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.add(self.k).mul(self.alpha + 1).pow(self.beta)


@form
def power_first(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).pow(self.beta).add(self.k)


@form
def cubes(self, x):
    div = self.average(x.pow(3).abs().unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def another_numerator(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return (x + 1) / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def two_inputs(self, x):
    div = self.average((x * (x + 0.1)).abs().unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def upside_down(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return div.mul(self.alpha).add(self.k).pow(self.beta) / (x.abs() + 1)


@form
def square_root(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / torch.sqrt(div.mul(self.alpha).add(self.k))


@form
def read_again(self, x):
    """The divisor is read once more."""
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1).mul(self.alpha).add(self.k).pow(self.beta)
    return x / div + div.mean()


@form
def max_pooling(self, x):
    div = F.max_pool3d(x.pow(2).unsqueeze(1), (5, 1, 1), 1, (2, 0, 0)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def all_axes(self, x):
    """squeeze() without an axis takes every axis of size 1."""
    div = self.average(x.pow(2).unsqueeze(1)).squeeze()
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def another_axis(self, x):
    """The new axis is the second of the image's: what is averaged over are rows."""
    div = F.avg_pool3d(x.pow(2).unsqueeze(2), (1, 5, 1), 1, (0, 2, 0)).squeeze(2)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def last_axis(self, x):
    div = F.avg_pool3d(x.pow(2).unsqueeze(-1), (1, 5, 1), 1, (0, 2, 0)).squeeze(-1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def axis_from_the_end(self, x):
    div = self.average(x.pow(2).unsqueeze(-4)).squeeze(-4)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def within_channels(self, x):
    div = F.avg_pool2d(x.pow(2), self.size, stride=1, padding=(self.size - 1) // 2)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def both(self, x):
    """What AlexNet ports have: one or the other by an attribute."""
    if self.size % 2:  # noqa: SIM108
        div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    else:
        div = F.avg_pool2d(x.pow(2), 3, 1, 1)
    return x.div(div.mul(self.alpha).add(1.0).pow(self.beta))


@form
def padded_by_hand(self, x):
    half = self.size // 2
    div = F.pad(x.pow(2).unsqueeze(1), (0, 0, 0, 0, half, (self.size - 1) // 2))
    div = F.avg_pool3d(div, (self.size, 1, 1), stride=1).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def views(self, x):
    """torch's own spelling for images, by views."""
    n, c, h, w = x.shape
    div = F.pad(x.pow(2).view(n, 1, c, h, w), (0, 0, 0, 0, self.size // 2, (self.size - 1) // 2))
    div = F.avg_pool3d(div, (self.size, 1, 1), stride=1).view(n, c, h, w)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def torchs(self, x):
    return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k)


@form
def detached(self, x):
    """The divisor is taken as a constant in the gradient."""
    div = self.average(x.detach().pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def detached_divisor(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta).detach()


@form
def without_gradients(self, x):
    with torch.no_grad():
        div = self.average(x.pow(2).unsqueeze(1)).squeeze(1).mul(self.alpha).add(self.k).pow(self.beta)
    return x / div


@form
def in_doubles(self, x):
    div = self.average(x.double().pow(2).unsqueeze(1)).squeeze(1)
    return (x / div.mul(self.alpha).add(self.k).pow(self.beta)).float()


@form
def clamped(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).clamp(max=1.2).pow(self.beta)


@form
def summed(self, x):
    """Caffe's and the paper's sum, as a convolution or a product with the size."""
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1) * self.size
    return x / (self.k + self.alpha / self.size * div).pow(self.beta)


@form
def tensor_exponent(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(torch.tensor(self.beta))


@form
def a_method(self, x):
    def divisor(y):
        return self.average(y.pow(2).unsqueeze(1)).squeeze(1)

    return x.div(divisor(x).mul(self.alpha).add(self.k).pow(self.beta))


@form
def data(self, x):
    div = self.average(x.data.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def half_detached(self, x):
    """The gradient of x · x.detach() is half of the square's."""
    div = self.average((x * x.detach()).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def numerator_detached(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x.detach() / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def average_detached(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).detach().squeeze(1)
    return x.div(div.mul(self.alpha).add(self.k).pow(self.beta))


@form
def cloned(self, x):
    div = self.average(x.clone().pow(2).contiguous().unsqueeze(1)).squeeze(1).clone()
    return x.contiguous() / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def absolute(self, x):
    div = self.average(x.abs().pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def reciprocal(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x * div.mul(self.alpha).add(self.k).pow(self.beta).reciprocal()


@form
def root(self, x):
    return x * torch.rsqrt(self.average(x.pow(2).unsqueeze(1)).squeeze(1).mul(self.alpha).add(self.k))


@form
def float_exponent(self, x):
    div = self.average((x**2.0).unsqueeze(1)).squeeze(1)
    return torch.divide(x, div.multiply(self.alpha).add(self.k) ** self.beta)


@form
def through_a_dropout(self, x):
    div = self.average(F.dropout(x.pow(2), 0.3, False).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def of_another_tensor(self, x):
    y = x.flip(1)
    div = self.average(y.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def written_between(self, x):
    x = x * 1
    div = self.average(x.detach().clone().pow(2).unsqueeze(1)).squeeze(1)
    x = x.mul_(2)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def numerator_written_between(self, x):
    with torch.no_grad():
        y = x * 1
        div = self.average(y.pow(2).unsqueeze(1)).squeeze(1)
        y.mul_(2)
        return y / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def numerator_written_in_place(self, x):
    """The divisor is of what x was before it was written."""
    y = x * 1
    z = y * 2
    div = self.average(z.pow(2).unsqueeze(1)).squeeze(1)
    y.add_(1)
    return z / div.mul(self.alpha).add(self.k).pow(self.beta) + y


@form
def divided_in_place(self, x):
    y = x * 1
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    y.div_(div.mul(self.alpha).add(self.k).pow(self.beta))
    return y


@form
def clamped_high(self, x):
    """Differs from LRN for large inputs only."""
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).clamp(max=1e4).pow(self.beta)


@form
def input_clamped(self, x):
    div = self.average(x.clamp(-50, 50).pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def divisor_at_least(self, x):
    """Differs for small inputs only."""
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).clamp(min=1.001).pow(self.beta)


@form
def with_an_epsilon(self, x):
    div = self.average(x.pow(2).add(1e-3).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def size_by_channels(self, x):
    n = min(5, x.shape[-3]) | 1
    div = F.avg_pool3d(x.pow(2).unsqueeze(-4), (n, 1, 1), 1, (n // 2, 0, 0)).squeeze(-4)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def size_by_rows(self, x):
    n = 3 if x.shape[-1] > 8 else 5
    div = F.avg_pool3d(x.pow(2).unsqueeze(-4), (n, 1, 1), 1, (n // 2, 0, 0)).squeeze(-4)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def alpha_by_batch(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha * x.shape[0]).add(self.k).pow(self.beta)


@form
def alpha_by_training(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha if self.training else 2.0).add(self.k).pow(self.beta)


@form
def alpha_by_gradients(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha if x.requires_grad else 2.0).add(self.k).pow(self.beta)


@form
def without_nan(self, x):
    div = self.average(torch.nan_to_num(x).pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def square_clamped(self, x):
    div = self.average(x.pow(2).clamp(max=1e3).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def hardtanh(self, x):
    y = F.hardtanh(x, -100.0, 100.0)
    return x / self.average((y * x).unsqueeze(1)).squeeze(1).mul(self.alpha).add(self.k).pow(self.beta)


@form
def numerator_clamped(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return x.clamp(-80, 80) / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def quotient_clamped(self, x):
    div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
    return (x / div.mul(self.alpha).add(self.k).pow(self.beta)).clamp(-9, 9)


@form
def input_in_half(self, x):
    div = self.average(x.half().to(x.dtype).pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


@form
def input_reversed_gradient(self, x):
    y = x.clone()
    if y.requires_grad:
        y.register_hook(lambda grad: -grad)
    div = self.average(y.pow(2).unsqueeze(1)).squeeze(1)
    return x / div.mul(self.alpha).add(self.k).pow(self.beta)


OPTIONS = {
    "": {},
    "size 3": {"size": 3},
    "size 7": {"size": 7},
    "size 1": {"size": 1},
    "more than channels": {"size": 17},
    "twice the channels": {"size": 15},
    "even": {"size": 4},
    "even, padded more": {"size": 4, "padding": (2, 0, 0)},
    "no padding": {"padding": (0, 0, 0)},
    "padding 1": {"padding": (1, 0, 0)},
    "padding everywhere": {"padding": 2, "kernel_size": 5},
    "paddings left out": {"size": 5, "count_include_pad": False},
    "ceil": {"ceil_mode": True},
    "divisor": {"divisor_override": 3},
    "divisor of the size": {"divisor_override": 5},
    "a list": {"kernel_size": [5, 1, 1], "padding": [2, 0, 0]},
    "a cube": {"kernel_size": (5, 3, 1), "padding": (2, 1, 0)},
    "k 2": {"k": 2.0},
    "k 0.5": {"k": 0.5},
    "k an integer": {"k": 2},
    "alpha 0": {"alpha": 0.0},
    "alpha an integer": {"alpha": 1},
    "alpha below 0": {"alpha": -0.01},
    "beta 1": {"beta": 1.0},
    "beta an integer": {"beta": 2},
    "beta 0": {"beta": 0.0},
    "beta 0.5": {"beta": 0.5},
    "beta below 0": {"beta": -0.75},
    "tensors": {"alpha": torch.tensor(0.5), "beta": torch.tensor(0.75)},
    "a parameter": {"alpha": nn.Parameter(torch.tensor(0.5))},
    "the paper's": {"alpha": 1e-4, "beta": 0.75, "k": 2.0},
}


class Behind(nn.Module):
    """The norm between a convolution and a pooling."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(3, 8, 3), norm, nn.MaxPool2d(2)

    def forward(self, x):
        return self.pool(self.norm(F.relu(self.conv(x))))


def build(form="module", **options):
    torch.manual_seed(0)
    return Behind(FORMS[form](**options))


def kinds(net):
    forwards = [f for m in net.modules() if fusion_of(m) is not None for f in fusion_of(m).forwards.values()]
    return {kind for f in forwards if isinstance(f, Fused) for chain, _ in f.chains for kind in chain}


def results(net, x, dtype=torch.float32, grad=True):
    """The value and the gradients, or the error's type."""
    x = x.to(dtype).clone().requires_grad_(grad)
    try:
        y = net(x)
        if not y.requires_grad:
            return [y]
        parameters = [x, *net.parameters()]
        return [y, *torch.autograd.grad(y.sin().sum(), parameters, allow_unused=True)]
    except Exception as error:
        return type(error)


def compare(net, plain, x, dtype=torch.float32, grad=True, or_else=None):
    """Both give the same or raise the same; where the plain one raises, the fused one may give another's."""
    found, expected = results(net, x, dtype, grad), results(plain, x, dtype, grad)
    if isinstance(expected, type):
        if or_else is None or isinstance(found, type):
            assert found is expected
            return
        expected = results(or_else, x, dtype, grad)
    assert not isinstance(found, type), found
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    for a, b in zip(found, expected, strict=True):
        if b is None:
            assert a is None or not a.any()
        else:
            assert a is not None
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.fixture(autouse=True)
def one_thread():
    """Keeps small convolutions from waiting for threads of a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_forms(form, dtype):
    plain, net = build(form).to(dtype), fastcnn.fuse(build(form).to(dtype))
    for grad in (False, True):
        compare(net, plain, IMAGES, dtype, grad)
        with torch.no_grad():
            compare(net, plain, IMAGES, dtype, False)
    compare(net, plain, IMAGES[0], dtype)
    compare(net, plain, IMAGES[:1], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", ["batch", "one", "image", "line", "volume", "empty"])
@pytest.mark.parametrize("form", FORMS)
def test_forms_by_themselves(form, shape, dtype):
    shapes = {
        "batch": MAPS,
        "one": MAPS[:1],
        "image": MAPS[0],
        "line": MAPS[0, 0],
        "volume": MAPS[None],
        "empty": MAPS[:0],
    }
    plain, net = FORMS[form](), fastcnn.fuse(FORMS[form]())
    for x in (shapes[shape], shapes[shape] * 2):
        compare(net, plain, x, dtype)
    with torch.no_grad():
        compare(net, plain, shapes[shape], dtype, grad=False)


@pytest.mark.parametrize(
    "form", ["module", "operators", "functions", "in_place", "multiplies", "within_channels"]
)
@pytest.mark.parametrize("options", OPTIONS)
def test_options(options, form):
    options = OPTIONS[options]
    if form in {"functions", "within_channels"} and not options.keys().isdisjoint({"padding", "kernel_size"}):
        pytest.skip("it has these of its own")
    plain = build(form, **options)
    net = fastcnn.fuse(copy.deepcopy(plain))
    torchs = build("torchs", **options)  # plain torch refuses to average over more channels than there are
    for x in (IMAGES, IMAGES[0], IMAGES * 3):
        compare(net, plain, x, or_else=torchs)
        with torch.no_grad():
            compare(net, plain, x, grad=False, or_else=torchs)


@pytest.mark.parametrize("scale", [1e-3, 30.0, 300.0])
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_other_inputs(form, scale):
    """Small and large inputs, of other sizes, in both modes."""
    plain, net = FORMS[form](), fastcnn.fuse(FORMS[form]())
    generator = torch.Generator().manual_seed(2)
    for training in (True, False):
        for shape in ((2, 8, 7, 7), (1, 5, 3, 12), (3, 6, 9, 9), (2, 8, 7, 7)):
            x = torch.randn(shape, generator=generator) * scale
            with torch.no_grad():
                compare(net.train(training), plain.train(training), x, grad=False)
            compare(net, plain, x)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 3, 5, 7, 9])
def test_few_channels(channels, size):
    x = torch.randn(2, channels, 5, 5, generator=torch.Generator().manual_seed(1))
    for form in ("module", "operators", "all_axes", "views"):
        plain, net = FORMS[form](size=size), fastcnn.fuse(FORMS[form](size=size))
        for part in (x, x[:1], x[0]):
            compare(net, plain, part, or_else=FORMS["torchs"](size=size))


@pytest.mark.parametrize("options", ["", "size 3", "size 7", "k 2", "the paper's", "a list", "beta 0.5"])
def test_the_usual_form_is_a_block(options):
    net = fastcnn.fuse(build(**OPTIONS[options]).eval())
    assert "lrn" in kinds(net)


FUSED = ["module", "operators", "operators_turned", "literals", "torchs"]
NEVER = [
    "k_first",
    "power_first",
    "cubes",
    "another_numerator",
    "two_inputs",
    "upside_down",
    "read_again",
    "max_pooling",
    "another_axis",
    "within_channels",
    "detached",
    "data",
    "half_detached",
    "input_clamped",
    "clamped_high",
    "square_clamped",
    "hardtanh",
    "numerator_clamped",
    "without_nan",
    "numerator_detached",
    "average_detached",
    "of_another_tensor",
    "detached_divisor",
    "clamped",
    "rounded_division",
]


@pytest.mark.parametrize("form", FUSED)
def test_forms_that_are_blocks(form):
    assert "lrn" in kinds(fastcnn.fuse(build(form)))


@pytest.mark.parametrize("form", NEVER)
def test_forms_that_are_none(form):
    assert "lrn" not in kinds(fastcnn.fuse(build(form)))


NOT_TORCHS = [
    "even, padded more",
    "no padding",
    "padding 1",
    "padding everywhere",
    "paddings left out",
    "divisor",
    "a cube",
    "even",
]


@pytest.mark.parametrize("options", NOT_TORCHS)
def test_options_that_are_not_torchs(options):
    assert "lrn" not in kinds(fastcnn.fuse(build(**OPTIONS[options])))


@pytest.mark.parametrize("fused", [False, True], ids=["before", "after"])
def test_explain_says_what_is_within_channels(fused, capsys):
    net = build("within_channels")
    if fused:
        fastcnn.fuse(net)
    fastcnn.explain(net)
    assert "within channels" in capsys.readouterr().out


def test_explain_names_the_block(capsys):
    fastcnn.explain(fastcnn.fuse(build()))
    out = capsys.readouterr().out
    assert "lrn" in out
    assert "0 left as written" in out


CHANGES = {
    "alpha": lambda norm: setattr(norm, "alpha", 1.0),
    "alpha as a tensor": lambda norm: setattr(norm, "alpha", torch.tensor(2.0)),
    "beta": lambda norm: setattr(norm, "beta", 0.5),
    "k": lambda norm: setattr(norm, "k", 2.0),
    "average": lambda norm: setattr(norm, "average", nn.AvgPool3d((3, 1, 1), 1, (1, 0, 0))),
    "average's size": lambda norm: [
        setattr(norm.average, "kernel_size", (3, 1, 1)),
        setattr(norm.average, "padding", (1, 0, 0)),
    ],
    "average's padding counts": lambda norm: setattr(norm.average, "count_include_pad", False),
    "average's divisor": lambda norm: setattr(norm.average, "divisor_override", 2),
    "average's hook": lambda norm: norm.average.register_forward_hook(lambda m, x, y: y * 2),
    "a hook": lambda norm: norm.register_forward_hook(lambda m, x, y: y * 2),
    "a hook of gradients": lambda norm: norm.register_full_backward_hook(lambda m, i, o: (i[0] * 2,)),
    "average's forward": lambda norm: setattr(norm.average, "forward", lambda x: x * 2),
    "a forward": lambda norm: setattr(norm, "forward", lambda x: x * 2),
    "another class": lambda norm: setattr(norm, "__class__", FORMS["power_first"]),
}


@pytest.mark.parametrize("called", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", ["module", "operators"])
def test_changes_are_noticed(form, change, called):
    plain, net = build(form), fastcnn.fuse(build(form))
    if called:
        compare(net, plain, IMAGES)
    for m in (net.norm, plain.norm):
        CHANGES[change](m)
    compare(net, plain, IMAGES)
    with torch.no_grad():
        compare(net, plain, IMAGES, grad=False)
    fastcnn.fuse(net)
    compare(net, plain, IMAGES)


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_norm_alone(change):
    plain, net = FORMS["module"](), fastcnn.fuse(FORMS["module"]())
    compare(net, plain, MAPS)
    for m in (net, plain):
        CHANGES[change](m)
    compare(net, plain, MAPS)


def test_no_constant():
    """With k of 0 an input of 0 gives no number; another's gradient is large."""
    x = MAPS + MAPS.sign()
    for form in ("module", "operators", "torchs"):
        compare(fastcnn.fuse(FORMS[form](k=0.0)), FORMS[form](k=0.0), x)
        zeros = torch.zeros_like(x)
        assert torch.equal(fastcnn.fuse(FORMS[form](k=0.0))(zeros).isnan(), FORMS[form](k=0.0)(zeros).isnan())


INPUTS = {
    "zeros": lambda x: torch.zeros_like(x),
    "large": lambda x: x * 1e15,
    "small": lambda x: x * 1e-25,
    "far apart": lambda x: x * 10 ** torch.linspace(-6, 6, x.numel()).view(x.shape),
    "not a number": lambda x: x.masked_fill(x > 1, float("nan")),
    "infinite": lambda x: x.masked_fill(x > 1, float("inf")),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "expanded": lambda x: x[:1, :1].expand_as(x),
    "flipped": lambda x: x.transpose(2, 3),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(
    "form", ["module", "operators", "torchs", "without_nan", "input_clamped", "absolute"]
)
def test_inputs(form, name):
    plain, net = FORMS[form](), fastcnn.fuse(FORMS[form]())
    x = INPUTS[name](MAPS)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            torch.testing.assert_close(net(x), plain(x), rtol=1e-4, atol=1e-6, equal_nan=True)
            assert net(x).is_contiguous() or not plain(x).is_contiguous()


@pytest.mark.parametrize("form", ["module", "operators", "torchs", "in_place"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64], ids=str)
def test_other_dtypes_do_as_plain(form, dtype):
    plain, net = FORMS[form](), fastcnn.fuse(FORMS[form]())
    x = (MAPS * 4).to(dtype)
    try:
        expected = plain(x)
    except NotImplementedError:
        expected = plain(x.float()).to(dtype)
    except Exception:  # in-place calls on integers, for one
        return
    try:
        found = net(x)
    except NotImplementedError:
        return
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found.float(), expected.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("form", ["module", "operators", "within_channels"])
def test_autocast(form):
    plain, net = build(form), fastcnn.fuse(build(form))
    for mode in (torch.no_grad, torch.enable_grad):
        with torch.autocast("cpu", torch.bfloat16), mode():
            results = []
            for m in (net, plain):
                try:
                    results.append(m(IMAGES).float())
                except Exception as error:
                    results.append(type(error))
        if not isinstance(results[1], type):
            torch.testing.assert_close(*results, rtol=3e-2, atol=3e-2)


TRANSFORMS = {
    "vmap": lambda net: torch.func.vmap(net)(MAPS[:, None]),
    "jvp": lambda net: torch.func.jvp(net, (MAPS,), (MAPS.cos(),)),
    "grad": lambda net: torch.func.grad(lambda x: net(x).sin().sum())(MAPS),
    "second": lambda net: torch.func.grad(
        lambda x: torch.func.grad(lambda z: net(z).sin().sum())(x).pow(2).sum()
    )(MAPS),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("form", ["module", "operators"])
def test_transforms(form, transform):
    run = TRANSFORMS[transform]
    plain, net = FORMS[form](), fastcnn.fuse(FORMS[form]())
    try:
        expected = run(plain)
    except Exception as error:
        with pytest.raises(type(error)):
            run(net)
    else:
        torch.testing.assert_close(run(net), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["copies", "unfused", "example", "folded"])
def test_ways(way):
    plain, net = build(), build()
    if way == "copies":
        net = copy.deepcopy(fastcnn.fuse(net))
    elif way == "unfused":
        fastcnn.unfuse(fastcnn.fuse(net))
        assert type(net.norm) is Module
    else:
        fastcnn.fuse(net, IMAGES if way == "example" else None, fold_bn=way == "folded")
    compare(net, plain, IMAGES)


def test_what_is_read_in_between_is_given():
    """The squares, the average or the divisor, returned or kept besides."""

    def keeps(self, x):
        square = x.pow(2)
        average = self.average(square.unsqueeze(1)).squeeze(1)
        div = average.mul(self.alpha).add(self.k).pow(self.beta)
        return x.div(div), square, average, div

    plain, net = spelled(keeps)(), fastcnn.fuse(spelled(keeps)())
    torch.testing.assert_close(net(MAPS), plain(MAPS))


def test_one_norm_used_twice_and_two_in_a_row():
    torch.manual_seed(0)
    norm = Module()
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), norm, norm, nn.MaxPool2d(2), norm, FORMS["operators"](3)
    )
    net = fastcnn.fuse(copy.deepcopy(plain))
    compare(net, plain, IMAGES)
    net[2].alpha = plain[2].alpha = 2.0
    compare(net, plain, IMAGES)


def test_a_partial_of_a_function():
    norm = functools.partial(F.local_response_norm, size=3, alpha=0.5)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), norm

        def forward(self, x):
            return self.norm(F.relu(self.conv(x)))

    torch.manual_seed(0)
    plain = Net()
    net = fastcnn.fuse(copy.deepcopy(plain))
    compare(net, plain, IMAGES)
    net.norm = plain.norm = functools.partial(F.local_response_norm, size=5, alpha=2.0)
    compare(net, plain, IMAGES)
