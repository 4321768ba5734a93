"""`fastcnn.fuse` on the zoo: what it finds, that results stay, and that it can be undone."""

import copy
import random
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree
from zoo import ENTRIES

import fastcnn
from fastcnn.fusion import fused, runtime, timing
from fastcnn.measure import Timing

BY_NAME = {entry.name: entry for entry in ENTRIES}


def built(entry):
    torch.default_generator.manual_seed(0)
    return entry.build(), torch.randn(entry.size)


def tensors(output):
    return [t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]


def assert_alike(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture
def ran(monkeypatch):
    """The chains that ran, in order, each once for the place where it was called; given what the model is."""
    calls = []
    for cls in (runtime.Epilogue, runtime.FunctionBlock, runtime.LayerBlock):

        def noted(self, *args, _original=cls.__call__, **kwargs):
            calls.append(self) if self not in calls else None
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(cls, "__call__", noted)

    def chains(model):
        forwards = [f for m in model.modules() for f in forwards_of(m)]
        kinds = {call: kinds for f in forwards for call, (kinds, _) in zip(f.calls, f.chains, strict=True)}
        found = [kinds[call] for call in calls]
        calls.clear()
        return found

    return chains


def forwards_of(m):
    fusion = vars(m).get("_fastcnn_fusion")
    return [f for f in fusion.forwards.values() if isinstance(f, fused.Fused)] if fusion else []


REFUSED = {"ViewBySize"}


@pytest.mark.parametrize("fold_bn", [False, True])
@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.name not in REFUSED], ids=lambda entry: entry.name)
def test_the_chains_that_run(entry, fold_bn, ran):
    model, x = built(entry)
    fastcnn.fuse(model.eval(), fold_bn=fold_bn)
    model(x)
    evaluation = entry.chains_folded if fold_bn and entry.chains_folded is not None else entry.chains
    assert_covers(ran(model), evaluation)
    model.train()(x)
    training = entry.training_chains if entry.training_chains is not None else entry.chains
    assert_covers(ran(model), training)


def assert_covers(ran, expected):
    """That each chain expected is in one that ran, in order; what else ran may be more than the zoo knows."""
    chains = iter(ran)
    chain = next(chains, None)
    for kinds in expected:
        while chain is not None and " ".join(kinds) not in " ".join(chain):
            chain = next(chains, None)
        assert chain is not None, (ran, expected)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_same_results_and_undone(entry):
    model, x = built(entry)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    parameters, kinds = list(model.parameters()), [type(m) for m in model.modules()]

    def results(training):
        """Outputs, gradients at the input and of the parameters, and buffers after a call."""
        model.load_state_dict(state)
        model.train(training)
        torch.default_generator.manual_seed(1)
        leaf = x.clone().requires_grad_()
        outputs = tensors(model(leaf))
        sum(t.double().sin().sum() for t in outputs if t.requires_grad).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return [*(t.detach() for t in outputs), leaf.grad, *grads, *model.buffers()]

    expected = [results(training) for training in (False, True)]
    assert fastcnn.fuse(model) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.state_dict().keys() == state.keys()
    for training in (False, True):
        assert_alike(results(training), expected[training])
    fastcnn.fuse(model, fold_bn=True)
    assert_alike(results(False), expected[False])
    assert fastcnn.unfuse(model) is model
    assert [type(m) for m in model.modules()] == kinds
    assert not any("_fastcnn_fusion" in vars(m) for m in model.modules())


class Net(nn.Module):
    """A chain with an option and a reader of each kind of state."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LocalResponseNorm(3, 1.0))
        self.pool = nn.MaxPool2d(2)
        self.more = nn.ModuleList()
        self.scale = 1.0

    def forward(self, x, mask=None):
        x = self.pool(self.block(x)) * self.scale
        for layer in self.more:
            x = layer(x)
        return x if mask is None else x * mask


@pytest.fixture
def net():
    torch.default_generator.manual_seed(0)
    return fastcnn.fuse(Net().eval())


IMAGES = torch.randn(2, 3, 9, 9)


def runs_as_written(net, *args):
    """Whether a call gives what the module's own forward gives, and by which way."""
    with pytest.MonkeyPatch.context() as patch:
        calls = []
        for forward in forwards_of(net):
            run = forward.run
            patch.setitem(vars(forward), "run", lambda *a, run=run: calls.append(1) or run(*a))
        result = net(*args)
    torch.testing.assert_close(result, fastcnn.unfuse(copy.deepcopy(net))(*args))
    return not calls


CHANGES = {
    "a layer replaced": lambda net: setattr(net, "pool", nn.MaxPool2d(3)),
    "a layer inside replaced": lambda net: net.block.__setitem__(1, nn.Tanh()),
    "a layer added": lambda net: net.block.append(nn.Tanh()),
    "an attribute": lambda net: setattr(net, "scale", 2.0),
    "a layer's attribute": lambda net: setattr(net.block[2], "k", 3.0),
    "a stride": lambda net: setattr(net.block[0], "stride", (2, 2)),
    "a layer added to a list": lambda net: net.more.append(nn.Tanh()),
    "a forward": lambda net: setattr(net.pool, "forward", lambda x: x),
    "a hook on a layer": lambda net: net.block[1].register_forward_hook(lambda m, x, y: y + 1),
    "a hook before a layer": lambda net: net.block[0].register_forward_pre_hook(lambda m, x: (x[0] * 2,)),
    "a hook on a layer that is looked through": lambda net: net.block.register_forward_hook(
        lambda m, x, y: y + 1
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_since_runs_as_written(change, net, capsys):
    assert not runs_as_written(net, IMAGES)
    CHANGES[change](net)
    assert runs_as_written(net, IMAGES)
    fastcnn.explain(net)
    assert "as written, since" in capsys.readouterr().out


def test_new_weights_and_modes_stay_fused(net):
    with torch.no_grad():
        net.block[0].weight.mul_(2)
    net.block[0].bias = nn.Parameter(torch.ones(8))
    assert not runs_as_written(net, IMAGES)
    net.block[0].bias = None
    assert not runs_as_written(net, IMAGES)
    assert not runs_as_written(net.train(), IMAGES)
    assert not runs_as_written(net.double(), IMAGES.double())
    net.register_forward_hook(lambda m, x, y: y + 1)
    assert not runs_as_written(net, IMAGES.double())


def test_optional_arguments_run_as_written(net):
    assert runs_as_written(net, IMAGES, torch.full((), 3.0))


def test_one_image_is_torchs_one_image(net):
    image = IMAGES[0]
    torch.testing.assert_close(net(image), fastcnn.unfuse(copy.deepcopy(net))(image))


def test_fused_again_and_in_parts():
    model, x = built(BY_NAME["AlexNet"])
    expected = model.eval()(x)
    fastcnn.fuse(model.features)
    fastcnn.fuse(fastcnn.fuse(model))
    assert all(type(m).__mro__.count(fused.FusedModule) <= 1 for m in model.modules())
    assert len(fused.fusions(model)) == 1
    torch.testing.assert_close(model(x), expected)
    assert isinstance(model, BY_NAME["AlexNet"].build)
    assert repr(model) == repr(fastcnn.unfuse(copy.deepcopy(model)))


def test_fastcnns_own_plain_networks_are_fused_whole():
    net = fastcnn.models.alexnet("2012", num_classes=2, fused=False)
    fastcnn.fuse(net)
    (forward,) = (f for m in net.modules() for f in forwards_of(m)[:1])
    kinds = [chain for chain, _ in forward.chains]
    assert kinds == [
        *2 * [("conv", "relu", "lrn", "pool")],
        *2 * [("conv", "relu")],
        ("conv", "relu", "pool"),
    ]


def test_example_inputs_are_compared(monkeypatch):
    fastcnn.fuse(Net(), (IMAGES,))
    monkeypatch.setattr(runtime.LayerBlock, "__call__", lambda self, root, x: x)
    net = Net()
    with pytest.raises(RuntimeError, match="fuse: the fused model gave another result"):
        fastcnn.fuse(net, (IMAGES,))
    assert type(net) is Net
    assert net.training


EXPLAINED = """\
in                 calls    run as
model (Writer)     forward  as written: forward changes seen
body (Sequential)  0, 1, 2  not fused yet; one block: conv, relu, lrn
body (Sequential)  6        not fused yet; one block: pool
body (Sequential)  5        as written: padding_mode is 'reflect'
body (Sequential)  3        as written: Tanh follows
2 blocks, 0 batch norms folded, 3 left as written, fold_bn=True would fold 0
"""


def test_explain_says_what_is_fused_and_why_not(capsys):
    class Writer(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(3, 4, 3),
                nn.ReLU(),
                nn.LocalResponseNorm(5),
                nn.Conv2d(4, 4, 3),
                nn.Tanh(),
                nn.Conv2d(4, 4, 1, padding_mode="reflect"),
                nn.MaxPool2d(2),
            )

        def forward(self, x):
            self.seen = x
            return self.body(x)

    model = Writer()
    fastcnn.explain(model)
    before = capsys.readouterr().out
    fastcnn.explain(fastcnn.fuse(model))
    after = capsys.readouterr().out
    assert before == EXPLAINED
    assert after == EXPLAINED.replace("not fused yet; ", "")


class Drawing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()

    def scaled(self, x):
        return x * random.random()


class BySuper(Drawing):
    """Draws a number in a method that another of the same name calls."""

    def scaled(self, x):
        return super().scaled(x)

    def forward(self, x):
        return self.scaled(self.relu(self.conv(x)))


class ByAttribute(Drawing):
    """Draws a number in a method that is an attribute."""

    def __init__(self):
        super().__init__()
        self.last = self.scaled

    def forward(self, x):
        return self.last(self.relu(self.conv(x)))


@pytest.mark.parametrize("build", [BySuper, ByAttribute])
def test_each_definition_of_a_method_is_looked_through(build):
    net = fastcnn.fuse(build())
    with torch.no_grad():
        random.seed(0)
        found = net(IMAGES), net(IMAGES)
        random.seed(0)
        expected = build.forward(net, IMAGES), build.forward(net, IMAGES)
    assert_alike(found, expected)


def test_a_layer_that_is_none_is_there():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()
            self.register_module("norm", None)

        def forward(self, x):
            x = self.relu(self.conv(x))
            return x * 2 if hasattr(self, "norm") and self.norm is None else x

    net = fastcnn.fuse(Net())
    assert [kinds for f in forwards_of(net) for kinds, _ in f.chains] == 2 * [("conv", "relu")]
    torch.testing.assert_close(net(IMAGES), Net.forward(net, IMAGES))
    net.norm = nn.BatchNorm2d(4)
    torch.testing.assert_close(net(IMAGES), Net.forward(net, IMAGES))


def folding_net():
    layers = [
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
    ]
    return nn.Sequential(*layers).eval()


def test_explain_counts_what_is_folded(capsys):
    net = folding_net()
    fastcnn.explain(net)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "0 blocks, 0 batch norms folded, 2 left as written, fold_bn=True would fold 2"
    )
    fastcnn.explain(fastcnn.fuse(net, fold_bn=True))
    assert capsys.readouterr().out.splitlines()[-1] == "2 blocks, 2 batch norms folded, 0 left as written"


@pytest.mark.parametrize("seconds", [(2e-6, 1e-6), (1e-6, 2e-6)])
def test_blocks_that_are_slower_are_left(seconds, monkeypatch, capsys):
    taken = [Timing(each, each, each) for each in seconds]
    monkeypatch.setattr(timing.measure, "compare", lambda fns: dict(zip(fns, taken, strict=True)))
    net = fastcnn.fuse(folding_net(), IMAGES, fold_bn=True)
    plain = fastcnn.unfuse(copy.deepcopy(net))
    for other in (net, copy.deepcopy(net), copy.deepcopy(copy.deepcopy(net))):
        with torch.no_grad():
            torch.testing.assert_close(other(IMAGES), plain(IMAGES))
        (forward,) = (f for f in forwards_of(other) if f.chains)
        assert [call.is_left for call in forward.calls] == 2 * [seconds[0] > seconds[1]]
    fastcnn.explain(net)
    said = (
        "as written, since a block takes 2 us against 1 us",
        "one block: conv, bn, relu (1 us against 2 us)",
    )
    assert said[seconds[0] < seconds[1]] in capsys.readouterr().out


@pytest.mark.parametrize("call", [fastcnn.fuse, fastcnn.unfuse, fastcnn.explain])
def test_only_modules_are_taken(call):
    with pytest.raises(TypeError, match=f"{call.__name__}: model must be a torch.nn.Module, but got int"):
        call(3)


def test_a_model_on_a_gpu_in_nchw_is_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    for format, warned in ((torch.contiguous_format, 1), (torch.channels_last, 0)):
        with FakeTensorMode():
            weight = torch.empty(4, 3, 3, 3, device="cuda", memory_format=format)
        net[0].weight = nn.Parameter(weight)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fastcnn.fuse(net)
        assert sum("is NCHW on cuda:0" in str(w.message) for w in caught) == warned
