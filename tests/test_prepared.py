"""Changes modules that were called before: results are those of a plain twin changed alike."""

import copy
import pickle

import pytest
import torch
from module_changes import PARAMETERS, Doubled, by_hand, doubling, fewer_outputs, set_data
from prepared import (
    CONVS,
    MODELS,
    NETS,
    SUBJECTS,
    alike,
    classifier,
    conv,
    convs,
    dense,
    outcome,
    pair,
    parent,
    recorded,
    same,
    warm,
)
from torch import nn

import fastcnn
from fastcnn import LRN, MaxPool
from fastcnn.stages import Stages
from fastcnn.testing import assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

# The large network takes as long as the others together, and every third change.
CHANGED = [(n, c) for n in CONVS for c in (list(PARAMETERS)[::3] if n == "caffe" else PARAMETERS)]


@pytest.mark.parametrize(("name", "change"), CHANGED)
def test_parameters(name, change):
    ours, plain, x = pair(name)
    for m in (ours, plain):
        torch.default_generator.manual_seed(2)  # spectral_norm's
        with torch.no_grad():
            PARAMETERS[change](m)
    same(ours, plain, x, change)


def set_pool(m, **options):
    """Changes the pooling after the first convolution, whichever way it is done."""
    layer = conv(m)
    if hasattr(layer, "stages"):
        pool = MaxPool(**({"kernel_size": layer.stages.pool.kernel_size} | options))
        layer.stages = Stages(layer.stages.relu, None, pool)
    else:
        pool = next(child for child in m.modules() if isinstance(child, nn.MaxPool2d))
        vars(pool).update({"stride": options.get("kernel_size", pool.stride)} | options)


def replaced(m, old, new):
    holder, name = parent(m, old)
    setattr(holder, name, new)


def filled(layer):
    with torch.no_grad():
        [p.fill_(0.01) for p in layer.parameters()]
    return layer


OF_A_BLOCK = {
    "stride": lambda m: setattr(m, "stride", (2, 1)),
    "dilation": lambda m: setattr(m, "dilation", (2, 2)),
    "groups!": lambda m: setattr(m, "groups", 2),
    "groups and weight": lambda m: (setattr(m, "groups", 2), set_data(m.weight, lambda w: w[:, :2])),
    "other kernel": lambda m: set_data(m.weight, lambda w: w[..., :2, :1]),
    "fewer outputs": fewer_outputs,
    "resize_": lambda m: (m.requires_grad_(False), m.weight.resize_(2, 4, 3, 3), m.bias.resize_(2)),
    "no ReLU": lambda m: setattr(m, "stages", Stages(False, None, m.stages.pool)),
    "no pooling": lambda m: setattr(m, "stages", Stages(True, None, None)),
    "other pooling": lambda m: setattr(m, "stages", Stages(True, None, MaxPool(3, 1, 1))),
    "ceil_mode": lambda m: setattr(m, "stages", Stages(True, None, MaxPool(2, 2, ceil_mode=True))),
}


OF_A_NET = {
    "pool": lambda m: set_pool(m, kernel_size=2, padding=1),
    "dense replaced": lambda m: replaced(m, dense(m), filled(copy.deepcopy(dense(m)))),
    "dense replaced by a subclass": lambda m: setattr(dense(m), "__class__", doubling(nn.Linear)),
    "convolution replaced": lambda m: replaced(m, conv(m), filled(copy.deepcopy(conv(m)))),
    "in _modules": lambda m: parent(m, dense(m))[0]._modules.update(
        {parent(m, dense(m))[1]: filled(copy.deepcopy(dense(m)))}
    ),
    "appended": lambda m: classifier(m).append(Doubled()),
    "dense wrapped": lambda m: replaced(m, dense(m), nn.Sequential(Doubled(), dense(m))),
    "removed": lambda m: classifier(m).pop(-1),
    "relu replaced": lambda m: setattr(
        *parent(m, [r for r in m.modules() if type(r) is nn.ReLU][-1]), nn.Tanh()
    ),
    "a child added": lambda m: (
        m.add_module("other", Doubled()) if not isinstance(m, nn.Sequential) else m.append(nn.Identity())
    ),
    "fused again": lambda m: fastcnn.fuse(m),
    "unfused": lambda m: fastcnn.unfuse(m),
    "forward of a dense layer": lambda m: by_hand(dense(m)),
    "train": lambda m: m.train(),
    "train, eval": lambda m: m.train().eval(),
    "train of a part": lambda m: conv(m).train(),
    "train of the classifier": lambda m: classifier(m).train(),
    "train of all but a part": lambda m: (m.train(), conv(m).eval()),
}


OF_LENET = {
    "dropout in eval": lambda m: [setattr(d, "p", 0.5) for d in dropouts(m)],
    "dropout in training": lambda m: [setattr(d, "p", 0.5) for d in dropouts(m.train())],
    "dropout alone in training": lambda m: [setattr(d.train(), "p", 0.5) for d in dropouts(m)],
    "dropout of all": lambda m: [setattr(d.train(), "p", 1.0) for d in dropouts(m)],
    "avgpool replaced?": lambda m: setattr(m, "avgpool", Doubled()),
    "classifier replaced": lambda m: setattr(m, "classifier", nn.Sequential(nn.Softmax(-1))),
    "features replaced": lambda m: setattr(m, "features", nn.Sequential(*m.features, Doubled())),
    "margins replaced?": lambda m: setattr(m, "margins", lambda input: (2, 2, 2, 2)),
}


OF_A_SEQUENTIAL = {
    "padding_mode": lambda m: (
        setattr(m[0], "padding_mode", "circular"),
        setattr(m[0], "_reversed_padding_repeated_twice", [1, 1, 1, 1]),
    ),
    "relu in place": lambda m: setattr(m[1], "inplace", True),
    "pool attributes": lambda m: (setattr(m[2], "kernel_size", 3), setattr(m[2], "padding", 1)),
    "ceil_mode": lambda m: setattr(m[2], "ceil_mode", True),
    "dilation!": lambda m: setattr(m[2], "dilation", 4),
    "indices!": lambda m: setattr(m[2], "return_indices", True),
    "groups": lambda m: (setattr(m[0], "groups", 2), set_data(m[0].weight, lambda w: w[:, :2])),
    "the same layer twice": lambda m: m.__setitem__(3, m[0]),
    "one weight of two layers": lambda m: (setattr(m[3], "weight", m[0].weight), m[0].weight.data.mul_(2)),
    "one weight of two dense": lambda m: (setattr(m[9], "weight", m[7].weight), m[7].weight.data.mul_(2)),
    "flatten": lambda m: setattr(m[6], "start_dim", -3),
    "flatten of less!": lambda m: setattr(m[6], "start_dim", 2),
    "a convolution of another class": lambda m: setattr(m[3], "__class__", doubling(nn.Conv2d)),
    "no ReLU": lambda m: m.__setitem__(1, nn.Identity()),
    "without a ReLU": lambda m: m.__delitem__(4),
    "inserted": lambda m: m.insert(3, Doubled()),
    "extended": lambda m: m.extend([nn.ReLU(), nn.Linear(64, 3)]) and filled(m[-1]),
    "a part fused": lambda m: m.__setitem__(0, nn.Sequential(m[0], Doubled())),
}


OF_A_POOL = {
    "kernel_size": lambda m: setattr(m, "kernel_size", (2, 3)),
    "stride": lambda m: setattr(m, "stride", 1),
    "padding": lambda m: setattr(m, "padding", (0, 1)),
    "padding too large!": lambda m: setattr(m, "padding", 2),
    "dilation": lambda m: setattr(m, "dilation", 2),
    "ceil_mode": lambda m: setattr(m, "ceil_mode", True),
    "forward of an instance": by_hand,
    "subclass": lambda m: setattr(m, "__class__", doubling(type(m))),
    "no stride": lambda m: setattr(m, "stride", None),
}


OF_A_NORM = {
    "size": lambda m: setattr(m, "size", 2),
    "alpha": lambda m: setattr(m, "alpha", 0.5),
    "beta": lambda m: setattr(m, "beta", 0.6),
    "k": lambda m: setattr(m, "k", 2),
    "forward of an instance": by_hand,
    "subclass": lambda m: setattr(m, "__class__", doubling(type(m))),
}


def dropouts(m):
    return [child for child in m.modules() if isinstance(child, nn.Dropout)]


OTHERS = [
    (name, change, table)
    for names, table in (
        (("block",), OF_A_BLOCK),
        (NETS, OF_A_NET),
        (MODELS, OF_LENET),
        (("fuse",), OF_A_SEQUENTIAL),
        (("pool",), OF_A_POOL),
        (("lrn",), OF_A_NORM),
    )
    for name in names
    for change in table
]


@pytest.mark.parametrize(("name", "change", "table"), OTHERS, ids=[f"{n}-{c}" for n, c, _ in OTHERS])
def test_options_and_layers(name, change, table):
    ours, plain, x = pair(name)
    for m in (ours, plain):
        table[change](m)
    same(ours, plain, x, change)


def test_a_block_with_lrn_and_another_order():
    torch.default_generator.manual_seed(0)
    block, x = (
        fastcnn.nn.ConvBlock2d(4, 6, 3, lrn=LRN(3, 1.0), pool=MaxPool(2)).eval(),
        torch.randn(2, 4, 9, 9),
    )
    warm(block, x)
    for stages in (Stages(True, LRN(3, 1.0), MaxPool(2), "pool_lrn"), Stages(True, LRN(2, 0.5), None)):
        block.stages = stages
        with torch.no_grad():
            a = nn.functional.conv2d(x, block.weight, block.bias)
            torch.testing.assert_close(block(x), fastcnn.testing.plain_epilogue(a, None, stages))


def test_one_channel_between_convolutions_in_channels_last():
    torch.default_generator.manual_seed(0)
    layers = [nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Conv2d(1, 4, 3), nn.ReLU()]
    plain = nn.Sequential(*layers).to(memory_format=torch.channels_last).eval()
    for x in (torch.randn(2, 3, 9, 9), torch.randn(2, 3, 9, 9).contiguous(memory_format=torch.channels_last)):
        same(fastcnn.fuse(copy.deepcopy(plain)), plain, x)
    for cls in (fastcnn.nn.ConvBlock2d, nn.Conv2d):
        block = cls(3, 1, 3).to(memory_format=torch.channels_last)
        with torch.no_grad():
            assert {block(x).stride() for _ in range(3)} == {(49, 1, 7, 1)}


# Hooks: each multiplies something, and is counted.

HOOKS = {
    "forward": lambda m, seen: m.register_forward_hook(lambda m, i, o: seen.append(1) or o * 2),
    "forward, first": lambda m, seen: m.register_forward_hook(lambda *a: seen.append(1), prepend=True),
    "with kwargs": lambda m, seen: m.register_forward_hook(
        lambda m, i, k, o: seen.append(1) or o * 2, with_kwargs=True
    ),
    "always": lambda m, seen: m.register_forward_hook(
        lambda m, i, o: seen.append(1) or (o * 2 if o is not None else None), always_call=True
    ),
    "pre": lambda m, seen: m.register_forward_pre_hook(lambda m, i: seen.append(1) or (i[0] * 2, *i[1:])),
    "pre, watching": lambda m, seen: m.register_forward_pre_hook(lambda m, i: seen.append(1)),
    "pre with kwargs": lambda m, seen: m.register_forward_pre_hook(
        lambda m, i, k: seen.append(1) or ((i[0] * 2, *i[1:]), k), with_kwargs=True
    ),
    "full backward": lambda m, seen: m.register_full_backward_hook(
        lambda m, i, o: seen.append(1) or tuple(None if g is None else g * 2 for g in i)
    ),
    "full backward pre": lambda m, seen: m.register_full_backward_pre_hook(
        lambda m, o: seen.append(1) or tuple(g * 2 for g in o)
    ),
    "global forward": lambda m, seen: nn.modules.module.register_module_forward_hook(
        lambda m, i, o: seen.append(1) or (o * 2 if isinstance(m, HOOKED) else None)
    ),
    "global pre": lambda m, seen: nn.modules.module.register_module_forward_pre_hook(
        lambda m, i: seen.append(1) or ((i[0] * 2, *i[1:]) if isinstance(m, HOOKED) else None)
    ),
    "global backward": lambda m, seen: nn.modules.module.register_module_full_backward_hook(
        lambda m, i, o: seen.append(1) or None
    ),
}  # fmt: skip


HOOKED = (nn.Linear, nn.Conv2d, fastcnn.nn.ConvBlock2d, nn.MaxPool2d, nn.LocalResponseNorm)


PLACES = {
    "root": (lambda m: m, [name for name in SUBJECTS if name != "caffe"]),
    "conv": (conv, CONVS),
    "last conv": (lambda m: convs(m)[-1], NETS),
    "dense": (dense, NETS),
    "features": (lambda m: m.features, MODELS),
    "dropout": (lambda m: dropouts(m)[0], MODELS),
}


# A ConvBlock2d has a ReLU and pooling behind its convolution, so other layers are hooked in a plain network.
ALIKE = [
    (name, place, hook)
    for place, (_, names) in PLACES.items()
    for name in names
    for hook in HOOKS
    if place in ("root", "dense", "dropout") and not ("global" in hook and name in MODELS)
]


@pytest.mark.parametrize(("name", "place", "hook"), ALIKE)
def test_hooks(name, place, hook):
    ours, plain, x = pair(name)
    found, counts = [], []
    for m in (ours, plain):
        seen = []
        handle = HOOKS[hook](PLACES[place][0](m), seen)
        with torch.no_grad():
            outputs = m(x), m(x)
        found.append((outputs, outcome(lambda m=m: recorded(m, x))))
        counts.append(len(seen))
        handle.remove()
    alike(*found)
    assert counts[0] == counts[1]
    same(ours, plain, x)


@pytest.mark.parametrize(
    ("name", "place", "hook"),
    [(n, p, h) for p, (_, names) in PLACES.items() for n in names for h in HOOKS if "backward" not in h],
)
def test_hooks_are_called_at_each_call(name, place, hook):
    ours, _, x = pair(name)
    seen = []
    with torch.no_grad():
        before = ours(x)
        handle = HOOKS[hook](PLACES[place][0](ours), seen)
        try:
            changed = ours(x)
            count = len(seen)
            again = ours(x)
        finally:
            handle.remove()
        assert count > 0
        assert len(seen) == 2 * count
        assert torch.equal(changed, again)
        if hook in ("forward", "with kwargs", "always", "pre", "global forward") and place != "dropout":
            assert not torch.equal(changed, before) or name == "lrn"
        assert_close(ours(x), before)  # maybe summed in another order
        assert len(seen) == 2 * count


def test_an_always_called_hook_is_called_when_the_call_fails():
    ours, _, x = pair("relu")
    seen = []
    ours.features.c3.register_forward_hook(lambda *args: seen.append(1), always_call=True)
    with torch.no_grad(), pytest.raises(RuntimeError):
        ours.features.c3(x)
    assert seen == [1]


# Copies.

COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "deepcopy of a copy": lambda m: copy.deepcopy(copy.copy(m)),
    "after pickle, deepcopy": lambda m: copy.deepcopy(pickle.loads(pickle.dumps(m))),
}


@pytest.mark.parametrize("change", ["mul_", "new", "data set", "bias None", "deleted!", "padding", "double"])
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["relu", "fuse"])
def test_copies_are_changed_apart(name, how, change):
    ours, plain, x = pair(name)
    copies = COPIES[how](ours), COPIES[how](plain)
    same(*copies, x)
    with torch.no_grad():
        [PARAMETERS[change](m) for m in (ours, plain)]
    same(ours, plain, x, change)
    if change.endswith("!"):
        return
    same(*copies, x)
    with torch.no_grad():
        [PARAMETERS["data mul_"](m) for m in copies]
    same(*copies, x)
    same(ours, plain, x)


@pytest.mark.parametrize("name", SUBJECTS)
def test_calls_leave_no_trace(name):
    ours, _, x = pair(name)
    fresh = SUBJECTS[name].build(True).eval()
    assert list(ours.state_dict()) == list(fresh.state_dict())
    assert repr(ours) == repr(fresh)
    for kind in (nn.Module.named_modules, nn.Module.named_parameters, nn.Module.named_buffers):
        assert [n for n, _ in kind(ours)] == [n for n, _ in kind(fresh)]
    assert ours.state_dict().get("_extra_state") is None
    assert len(pickle.dumps(ours)) < len(pickle.dumps(fresh)) + 200
    assert ours(x).shape == fresh(x).shape
