"""The layers and ops in torch's own tools: torch.fx, TorchScript, pruning, parametrizations, copies."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastcnn
from fastcnn import LRN, MaxPool
from fastcnn import functional as F
from fastcnn.nn import ConvBlock2d, LocalResponseNorm
from fastcnn.testing import assert_close

BLOCKS = {
    "relu": {},
    "nothing": {"relu": False},
    "lrn, pool": {"lrn": LRN(3, 0.5, groups=2), "pool": MaxPool(3, 2, 1, ceil_mode=True)},
    "pool, lrn": {"lrn": LRN(4, 0.5, k=2.0), "pool": MaxPool((2, 3), 1, dilation=2), "order": "pool_lrn"},
    "same": {"padding": "same", "bias": False, "lrn": LRN()},
    "recompute": {"recompute": True, "stride": 2, "groups": 2, "pool": MaxPool(2)},
}
LAYERS = {name: lambda given=given: ConvBlock2d(4, 8, 3, **given) for name, given in BLOCKS.items()} | {
    "LocalResponseNorm": lambda: LocalResponseNorm(3, 0.5),
    "MaxPool2d": lambda: fastcnn.nn.MaxPool2d(3, 2, ceil_mode=True),
    "Features": lambda: nn.Sequential(*fastcnn.models.lenet5(in_channels=4).features),
    "a model's Features": lambda: fastcnn.models.lenet5(in_channels=4).features,
    "a plain model's": lambda: fastcnn.models.alexnet("2012", in_channels=4, fused=False).features[1:3],
}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(2, 4, 20, 21)


def training_step(m, x):
    """The output, and the gradients of the input and of all parameters."""
    x = x.detach().clone().requires_grad_()
    y = m(x * 1)  # which a ReLU may overwrite
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *m.parameters()])]


# What a ConvBlock2d is


@pytest.mark.parametrize("given", [
    {}, {"stride": 2, "padding": (1, 2), "dilation": 2, "groups": 2}, {"bias": False, "padding": "same"},
    {"dtype": torch.bfloat16}, {"device": "meta"},
], ids=str)  # fmt: skip
def test_a_block_has_conv2ds_attributes_parameters_and_weights_but_is_none(given):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, (3, 2), **given)
    after = torch.randint(1 << 40, ())
    torch.manual_seed(0)
    block = ConvBlock2d(4, 8, (3, 2), **given)
    assert torch.randint(1 << 40, ()) == after
    assert not isinstance(block, nn.Conv2d)
    names = [n for n in vars(conv) if not n.startswith("_")]
    assert {n: getattr(block, n) for n in names} == {n: getattr(conv, n) for n in names}
    assert list(block.state_dict()) == list(conv.state_dict())
    assert [n for n in block._parameters] == [n for n in conv._parameters]
    assert repr(block) == repr(conv).replace("Conv2d", "ConvBlock2d")[:-1] + ", relu=True)"
    if "device" not in given:
        torch.manual_seed(1)
        conv.reset_parameters()
        torch.manual_seed(1)
        block.reset_parameters()
        for a, b in zip(block.parameters(), conv.parameters(), strict=True):
            assert torch.equal(a, b)
    block.load_state_dict(conv.state_dict())


def test_an_uninitialised_block():
    block = nn.utils.skip_init(ConvBlock2d, 4, 8, 3, lrn=LRN())
    assert block.weight.shape == (8, 4, 3, 3)


# torch.fx


@layers
def test_fx_traces_layers_within_a_model_and_as_roots(make, x):
    m = make()
    for root in (m, nn.Sequential(nn.Identity(), m)):
        traced = torch.fx.symbolic_trace(root)
        others = [copy.deepcopy(traced)]
        others += [pickle.loads(pickle.dumps(traced))] if root is not m else []  # torch can't: quoted types
        for again in (traced, *others):
            for a, b in zip(training_step(again, x), training_step(root, x), strict=True):
                assert_close(a, b)


CALLS = {
    "conv2d_block": lambda x, w: F.conv2d_block(x, w, lrn=LRN(3), pool=MaxPool(2), recompute=True),
    "conv2d_block of a constant": lambda x, w: F.conv2d_block(torch.ones(1, 4, 9, 9), w) + x.mean(),
    "epilogue": lambda x, w: F.epilogue(x, w[:4, 0, 0, 0], lrn=LRN(3), pool=MaxPool(2), order="pool_lrn"),
    "local_response_norm": lambda x, w: F.local_response_norm(x, 3, beta=0.5, k=2),
    "max_pool2d": lambda x, w: F.max_pool2d(x, (3, 2), ceil_mode=True),
    "indices": lambda x, w: F.max_pool2d(x, 2, return_indices=True)[1].float(),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


class Calling(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call, self.weight = call, nn.Parameter(torch.randn(8, 4, 3, 3))

    def forward(self, x):
        return self.call(x + 1, self.weight) * 2


@calls
def test_fx_records_a_function_as_one_call(call, x):
    m = Calling(call)
    traced = torch.fx.symbolic_trace(m)
    assert_close(traced(x), m(x))
    ours = [n for n in traced.graph.nodes if getattr(n.target, "__module__", "") == "fastcnn.functional"]
    assert len(ours) == 1


class Subclass(torch.Tensor):
    seen: list = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(function)
        return super().__torch_function__(function, types, args, kwargs)


@calls
def test_a_subclass_sees_the_function_and_is_what_it_returns(call, x):
    m = Calling(call)
    Subclass.seen = []
    y = m(x.as_subclass(Subclass))
    assert isinstance(y, Subclass)
    assert_close(y.as_subclass(torch.Tensor), m(x))
    if call is not CALLS["conv2d_block of a constant"]:
        assert any(f in vars(F).values() for f in Subclass.seen)


# TorchScript and exporters


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [n for n in LAYERS if n not in ("a plain model's", "a model's Features")])
def test_layers_can_be_scripted_and_stay_what_they_are(name, x):
    m = nn.Sequential(LAYERS[name]())
    children = list(m.modules())
    scripted = torch.jit.script(m)
    assert list(m.modules()) == children
    assert list(scripted.state_dict()) == list(m.state_dict())
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    for again in (scripted, torch.jit.load(file)):
        for a, b in zip(training_step(again, x), training_step(m, x), strict=True):
            assert_close(a, b)
    if isinstance(m[0], ConvBlock2d):
        assert_close(scripted(x[0]), m(x[0]))
        half = x.bfloat16()
        assert_close(scripted.to(half.dtype)(half), m.to(half.dtype)(half))
    pickle.dumps(m)


NETWORKS = {
    "alexnet": lambda: fastcnn.models.alexnet(num_classes=10),
    "a plain one": lambda: fastcnn.models.lenet5(fused=False),
    "1998": lambda: fastcnn.models.lenet5("1998"),
    "features": lambda: fastcnn.models.alexnet().features,
    "classifier": lambda: fastcnn.models.lenet5().classifier,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_networks_say_that_they_cant_be_scripted_and_what_can(make):
    m = make()
    for model in (m, nn.Sequential(m)):
        with pytest.raises(RuntimeError, match=r"script can't compile fastcnn's .*: use torch.export"):
            torch.jit.script(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_block_takes_margins(x):
    m = ConvBlock2d(4, 8, 3, lrn=LRN())
    assert_close(torch.jit.script(m)(x, [1, 2, 0, 3]), m(x, [1, 2, 0, 3]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_pooling_returns_indices(x):
    m = fastcnn.nn.MaxPool2d(2, return_indices=True)
    for a, b in zip(torch.jit.script(m)(x), m(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@layers
def test_layers_can_be_traced_by_torch_jit(make, x):
    m = make().eval()
    assert_close(torch.jit.trace(m, x)(x), m(x))


# Copies, parameters of other kinds, and torch.func


@layers
def test_layers_are_copied_and_pickled_used_or_not(make, x):
    m = make().eval()
    for _ in range(2):
        for other in (copy.deepcopy(m), copy.copy(m), pickle.loads(pickle.dumps(m))):
            assert repr(other) == repr(m)
            assert torch.equal(other(x), m(x))
        with torch.no_grad():
            m(x)


def plain_of(block):
    """torch's own layers with the block's parameters."""
    stages = [nn.ReLU()]
    stages += [nn.LocalResponseNorm(3, 0.5)] if block.stages.lrn else []
    stages += [nn.MaxPool2d(2)] if block.stages.pool else []
    conv = nn.Conv2d(4, 8, 3)
    conv.load_state_dict(block.state_dict())
    return nn.Sequential(conv, *stages)


def pair():
    block = ConvBlock2d(4, 8, 3, lrn=LRN(3, 0.5), pool=MaxPool(2))
    return block, plain_of(block)


def compare(block, plain, x):
    for m in (block, plain):
        m.train()
    for a, b in zip(training_step(block, x), training_step(plain, x), strict=True):
        assert_close(a, b, 4)
    with torch.no_grad():
        for _ in range(2):
            assert_close(block.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("warm", [False, True])
def test_pruning_and_its_removal(x, warm):
    block, plain = pair()
    if warm:
        compare(block, plain, x)
    for m in (block, plain[0]):
        prune.l1_unstructured(m, "weight", 0.5)
        prune.ln_structured(m, "weight", 0.25, n=2, dim=0)
        prune.l1_unstructured(m, "bias", 2)
    compare(block, plain, x)
    for m in (block, plain[0]):
        prune.remove(m, "weight")
        prune.remove(m, "bias")
    assert (block.weight == 0).float().mean() >= 0.5
    compare(block, plain, x)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", ["spectral_norm", "weight_norm", "orthogonal"])
def test_parametrizations_and_their_removal(x, name, warm):
    block, plain = pair()
    if warm:
        compare(block, plain, x)
    for m in (block, plain[0]):
        torch.manual_seed(1)
        getattr(parametrizations, name)(m)
    compare(block.eval(), plain.eval(), x)
    for m in (block, plain[0]):
        parametrize.remove_parametrizations(m, "weight")
    compare(block, plain, x)


def test_functional_call_vmap_and_grad(x):
    block, plain = pair()
    twice = {name: 2 * t.detach() for name, t in block.named_parameters()}
    renamed = {f"0.{name}": t for name, t in twice.items()}
    assert_close(torch.func.functional_call(block, twice, x), torch.func.functional_call(plain, renamed, x))

    def loss(m, parameters, image):
        return torch.func.functional_call(m, parameters, (image[None],)).square().sum()

    each = [
        torch.func.vmap(torch.func.grad(lambda p, i, m=m: loss(m, p, i)), (None, 0))(given, x)
        for m, given in ((block, twice), (plain, renamed))
    ]
    for a, b in zip(each[0].values(), each[1].values(), strict=True):
        assert_close(a, b, 4)
    stacked = {name: torch.stack([t, 2 * t]) for name, t in block.named_parameters()}
    y = torch.func.vmap(lambda p: torch.func.functional_call(block, p, (x,)))(stacked)
    assert_close(y[0], block(x))


def test_layers_beside_lazy_ones(x):
    block = ConvBlock2d(4, 8, 3, pool=MaxPool(2))
    m = nn.Sequential(nn.LazyConv2d(4, 3), block, nn.Flatten(), nn.LazyLinear(5))
    m(x).sum().backward()
    assert block.weight.grad is not None
