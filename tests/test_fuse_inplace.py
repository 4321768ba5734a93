"""Writes in place around fused chains: what plain torch allows is allowed, with the same results."""

import copy

import pytest
import torch
from inplace_forwards import FORWARDS
from torch import nn
from torch.nn import functional as F

import fastcnn

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))


CHAINS = {
    "relu": lambda: [nn.Conv2d(4, 8, 3), nn.ReLU()],
    "relu in place": lambda: [nn.Conv2d(4, 8, 3), nn.ReLU(inplace=True)],
    "pool": lambda: [nn.Conv2d(4, 8, 3), nn.MaxPool2d(2)],
    "relu pool": lambda: [nn.Conv2d(4, 8, 3), nn.ReLU(), nn.MaxPool2d(2)],
    "relu in place, pool": lambda: [nn.Conv2d(4, 8, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)],
    "overlapping": lambda: [nn.Conv2d(4, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)],
    "lrn": lambda: [nn.Conv2d(4, 8, 3), nn.LocalResponseNorm(3, 0.5)],
    "relu lrn": lambda: [nn.Conv2d(4, 8, 3), nn.ReLU(), nn.LocalResponseNorm(3, 0.5)],
    "relu lrn pool": lambda: [nn.Conv2d(4, 8, 3), nn.ReLU(), nn.LocalResponseNorm(3, 0.5), nn.MaxPool2d(2)],
    "relu pool lrn": lambda: [nn.Conv2d(4, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.LocalResponseNorm(3, 0.5)],
    "pool relu": lambda: [nn.Conv2d(4, 8, 3), nn.MaxPool2d(2), nn.ReLU(inplace=True)],
    "norm": lambda: [nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)],
    "pool alone": lambda: [nn.Conv2d(4, 8, 1), nn.Tanh(), nn.MaxPool2d(2)],
    "lrn pool alone": lambda: [nn.Conv2d(4, 8, 1), nn.Tanh(), nn.LocalResponseNorm(3), nn.MaxPool2d(2)],
    "two": lambda: [nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2)],
    "groups": lambda: [nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.MaxPool2d(2)],
    "1 by 1": lambda: [nn.Conv2d(4, 8, 1), nn.ReLU(), nn.MaxPool2d(2)],
}


def to_zero(y):
    y[y < 0.1] = 0
    return y


def a_row(y):
    y[:, 1] = 3.0
    return y


def through_a_view(y):
    y.view(y.shape[0], -1)[:, ::2].mul_(0.5)
    return y


def through_data(y):
    y.data.mul_(0.5)
    return y


def through_detach(y):
    y.detach().mul_(0.5)
    return y


def under_no_grad(y):
    with torch.no_grad():
        y.mul_(0.5)
    return y


def added_to_itself(y):
    y += y.mean()
    return y


def copied_into(y):
    y.copy_(y.flip(0).clone())
    return y


def out_argument(y):
    with torch.no_grad():
        torch.mul(y, 0.5, out=y) if not y.requires_grad else None
    return y


def indexed(y):
    y.index_add_(1, torch.tensor([0, 2]), torch.ones_like(y[:, :2]))
    return y


def swapped(y):
    a, b = y.chunk(2, 1) if y.shape[1] % 2 == 0 else (y, y)
    a = a.clone()
    a.add_(b)
    b = b * a
    return a + b


def resized(y):
    return y.unsqueeze_(0).squeeze_(0).transpose_(2, 3)


def kept_and_written(y):
    """The output is read, then written into, then both are used."""
    before = y * 2
    y.mul_(0.5)
    return before + y


def saved_and_written(y):
    """The output is saved for backward, then written into: plain torch refuses."""
    before = y * y
    y.mul_(0.5)
    return before + y


def exponential_and_written(y):
    before = y.exp()
    y.add_(1)
    return before * 2 + y


AFTER = {
    "nothing": lambda y: y,
    "mul_": lambda y: y.mul_(0.5),
    "add_": lambda y: y.add_(1),
    "add_ a tensor": lambda y: y.add_(torch.ones_like(y)),
    "zero_": lambda y: y.zero_(),
    "fill_": lambda y: y.fill_(2.0) + y.sum(),
    "relu_": lambda y: y.relu_(),
    "relu in place": lambda y: F.relu(y, inplace=True),
    "leaky in place": lambda y: F.leaky_relu(y, inplace=True),
    "threshold in place": lambda y: F.threshold(y, 0.2, 0.1, inplace=True),
    "hardtanh in place": lambda y: F.hardtanh(y, inplace=True),
    "silu in place": lambda y: F.silu(y, inplace=True),
    "elu in place": lambda y: F.elu(y, inplace=True),
    "sigmoid_": lambda y: y.sigmoid_(),
    "tanh_": lambda y: y.tanh_(),
    "clamp_": lambda y: y.clamp_(0.1, 0.5),
    "sub_": lambda y: y.sub_(0.3).relu_(),
    "dropout": lambda y: F.dropout(y, 0.5, True, inplace=True),
    "dropout2d": lambda y: F.dropout2d(y, 0.5, True, inplace=True),
    "alpha dropout": lambda y: F.alpha_dropout(y, 0.5, True),
    "masked_fill_": lambda y: y.masked_fill_(y < 0.2, -1.0),
    "to zero": to_zero,
    "a row": a_row,
    "through a view": through_a_view,
    "through data": through_data,
    "through detach": through_detach,
    "under no_grad": under_no_grad,
    "added to itself": added_to_itself,
    "copied into": copied_into,
    "out argument": out_argument,
    "indexed": indexed,
    "chunks": swapped,
    "resized": resized,
    "kept and written": kept_and_written,
    "saved and written": saved_and_written,
    "exponential and written": exponential_and_written,
    "flattened": lambda y: y.flatten(1).mul_(0.5),
    "reshaped": lambda y: y.reshape(-1).add_(1),
    "twice": lambda y: y.mul_(2).add_(1).relu_(),
    "a slice": lambda y: y[:, 1:3].mul_(3),
    "a slice, all returned": lambda y: [y[:, 1:3].mul_(3), y][1],
    "normalised": lambda y: y.div_(y.norm()),
    "bernoulli": lambda y: y.mul_(torch.empty_like(y).bernoulli_(0.5)),
    "random": lambda y: y.add_(torch.rand(y.shape)),
    "batch norm": lambda y: F.batch_norm(y, None, None, training=True).relu_(),
}


def build(chain):
    torch.default_generator.manual_seed(0)
    return nn.Sequential(*CHAINS[chain]())


def outcome(run):
    """Returns what a call gives, or the error's type."""
    torch.default_generator.manual_seed(1)
    try:
        return run()
    except RuntimeError as error:
        return type(error)


def assert_alike(found, expected):
    """Where plain torch raises, the fused model may be right, too."""
    if isinstance(expected, type):
        return
    assert not isinstance(found, type), "raises where plain torch does not"
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def gradients(net, after, x, weight=1.0):
    y = after(net(x))
    values = y.detach().clone()
    (y.sin() * weight).sum().backward()
    return [values, x.grad, *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("chain", CHAINS)
def test_the_caller_writes_into_the_output(chain, after):
    plain, net = build(chain), fastcnn.fuse(build(chain))
    found, expected = (
        outcome(lambda m=m: gradients(m, AFTER[after], IMAGES.clone().requires_grad_())) for m in (net, plain)
    )
    assert_alike(found, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("chain", ["relu pool", "relu lrn", "norm", "two"])
def test_without_gradients(chain, after, mode):
    plain, net = build(chain).eval(), fastcnn.fuse(build(chain).eval(), fold_bn=True)

    def run(m):
        with mode():
            first = AFTER[after](m(IMAGES))
            return [first.clone(), AFTER[after](m(IMAGES)), first, IMAGES]

    assert_alike(outcome(lambda: run(net)), outcome(lambda: run(plain)))


def test_images_were_not_written():
    expected = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(IMAGES, expected)


def called(net, x, leaf, training):
    """Returns what two calls give and leave; inputs, buffers and what was kept with them."""
    net.train(training)
    found = []
    for _ in range(2):
        argument = x.clone().requires_grad_(leaf)
        y = net(argument * 1 if leaf else argument)
        found += [y.detach().clone(), None if leaf else argument.clone()]
        if y.requires_grad:
            y.sin().sum().backward()
        found.append(argument.grad)
    found += [p.grad for p in net.parameters()]
    kept = getattr(net, "kept", None)
    return [*found, *net.buffers(), *net.parameters(), kept]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("leaf", [False, True], ids=["", "input"])
@pytest.mark.parametrize("name", FORWARDS)
def test_forwards(name, leaf, training):
    torch.default_generator.manual_seed(0)
    plain = FORWARDS[name]()
    net = fastcnn.fuse(copy.deepcopy(plain))
    found, expected = (outcome(lambda m=m: called(m, IMAGES, leaf, training)) for m in (net, plain))
    assert_alike(found, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("name", FORWARDS)
def test_forwards_without_gradients(name, mode):
    torch.default_generator.manual_seed(0)
    plain = FORWARDS[name]()
    net = fastcnn.fuse(copy.deepcopy(plain), fold_bn=True)

    def run(m):
        with mode():
            return called(m, IMAGES, False, False)

    assert_alike(outcome(lambda: run(net)), outcome(lambda: run(plain)))


FOLLOWERS = {
    "relu": lambda: nn.ReLU(inplace=True),
    "dropout": lambda: nn.Dropout(0.5, inplace=True),
    "leaky": lambda: nn.LeakyReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "mish": lambda: nn.Mish(inplace=True),
    "elu": lambda: nn.ELU(inplace=True),
    "rrelu": lambda: nn.RReLU(inplace=True),
    "threshold": lambda: nn.Threshold(0.1, 0.0, inplace=True),
    "norm and relu": lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
    "relu and convolution": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1)),
}


@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
@pytest.mark.parametrize("follower", FOLLOWERS)
@pytest.mark.parametrize("chain", CHAINS)
def test_layers_in_place_behind_a_chain(chain, follower, nested):
    torch.default_generator.manual_seed(0)
    layers = [*CHAINS[chain](), FOLLOWERS[follower]()]
    plain = nn.Sequential(nn.Sequential(*layers[:-1]), layers[-1]) if nested else nn.Sequential(*layers)
    net = fastcnn.fuse(copy.deepcopy(plain))
    found, expected = (
        outcome(lambda m=m: gradients(m, lambda y: y, IMAGES.clone().requires_grad_())) for m in (net, plain)
    )
    assert_alike(found, expected)


HOOKS = {
    "written": lambda m, args, y: y.mul_(2),
    "written, not returned": lambda m, args, y: [y.add_(1), None][1],
    "replaced": lambda m, args, y: y * 2,
    "the input written": lambda m, args, y: [args[0].data.mul_(2), None][1],
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("chain", CHAINS)
def test_hooks_that_write(chain, hook):
    plain, net = build(chain), fastcnn.fuse(build(chain))
    for m in (net, plain):
        m.register_forward_hook(HOOKS[hook])
    found, expected = (
        outcome(lambda m=m: gradients(m, lambda y: y, IMAGES.clone().requires_grad_())) for m in (net, plain)
    )
    assert_alike(found, expected)


@pytest.mark.parametrize("when", ["input", "weight"])
@pytest.mark.parametrize("chain", CHAINS)
def test_written_between_forward_and_backward(chain, when):
    """A tensor that backward needs was written: plain torch raises; a fused model raises or is right."""
    results = []
    for m in (build(chain), fastcnn.fuse(build(chain))):

        def run(m=m):
            x = IMAGES.clone()
            y = m(x)
            with torch.no_grad():
                (x if when == "input" else m[0].weight).mul_(2)
            y.sin().sum().backward()
            return [p.grad for p in m.parameters()]

        results.append(outcome(run))
    if isinstance(results[0], type):
        right = build(chain)
        right(IMAGES.clone()).sin().sum().backward()
        results[0] = [p.grad for p in right.parameters()]
        if isinstance(results[1], type):
            return
    assert_alike(results[1], results[0])


@pytest.mark.parametrize("chain", CHAINS)
def test_gradients_written_in_place(chain):
    results = []
    for m in (build(chain), fastcnn.fuse(build(chain))):
        y = m(IMAGES)
        y.register_hook(lambda grad: grad.mul_(2))
        grad = torch.ones_like(y)
        y.backward(grad, retain_graph=True)
        y.backward(torch.ones_like(y).expand_as(y))
        results.append([p.grad for p in m.parameters()])
    assert_alike(*results[::-1])


@pytest.mark.parametrize("twice", [False, True], ids=["", "twice"])
@pytest.mark.parametrize("chain", CHAINS)
def test_outputs_do_not_share_memory(chain, twice):
    """An output is no view of the input, nor of an earlier output, nor of a weight."""
    net = fastcnn.fuse(build(chain).eval(), fold_bn=True)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            x = IMAGES.clone()
            first = net(x)
            expected = first.detach().clone()
            second = net(x * 2 if twice else x)
            second.detach().fill_(7)
            assert torch.equal(first, expected)
            assert torch.equal(x, IMAGES)
            assert first._base is None
            torch.testing.assert_close(net(x), expected)
