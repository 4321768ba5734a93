"""Calls modules with other inputs than before, and in other ways."""

import pytest
import torch
from prepared import CONVS, SUBJECTS, alike, cases, outcome, pair, same, shifted
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


class Subclass(torch.Tensor):
    pass


class Tripling(torch.Tensor):
    """Triples what a dense layer gives."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs)
        return result * 3 if function is nn.functional.linear else result


# Inputs. By name; "!" and "?" at the end as in prepared.same.


def strided(x):
    return torch.stack([x, -x], -1)[..., 0]


def sliced(x):
    return torch.cat([x, x], -1)[..., : x.shape[-1]]


def spoiled(x, value):
    y = x.clone()
    y[0, 0, 3:5, 4] = value
    return y


def in_inference(x):
    with torch.inference_mode():
        return x * 2


INPUTS = {
    "as before": lambda x: x,
    "a copy": torch.clone,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "channels_last of one image": lambda x: x[:1].contiguous(memory_format=torch.channels_last),
    "channels_last unaligned": lambda x: shifted(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "batch inside": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "strided": strided,
    "sliced": sliced,
    "flipped": lambda x: x.flip(-1),
    "unaligned": shifted,
    "offset": lambda x: shifted(x, 16),
    "one image expanded": lambda x: x[:1].expand(x.shape),
    "channels expanded": lambda x: x[:, :1].expand(x.shape),
    "one value expanded": lambda x: x[:1, :1, :1, :1].expand(x.shape),
    "odd strides of one image": lambda x: x[:1].as_strided(x[:1].shape, (7, *x.stride()[1:])),
    "every other image": lambda x: torch.cat([x, x])[::2],
    "one image": lambda x: x[:1],
    "seven images": lambda x: torch.cat([x, x, x])[:7],
    "no batch?": lambda x: x[1],
    "no batch, channels_last?": lambda x: x.contiguous(memory_format=torch.channels_last)[1],
    "empty": lambda x: x[:0],
    "requires grad": lambda x: x.clone().requires_grad_(),
    "with a history": lambda x: x.clone().requires_grad_() * 1,
    "a view with a history": lambda x: torch.stack([x, x]).requires_grad_()[0],
    "a parameter": lambda x: nn.Parameter(x),
    "of inference mode?": in_inference,
    "negative view": lambda x: torch._neg_view(x),
    "imaginary part": lambda x: torch.complex(x, x).conj().imag,
    "a subclass": lambda x: x.as_subclass(Subclass),
    "a subclass that acts": lambda x: x.as_subclass(Tripling),
    "shared memory": lambda x: x.clone().share_memory_(),
    "of numpy": lambda x: torch.from_numpy(x.numpy().copy()),
    "larger": lambda x: x * 1e4,
    "NaN": lambda x: spoiled(x, torch.nan),
    "inf": lambda x: spoiled(x, torch.inf),
    "-inf": lambda x: spoiled(x, -torch.inf),
    "zeros": torch.zeros_like,
    "negative zeros": lambda x: torch.full_like(x, -0.0),
    "subnormal": lambda x: x * 1e-39,
    "wider?": lambda x: nn.functional.pad(x, (0, 3)),
    "32 x 32?": lambda x: torch.ones(2, x.shape[1], 32, 32),
    "double?": torch.Tensor.double,
    "half?": torch.Tensor.half,
    "bfloat16?": torch.Tensor.bfloat16,
    "int?": torch.Tensor.int,
    "uint8?": torch.Tensor.byte,
    "bool?": torch.Tensor.bool,
    "complex?": lambda x: x + 0j,
    "meta?": lambda x: x.to("meta"),
    "sparse?": torch.Tensor.to_sparse,
    "more channels?": lambda x: torch.cat([x, x], 1),
    "no channels?": lambda x: x[:, :0],
    "too small?": lambda x: x[..., :1, :1],
    "no columns?": lambda x: x[..., :0],
    "two axes?": lambda x: x[0, 0],
    "five axes?": lambda x: x[None],
    "a scalar?": lambda x: x.sum(),
    "a list?": lambda x: x.tolist(),
    "numpy?": lambda x: x.numpy(),
    "None?": lambda x: None,
}


REFUSED_BY_CONVOLUTIONS = (
    "double?", "half?", "bfloat16?", "int?", "uint8?", "bool?", "complex?", "more channels?", "no channels?",
    "no columns?", "two axes?", "five axes?", "a scalar?", "a list?", "numpy?", "None?",
)  # fmt: skip


# Ours has another layout than torch's layer, or takes what that refuses, or names another error.
UNLIKE_TORCH = {
    ("relu", "sparse?"),
    ("pool", "no batch, channels_last?"),
    *(("lrn", kind) for kind in ("batch inside", "transposed", "no batch, channels_last?", "empty")),
    *(("lrn", kind) for kind in ("half?", "bfloat16?", "sparse?", "no channels?", "no columns?")),
}


FAILING = {
    ("relu", "of inference mode?"): (
        "with gradients recorded a margin is added by the op, which saves the input"
    ),
}


@pytest.mark.parametrize(
    ("name", "kind"), [*cases([name for name in SUBJECTS if name != "caffe"], INPUTS, FAILING)]
)
def test_inputs(name, kind):
    ours, plain, x = pair(name)
    given = INPUTS[kind](x)
    for mode in (torch.no_grad, torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            found, expected = outcome(lambda: ours(given)), outcome(lambda: plain(given))
            assert kind.endswith("?") or not isinstance(expected, type), expected
            if name in CONVS and kind in REFUSED_BY_CONVOLUTIONS:
                assert isinstance(expected, type)
            if (name, kind) not in UNLIKE_TORCH:
                alike(found, expected)
    fresh = SUBJECTS[name].build(True).eval()
    fresh.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        alike(found, outcome(lambda: fresh(given)))
    same(ours, plain, x)


@pytest.mark.parametrize("call", [
    lambda m, x: m(input=x),
    lambda m, x: m.forward(x),
    lambda m, x: m.forward(input=x),
    lambda m, x: nn.Module.__call__(m, x),
    lambda m, x: m(x, x, x),
    lambda m, x: m(),
    lambda m, x: m(x, other=x),
    lambda m, x: m(x=x),
    lambda m, x: nn.Sequential(m, nn.Identity())(x),
    lambda m, x: list(map(m, x)),
    lambda m, x: [m(x), m(x[:1]), m(x), m(x[:2])],
    lambda m, x: m(x.clone().add_(1)) + m(x),
], ids=range(12))  # fmt: skip
@pytest.mark.parametrize("name", ["relu", "fuse", "block", "lrn"])
def test_ways_to_call(name, call):
    ours, plain, x = pair(name)
    with torch.no_grad():
        alike(outcome(lambda: call(ours, x)), outcome(lambda: call(plain, x)))
    same(ours, plain, x)


@pytest.mark.parametrize("name", SUBJECTS)
def test_an_input_that_changes_under_the_same_address(name):
    ours, plain, x = pair(name)
    with torch.no_grad():
        for change in (lambda: x.mul_(2), lambda: x.data.add_(1), lambda: x.numpy().fill(0.5)):
            change()
            alike(ours(x), plain(x))
        x.transpose_(2, 3)
        if name != "lrn":  # whose layout is another than torch's
            alike(outcome(lambda: ours(x)), outcome(lambda: plain(x)))
        x.transpose_(2, 3)
        x.resize_(1, *x.shape[1:])
        alike(ours(x), plain(x))
        x.set_(torch.ones(2, *x.shape[1:]))
        alike(ours(x), plain(x))
        x.data = torch.ones(1, *x.shape[1:]).double()
        alike(outcome(lambda: ours(x)), outcome(lambda: plain(x)))
