"""`fuse` looks through modules: what is one graph, what stays a call, what runs once a part has changed."""

import copy

import pytest
import torch
from looked_through import FOLDED, IMAGES, Block, Opaque, compare, fused, kinds
from torch import nn
from torch.nn import functional as F

import fastcnn
from fastcnn.fusion.fused import fusion_of, fusions


def test_a_model_is_one_graph():
    net, plain = fused()
    assert kinds(net) == {"": [("conv", "relu", "pool"), FOLDED, FOLDED, FOLDED]}
    compare(net, plain)


def test_a_module_that_is_no_graph_stays_a_call():
    net, plain = fused(Opaque)
    assert kinds(net) == {"": [("conv", "relu", "pool"), FOLDED, FOLDED]}
    compare(net, plain)
    assert net.body[1].calls == 3
    assert fusion_of(net).forwards[False].depends.changed() is None  # though the counter has


def test_parts_run_fused_where_the_whole_can_not():
    net, plain = fused()
    seen = []
    net.body[1].register_forward_hook(lambda m, args, y: seen.append(y.shape))
    compare(net, plain)
    assert len(seen) == 3
    usable = {name for name, m in net.named_modules() if (f := fusion_of(m)) and f.usable(m)}
    assert usable >= {"stem", "body", "body.1"}
    assert "" not in usable


@pytest.mark.parametrize("changed", ["norm", "conv", "block", "mode", "hook"])
def test_a_part_that_changes(changed):
    net, plain = fused()
    compare(net, plain)
    for m in (net, plain):
        torch.default_generator.manual_seed(0)
        if changed == "norm":
            m.body[1].norm = nn.Identity()
        elif changed == "conv":
            m.body[1].conv = nn.Conv2d(4, 4, 1)
        elif changed == "block":
            m.body[1] = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        elif changed == "mode":
            m.body[1].train()
        else:
            m.body[1].conv.register_forward_hook(lambda m, args, y: 2 * y)
    compare(net, plain)
    compare(copy.deepcopy(net), copy.deepcopy(plain))
    fastcnn.fuse(net, fold_bn=True)
    compare(net, plain)


def test_a_part_by_itself():
    net, plain = fused()
    x = torch.randn(2, 4, 5, 5)
    compare(net.body, plain.body, x)
    assert fusion_of(net.body).usable(net.body)
    assert isinstance(net.body[0], Block)
    fastcnn.unfuse(net.body[0])
    assert type(net.body[0]) is Block
    compare(net, plain)
    assert fusion_of(net).usable(net) is None
    fastcnn.fuse(net.body[0], fold_bn=True)
    compare(net, plain)
    assert fusion_of(net).usable(net)


def test_explain_of_parts(capsys):
    net, _ = fused()
    fastcnn.explain(net)
    assert capsys.readouterr().out.count("one block") == 4
    net.body[1].register_forward_hook(lambda m, args, y: None)
    fastcnn.explain(net)
    text = capsys.readouterr().out
    assert text.count("as written, since Block has hooks") == 4  # of the model
    assert text.count("one block") == 4
    assert "body.1 (Block)" in text


def test_unfused_is_as_it_was():
    net, plain = fused()
    fastcnn.unfuse(net)
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]
    assert not fusions(net)


class Appends(nn.Module):
    def __init__(self, ending):
        super().__init__()
        self.conv, self.ending = nn.Conv2d(3, 3, 1), ending

    def forward(self, x, found):
        found.append(F.max_pool2d(F.relu(self.conv(x)), 2))
        return self.ending(x)


class Gathers(nn.Module):
    def __init__(self, ending):
        super().__init__()
        self.parts = nn.ModuleList([Appends(torch.tanh), Appends(ending)])

    def forward(self, x):
        found = []
        for part in self.parts:
            x = part(x, found)
        return torch.cat(found, 1) + len(found) + x.mean()


def looked_at(x):
    return x if x.sum() > 0 else -x


@pytest.mark.parametrize("ending", [torch.sin, looked_at])
def test_a_list_that_parts_fill(ending):
    plain = Gathers(ending).eval()
    net = fastcnn.fuse(copy.deepcopy(plain))
    compare(net, plain)
    compare(net, plain, -IMAGES)
    assert ("" in kinds(net)) == (ending is torch.sin)


class GivesSize(nn.Module):
    def forward(self, x):
        return x.shape, torch.relu(x)


class IgnoresSize(nn.Module):
    def forward(self, x, size):
        if x.sum() > 0:
            return x
        return -x


class Sizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.gives, self.ignores = nn.Conv2d(3, 4, 3), GivesSize(), IgnoresSize()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        size, y = self.gives(self.conv(x))
        y = self.pool(y)
        return self.ignores(F.avg_pool2d(y, y.size(2)), size).expand(size[0], 4, size[2], size[3])


def test_sizes_between_modules():
    plain = Sizes().eval()
    net = fastcnn.fuse(copy.deepcopy(plain))
    for size in (12, 9):
        compare(net, plain, torch.randn(2, 3, size, size))
    assert "" in kinds(net)


class Deep(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.conv = inner, nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return F.max_pool2d(F.relu(self.conv(self.inner(x))), 1)


def test_of_nested_modules_the_inner_that_is_no_graph_stays():
    plain = Deep(Deep(Opaque())).eval()
    net = fastcnn.fuse(copy.deepcopy(plain))
    assert kinds(net) == {"": 2 * [("conv", "relu", "pool")]}
    compare(net, plain, torch.randn(1, 4, 6, 6))
    assert net.inner.inner.calls == 3


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, x):
        return self.block(self.block(x)) + self.block.conv(x)


def test_a_module_called_twice():
    plain = Shared().eval()
    net = fastcnn.fuse(copy.deepcopy(plain), fold_bn=True)
    x = torch.randn(2, 4, 6, 6)
    compare(net, plain, x)
    with torch.no_grad():
        for m in (net, plain):
            m.block.norm.running_mean.add_(1)
    compare(net, plain, x)


class Writes(nn.Module):
    """Makes another's weights of its input."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        if x.sum() > 0:
            self.conv.weight.neg_()
        return x


def test_weights_that_are_written_to_meanwhile():
    plain = nn.Sequential(nn.Tanh(), Block(3)).eval()
    plain[0] = Writes(plain[1].conv)
    net = fastcnn.fuse(copy.deepcopy(plain), fold_bn=True)
    for _ in range(2):
        compare(net, plain, IMAGES.abs())


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("channels", [4, 96])
def test_depthwise(strided, channels):
    layers = (
        nn.Conv2d(channels, channels, 3, 1 + strided, 1, groups=channels),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )
    plain = nn.Sequential(*layers).eval()
    net = fastcnn.fuse(copy.deepcopy(plain), fold_bn=True)
    compare(net, plain, torch.randn(1, channels, 14, 14))


class Drifts(Block):
    """Moves its own statistics as it runs."""

    def __init__(self, move):
        super().__init__(3)
        self.move = move

    def forward(self, x):
        mean = self.norm.running_mean
        self.move(mean)
        return F.relu(self.norm(self.conv(x)))


def add_by_operator(mean):
    mean += 1


@pytest.mark.parametrize("move", [add_by_operator, lambda mean: mean.view(-1).add_(1)])
def test_statistics_that_a_forward_moves(move):
    plain = Drifts(move).eval()
    compare(fastcnn.fuse(copy.deepcopy(plain), fold_bn=True), plain)


def test_a_module_that_forward_does_not_know():
    net, plain = fused()
    net.loss = nn.CrossEntropyLoss()
    compare(net, plain)
    assert fusion_of(net).usable(net)
