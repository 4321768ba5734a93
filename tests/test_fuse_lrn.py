"""Local response normalisation as people write it: a block where it is torch's, and always its values."""

import copy
import functools

import pytest
import torch
from lrn_forms import FORMS, IMAGES, MAPS, OPTIONS, Module, build, compare, kinds, spelled
from torch import nn
from torch.nn import functional as F

import fastcnn

pytestmark = pytest.mark.usefixtures("one_thread")


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
    torch.default_generator.manual_seed(0)
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

    torch.default_generator.manual_seed(0)
    plain = Net()
    net = fastcnn.fuse(copy.deepcopy(plain))
    compare(net, plain, IMAGES)
    net.norm = plain.norm = functools.partial(F.local_response_norm, size=5, alpha=2.0)
    compare(net, plain, IMAGES)
