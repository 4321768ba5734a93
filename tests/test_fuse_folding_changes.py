"""Folded batch norms while weights, statistics, layers and modes change between two calls."""

import contextlib
import copy
import functools

import pytest
import torch
from normed_nets import IMAGES, Activated, compare, conv, filled, fused, other_state, seq, step
from torch import nn
from torch.nn.utils import prune

pytestmark = pytest.mark.usefixtures("one_thread")


def in_place(change):
    def changed(net):
        with torch.no_grad():
            change(net)

    return changed


def replaced(name, tensor):
    def change(net):
        layer, _, parameter = name.partition(".")
        setattr(net[int(layer)], parameter, tensor())

    return change


def swapped(net):
    net[0].weight.data, other = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(5)), 1
    return other


def written_by_numpy(net):
    net[1].running_mean.numpy()[:] = 2.0


def dropped(net):
    net[1].weight = net[1].bias = None


def tied(net):
    net[0].bias = net[1].bias


def as_buffers(net):
    for name in ("weight", "bias"):
        value = getattr(net[1], name).detach() * 2
        delattr(net[1], name)
        net[1].register_buffer(name, value)


def to_half_and_back(net):
    net.to(torch.bfloat16)
    net(IMAGES.bfloat16())
    net.to(torch.float32)


def moved_through_double(net):
    net.double()
    net(IMAGES.double())
    net.float()


def resets(net):
    net[1].reset_running_stats()


def averages(net):
    """Sets the statistics anew, as before an average of weights is used."""
    momenta = net[1].momentum
    net[1].momentum = None
    net[1].reset_running_stats()
    net.train()
    with torch.no_grad():
        net(IMAGES)
        net(IMAGES * 2)
    net.eval()
    net[1].momentum = momenta


def many_steps(net):
    for _ in range(3):
        step(net)
        with torch.no_grad():
            net(IMAGES)


CHANGES = {
    "weight in place": in_place(lambda net: net[0].weight.mul_(2)),
    "weight's view in place": in_place(lambda net: net[0].weight[0].zero_()),
    "weight's older view": in_place(lambda net: net[0].weight.view(-1)[3:].add_(1)),
    "bias in place": in_place(lambda net: net[0].bias.add_(1)),
    "norm's weight in place": in_place(lambda net: net[1].weight.mul_(-1)),
    "norm's bias in place": in_place(lambda net: net[1].bias.add_(1)),
    "mean in place": in_place(lambda net: net[1].running_mean.add_(1)),
    "variance in place": in_place(lambda net: net[1].running_var.mul_(3)),
    "mean's item": in_place(lambda net: net[1].running_mean.__setitem__(0, 7.0)),
    "detached": lambda net: net[0].weight.detach().mul_(2),
    "foreach": in_place(lambda net: torch._foreach_mul_(list(net.parameters()), 2.0)),
    "init": lambda net: nn.init.constant_(net[1].weight, 0.3),
    "inference mode": lambda net: net[1].bias.detach().add_(1),
    "load": lambda net: net.load_state_dict(other_state(net)),
    "load by assignment": lambda net: net.load_state_dict(other_state(net), assign=True),
    "load a part": lambda net: net[1].load_state_dict(
        {k[2:]: v for k, v in other_state(net).items() if k.startswith("1.")}
    ),
    "load twice": lambda net: [
        net.load_state_dict(other_state(net)),
        net(IMAGES),
        net.load_state_dict(other_state(net), assign=True),
    ],
    "sgd in training": step,
    "sgd in evaluation": functools.partial(step, mode=False),
    "adam": functools.partial(step, optimizer=torch.optim.Adam),
    "foreach adam": functools.partial(step, optimizer=functools.partial(torch.optim.Adam, foreach=True)),
    "fused sgd": functools.partial(step, optimizer=functools.partial(torch.optim.SGD, fused=True)),
    "fused adam": functools.partial(step, optimizer=functools.partial(torch.optim.Adam, fused=True)),
    "many steps": many_steps,
    "a training call": lambda net: (net.train()(IMAGES), net.eval()),
    "a training call without gradients": in_place(lambda net: (net.train()(IMAGES), net.eval())),
    "the norm alone trained": lambda net: (net[1].train(), net(IMAGES), net[1].eval()),
    "the norm alone called": lambda net: (net[1].train()(torch.randn(2, 8, 5, 5).sin()), net[1].eval()),
    "statistics reset": resets,
    "statistics averaged": averages,
    "eps": lambda net: setattr(net[1], "eps", 0.7),
    "weight replaced": replaced("0.weight", lambda: nn.Parameter(torch.ones(8, 4, 3, 3))),
    "weight of another size": replaced("0.weight", lambda: nn.Parameter(torch.ones(8, 4, 5, 5))),
    "bias replaced": replaced("0.bias", lambda: nn.Parameter(torch.ones(8))),
    "bias removed": replaced("0.bias", lambda: None),
    "norm's weight replaced": replaced("1.weight", lambda: nn.Parameter(torch.full((8,), 0.5))),
    "norm's weights removed": dropped,
    "norm's weights as buffers": as_buffers,
    "mean replaced": replaced("1.running_mean", lambda: torch.ones(8)),
    "variance replaced": replaced("1.running_var", lambda: torch.full((8,), 4.0)),
    "a tie": tied,
    "another norm": lambda net: net.__setitem__(1, filled(nn.BatchNorm2d(8), 3).eval()),
    "another convolution": lambda net: net.__setitem__(0, nn.Conv2d(4, 8, 1).requires_grad_(False).eval()),
    "an instance norm": lambda net: net.__setitem__(1, nn.InstanceNorm2d(8)),
    "no norm": lambda net: net.__setitem__(1, nn.Identity()),
    "no statistics": lambda net: (
        setattr(net[1], "running_mean", None) or setattr(net[1], "running_var", None)
    ),
    "in bfloat16 and back": to_half_and_back,
    "in float64 and back": moved_through_double,
    "channels_last": lambda net: net.to(memory_format=torch.channels_last),
    "channels_last and back": lambda net: net.to(memory_format=torch.channels_last).to(
        memory_format=torch.contiguous_format
    ),
    "frozen": lambda net: net.requires_grad_(False),
    "a hook on the norm": lambda net: net[1].register_forward_hook(lambda m, x, y: y + 1),
    "a hook before the norm": lambda net: net[1].register_forward_pre_hook(lambda m, x: (x[0] * 2,)),
    "a hook on the convolution": lambda net: net[0].register_forward_hook(lambda m, x, y: y + 1),
    "a hook that sees": lambda net: net[1].register_forward_hook(lambda m, x, y: None),
    "a forward": lambda net: setattr(net[1], "forward", lambda x: x * 2),
    "training mode": lambda net: net.train(),
    "training mode of the norm": lambda net: net[1].train(),
    "pruned": lambda net: prune.l1_unstructured(net[0], "weight", 0.5),
    "pruned for good": lambda net: prune.remove(prune.l1_unstructured(net[0], "weight", 0.5), "weight"),
    "weight norm": lambda net: nn.utils.parametrizations.weight_norm(net[0]),
    "weight norm, older": lambda net: nn.utils.weight_norm(net[0]),
}


WARNS = {"weight norm, older"}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("frozen", [False, True], ids=["no_grad", "frozen"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_two_calls(change, frozen):
    plain = seq(conv(), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    if frozen and ("sgd" in change or "adam" in change or "step" in change):
        pytest.skip("a frozen net is not trained")
    plain.requires_grad_(not frozen)
    net = fused(copy.deepcopy(plain))
    with contextlib.nullcontext() if frozen else torch.no_grad():
        compare(net, plain)
        compare(net, plain)
    for m in (net, plain):
        torch.default_generator.manual_seed(1)
        CHANGES[change](m)
    with contextlib.nullcontext() if frozen else torch.no_grad():
        compare(net, plain)
        compare(net, plain)
    if not plain.training:
        with torch.inference_mode():
            compare(net, plain)
    for (name, a), (_, b) in zip(net.state_dict().items(), plain.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "change", ["weight in place", "mean in place", "load", "eps", "in bfloat16 and back"]
)
def test_timms_norm_that_changes(change):
    plain = seq(conv(), Activated(8), nn.MaxPool2d(2)).requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    compare(net, plain)
    for m in (net, plain):
        CHANGES[change](m)
    compare(net, plain)


@pytest.mark.parametrize("act", [nn.SiLU(), nn.Identity(), nn.Tanh(), nn.ReLU6()], ids=lambda act: str(act))
def test_timms_norm_of_another_activation_later(act):
    plain = seq(conv(), Activated(8), nn.MaxPool2d(2)).requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    compare(net, plain)
    net[1].act, plain[1].act = act, copy.deepcopy(act)
    compare(net, plain)


def test_timms_norm_in_training():
    plain = seq(conv(), Activated(8, nn.ReLU, nn.Dropout), nn.MaxPool2d(2)).train()
    net = fused(copy.deepcopy(plain))
    for m in (net, plain):
        torch.default_generator.manual_seed(1)
        m(IMAGES).sum().backward()
        m.eval()
    torch.testing.assert_close(net.state_dict(), plain.state_dict())
    compare(net, plain)
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
