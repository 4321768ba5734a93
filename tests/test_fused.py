"""A fused module's class, the ways to call it, its copies, and what the forward that it runs looks like."""

import copy
import itertools
from typing import ClassVar
from unittest import mock

import pytest
import torch
from forwards import IMAGES
from normed_nets import FunctionNorm
from small_nets import normed, sequence
from torch import nn
from torch.nn import functional as F

import fastcnn
from fastcnn import small
from fastcnn.fusion.fused import Fused, FusedModule, fusion_of, fusions
from fastcnn.fusion.runtime import LayerBlock

pytestmark = pytest.mark.usefixtures("one_thread")


class Body(nn.Module):
    """A convolution and a ReLU."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU()

    def forward(self, x):
        return self.act(self.conv(x))


class Conditional(nn.Module):
    """No graph can say what it does in training."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        x = self.body(x)
        return x * 2 if self.training and x.sum() > 0 else x


class Lazy(nn.Module):
    """Has a chain once its convolution is made."""

    def __init__(self):
        super().__init__()
        self.conv = nn.LazyConv2d(4, 3)

    def forward(self, x):
        x = self.conv(x)
        return F.relu(x) if self.conv.in_channels else x


class Two(nn.Module):
    """The first is the block's input, the second scales its output."""

    def __init__(self):
        super().__init__()
        self.body = Body()

    def forward(self, x, scale):
        return self.body(x) * scale


class Mixin:
    known: ClassVar = []

    def __init_subclass__(cls):
        Mixin.known.append(cls)


class MixedInLast(nn.Sequential, Mixin):
    pass


class Meta(type):
    pass


class OfAMetaclass(nn.Sequential, metaclass=Meta):
    pass


class PicklesItsWay(nn.Sequential):
    def __reduce__(self):
        return type(self), tuple(self.children())


def forward_of(net, training=False):
    forward = fusion_of(net).forwards[training]
    assert isinstance(forward, Fused)
    return forward


def runs(net, *args, **kwargs):
    """Returns how often a call runs the fused forward; its result is as written."""
    forward = fusion_of(net).usable(net)
    with mock.patch.dict(vars(forward), run=mock.Mock(wraps=forward.run)):
        found = net(*args, **kwargs)
        torch.testing.assert_close(found, type(net)._fastcnn_written.forward(net, *args, **kwargs))
        return forward.run.call_count


def test_the_class_is_called_as_it_was():
    class Local(Body):
        """Inside of a function."""

    net = fastcnn.fuse(Local())
    assert type(net) is not Local
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(type(net), name) == getattr(Local, name)


def test_layers_stay_of_their_class():
    net = fastcnn.fuse(nn.Sequential(Body(), nn.Conv2d(4, 4, 1), nn.ReLU()))
    assert [type(m) for m in net.modules()][2:] == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU]
    assert isinstance(net[0], FusedModule)
    assert len(fusions(net)) == 1


@pytest.mark.parametrize("cls", [MixedInLast, OfAMetaclass, PicklesItsWay])
def test_classes_that_see_or_are_more_are_left(cls):
    net = nn.Sequential(cls(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(4, 4, 1), nn.ReLU())
    known = list(Mixin.known)
    fastcnn.fuse(net), fastcnn.fuse(net[0])
    assert type(net[0]) is cls
    assert Mixin.known == known


def test_a_net_without_chains_is_left():
    net = fastcnn.fuse(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    assert type(net) is nn.Sequential
    assert fusion_of(net) is None


def test_a_forward_that_is_fused_in_evaluation_alone(capsys):
    """In training its parts are, by themselves."""
    plain = Conditional(Body())
    net = fastcnn.fuse(copy.deepcopy(plain))
    for training in (True, False, True):
        torch.testing.assert_close(net.train(training)(IMAGES), plain.train(training)(IMAGES))
        assert runs(net.body if training else net, IMAGES) == 1
    assert [type(fusion.forwards[True]) for fusion in fusions(net)] == [str, Fused]
    for m, training in itertools.product((net, copy.deepcopy(net)), (True, False, True, False)):
        fastcnn.explain(m.train(training))
        assert "\n1 blocks, 0 batch norms folded, 1 left as written" in capsys.readouterr().out
    assert not [m for m in fastcnn.unfuse(net).modules() if isinstance(m, FusedModule)]


def test_a_layer_that_is_not_in_the_nets_mode():
    net = fastcnn.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.ReLU()).train())
    assert runs(net.eval(), IMAGES) == 1
    net[1].train()
    assert fusion_of(net).usable(net) is None


def test_a_lazy_net_is_looked_at_again():
    net = fastcnn.fuse(Lazy().eval())
    net(IMAGES)
    assert runs(net, IMAGES) == 1


# Ways to call


@pytest.mark.parametrize("grad", [False, True])
def test_a_sequence_takes_one_argument(grad):
    net = fastcnn.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)).eval())
    with torch.set_grad_enabled(grad):
        assert (small.run(net, IMAGES, small.sequence) is None) == grad
        for args, kwargs in (((), {}), ((IMAGES, IMAGES), {}), ((IMAGES,), {"more": IMAGES})):
            with pytest.raises(TypeError):
                net(*args, **kwargs)
        assert runs(net, input=IMAGES) == 1


def test_arguments_by_name():
    net = fastcnn.fuse(Two().eval())
    assert runs(net, IMAGES, torch.full((), 2.0)) == 1
    assert runs(net, IMAGES, scale=torch.full((), 2.0)) == 1
    assert runs(net, scale=torch.full((), 2.0), x=IMAGES) == 1
    assert runs(net, IMAGES, 2.0) == 0


@torch.no_grad()
def test_a_small_sequence_runs_prepared():
    net, other = fastcnn.fuse(sequence().eval()), fastcnn.fuse(Body().eval())
    with mock.patch.object(small, "run", wraps=small.run) as run:
        net(IMAGES), other(IMAGES)
    assert [call.args[0] for call in run.call_args_list if call.args[2] is small.sequence] == [net]


def test_a_class_derived_from_a_fused_one_outlives_its_fusion():
    torch._dynamo.reset()
    net = fastcnn.fuse(sequence().eval())
    net.__class__ = type("Derived", (type(net),), {})
    expected = net(IMAGES)
    fastcnn.unfuse(net)
    assert isinstance(net, FusedModule)
    torch.testing.assert_close(net(IMAGES), expected)
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(IMAGES), expected)


# Copies


@pytest.mark.parametrize("fused_in", [False, True])
def test_a_copy_is_fused_in_both_modes(fused_in):
    net = copy.deepcopy(fastcnn.fuse(sequence().train(fused_in)))
    for training in (False, True, False):
        assert runs(net.train(training), IMAGES) == 1


def test_a_shallow_copy_with_another_layer():
    net = fastcnn.fuse(sequence().eval())
    other = copy.copy(net)
    vars(other)["_modules"] = {**net._modules, "3": nn.MaxPool2d(3)}
    torch.testing.assert_close(other(IMAGES), nn.Sequential.forward(other, IMAGES))
    torch.testing.assert_close(net(IMAGES), nn.Sequential.forward(net, IMAGES))


def test_a_copy_leaves_the_blocks_that_were_slower():
    net = fastcnn.fuse(sequence(nn.Conv2d(6, 6, 1), nn.ReLU()).eval())
    forward_of(net).calls[1].is_left = True
    twin = copy.deepcopy(net)
    for training in (False, True):
        twin.train(training)(IMAGES)
    assert [call.is_left for call in forward_of(twin).calls] == [False, True]
    assert [call.is_left for call in forward_of(twin, training=True).calls] == [False, False]


def test_a_copy_with_fewer_blocks_than_were_timed():
    net = fastcnn.fuse(sequence(nn.Conv2d(6, 6, 1), nn.ReLU()).eval())
    forward_of(net).calls[1].is_left = True
    net[5] = nn.Identity()
    assert runs(copy.deepcopy(net), IMAGES) == 1


@pytest.mark.filterwarnings("ignore")
def test_scripting_leaves_the_model_as_it_is():
    net = fastcnn.fuse(nn.Sequential(sequence(), nn.Conv2d(6, 6, 1), nn.ReLU()).eval())
    children = list(net.children())
    torch.testing.assert_close(torch.jit.script(net)(IMAGES), net(IMAGES))
    assert [a is b for a, b in zip(net.children(), children, strict=True)] == [True] * 3
    assert fusion_of(net) is not None
    assert fusion_of(net[0]) is not None


# Compiled


def compiled(net):
    """Returns a compiled call's result, and the functions in its graph."""
    torch._dynamo.reset()
    names = []

    def look(module, inputs):
        names.extend(str(node.target) for node in module.graph.nodes)
        return module

    return torch.compile(net, backend=look, fullgraph=True)(IMAGES), names


def test_a_compiled_call_runs_blocks():
    net = fastcnn.fuse(sequence().eval())
    y, names = compiled(net)
    assert names.count("fastcnn.conv2d_block") == 1
    torch.testing.assert_close(y, net(IMAGES))


@pytest.mark.parametrize("change", ["hook", "setting"])
def test_what_changed_before_it_was_compiled(change):
    net = fastcnn.fuse(sequence().eval())
    if change == "hook":
        net[1].register_forward_hook(lambda m, x, y: y + 1)
    else:
        net[2].size = 5
    y, names = compiled(net)
    assert "fastcnn.conv2d_block" not in names
    torch.testing.assert_close(y, fastcnn.unfuse(net)(IMAGES))


COMPILED = {
    "a pool": lambda net: setattr(net[2], "kernel_size", 3),
    "a stride": lambda net: setattr(net[0], "stride", (2, 2)),
    "a layer": lambda net: net.__setitem__(1, nn.Tanh()),
}


@pytest.mark.parametrize("change", COMPILED)
def test_what_changes_is_compiled_again(change):
    torch._dynamo.reset()
    net = fastcnn.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)))
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(IMAGES), net(IMAGES))
    COMPILED[change](net)
    torch.testing.assert_close(compiled(IMAGES), fastcnn.unfuse(copy.deepcopy(net))(IMAGES))


def test_each_copy_is_compiled_by_itself():
    torch._dynamo.reset()
    net = fastcnn.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)))
    hooked = copy.deepcopy(net)
    hooked[1].register_forward_hook(lambda m, x, y: y + 1)
    for m in (net, hooked):
        compiled = torch.compile(m, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(IMAGES), fastcnn.unfuse(copy.deepcopy(m))(IMAGES))


# The forward that runs


class Deep(nn.Module):
    """Reads layers and a parameter far inside."""

    def __init__(self):
        super().__init__()
        self.part = nn.ModuleDict({"whole": Body(), "head": nn.Linear(3, 3)})
        self.part.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        conv = self.part["whole"].conv
        x = F.relu(F.conv2d(x, conv.weight, conv.bias))
        return self.part["head"](F.max_pool2d(x, 3)) * self.part.scale


def test_what_lies_deep_is_looked_up_in_dictionaries():
    net = fastcnn.fuse(Deep())
    code = forward_of(net).run.__code__
    assert not {"part", "whole"} & {*code.co_names}
    assert {"_modules", "head", "scale"} <= {*code.co_names}
    torch.testing.assert_close(net(IMAGES), Deep.forward(net, IMAGES))


class Opaque(nn.Module):
    """Stays a call."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def scaled(net):
    """Multiplied with a parameter."""
    return nn.Sequential(net, Scale())


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale


def hooked(net):
    net = nn.Sequential(net, nn.Tanh(), nn.Tanh())
    net[1].register_forward_hook(lambda m, x, y: None)
    return net


def of_a_function(net):
    net[1].__class__ = FunctionNorm
    return net


@pytest.mark.parametrize(
    ("around", "at_once"),
    [
        (lambda net: net, True),
        (lambda net: nn.Sequential(net, nn.Tanh()), True),
        (of_a_function, True),
        (lambda net: nn.Sequential(net, nn.Tanh(), Opaque()), False),
        (scaled, False),
        (hooked, False),
    ],
    ids=["alone", "layers", "a function", "a module", "a parameter", "a hook"],
)
def test_folded_weights_are_checked_at_once(around, at_once):
    """Where no call between the blocks may write to them."""
    net = fastcnn.fuse(around(normed()).eval(), fold_bn=True)
    forward = forward_of(net)
    folding = [call for call in forward.calls if isinstance(call, LayerBlock) and call.layers[1] is not None]
    assert len(folding) == 1 < len(forward.calls)
    assert forward.folding == (folding if at_once else [])
    assert [call.is_checked for call in forward.calls] == [
        at_once and call in folding for call in forward.calls
    ]
