"""`fuse` looks through modules: what is one graph, what stays a call, what runs once a part has changed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastcnn
from fastcnn.fusion.fused import Fused, fusion_of, fusions

IMAGES = torch.randn(2, 3, 12, 12)


class Block(nn.Module):
    """Not a line: its input is read twice."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.norm.running_mean.uniform_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return x + F.relu(self.norm(self.conv(x)))


class Opaque(Block):
    """What it counts is not in a graph."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Net(nn.Module):
    def __init__(self, make=Block):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.body = nn.Sequential(Block(), make(), Block())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def fused(make=Block):
    plain = Net(make).eval()
    return fastcnn.fuse(copy.deepcopy(plain), fold_bn=True), plain


def compare(net, plain, x=IMAGES):
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(net(x), plain(x))


def kinds(net):
    """Returns the kinds of the chains, by the module whose forward they are in."""
    found = {name: fusion_of(m) for name, m in net.named_modules()}
    made = {name: f.forwards.get(False) for name, f in found.items() if f is not None and not f.is_inner}
    return {name: [kinds for kinds, _ in f.chains] for name, f in made.items() if isinstance(f, Fused)}


FOLDED = ("conv", "bn", "relu")


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
        torch.manual_seed(0)
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


def convolution():
    return nn.Conv2d(3, 3, 3, padding=1)


def pooled(conv, x):
    return F.max_pool2d(F.relu(conv(x)), 2)


class Root(nn.Module):
    """A block, then what a case does."""

    def __init__(self, then, **attributes):
        super().__init__()
        self.conv, self.then = convolution(), then
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.then(self, pooled(self.conv, x))


class Keeps(nn.Module):
    """Is no graph, and appends to a list."""

    def forward(self, x, found):
        with torch.enable_grad():
            found.append(x + 1)
        return x


class Counts(nn.Module):
    n = 1

    def forward(self, x):
        self.n += 1
        return x


class Registered(nn.Module):
    def __init_subclass__(cls, *, key, **rest):
        super().__init_subclass__(**rest)

    def forward(self, x):
        return x * 2


class Keyed(Registered, key="a"):
    pass


class Adds:
    n = 0

    def __call__(self, x):
        self.n += 1
        return x + self.n


class Box(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = convolution()


class Own(nn.Module):
    def __getattribute__(self, name):
        return 3 if name == "factor" else super().__getattribute__(name)

    def forward(self, x):
        return x * self.factor


def lists(m, x):
    found = []
    m.part(m.part(x, found), found)
    return sum(found)


def unless_identity(m, x):
    for layer in m.layers:
        if not isinstance(layer, nn.Identity):
            x = layer(x)
    return x


def each_child(m, x):
    for child in m.box.children():
        x = child(x)
    return x


def each_key(m, x):
    for key, layer in m.layers.items():
        if key != "aux":
            x = layer(x)
    return x


def counted(m, x):
    x = m.part(x)
    return x * m.part.n


def shared():
    box = Box()
    box.again = box.conv
    return box


class Scales(nn.Module):
    factor = 2

    def forward(self, x):
        return x * self.factor


SCALES = Scales()


def enclosing():
    layer = SCALES
    return lambda x: layer(x)


def scaled_otherwise(m):
    SCALES.factor = 3


def replaced(name, make):
    def change(m):
        parent, _, last = name.rpartition(".")
        torch.manual_seed(3)
        setattr(m.get_submodule(parent), last, make())

    return change


def act_a_function(m):
    del m.act
    m.act = torch.sin


def key_renamed(m):
    m.layers["more"] = m.layers.pop("aux")


def config_changed(m):
    m.config["scale"]["by"] = 3


def one_more(x, found=[]):  # noqa: B006
    found.append(1)
    return x * len(found)


CASES = {
    "a list given to a call": (lambda: Root(lists, part=Keeps()), None),
    "a class that knows its subclasses": (lambda: Root(lambda m, x: m.part(x), part=Keyed()), None),
    "a part's container is replaced": (
        lambda: Root(lambda m, x: pooled(m.box.conv, x), box=Box()),
        replaced("box", Box),
    ),
    "an item of a list is replaced": (
        lambda: Root(lambda m, x: pooled(m.boxes[0].conv, x), boxes=nn.ModuleList([Box()])),
        replaced("boxes.0", Box),
    ),
    "a layer becomes a function": (
        lambda: Root(lambda m, x: m.act(x), act=nn.Tanh()),
        act_a_function,
    ),
    "an identity is replaced": (
        lambda: Root(unless_identity, layers=nn.ModuleList([nn.Identity(), convolution()])),
        replaced("layers.0", convolution),
    ),
    "a child is there": (
        lambda: Root(lambda m, x: x if m.extra is None else x * 2, extra=nn.Identity()),
        replaced("extra", lambda: None),
    ),
    "a key": (
        lambda: Root(each_key, layers=nn.ModuleDict({"a": convolution(), "aux": convolution()})),
        key_renamed,
    ),
    "children are distinct": (lambda: Root(each_child, box=shared()), None),
    "a function encloses a layer": (
        lambda: Root(lambda m, x: m.act(x), act=enclosing()),
        scaled_otherwise,
    ),
    "a callable counts": (lambda: Root(lambda m, x: m.act(x), act=Adds()), None),
    "a call sets what is read": (lambda: Root(counted, part=Counts()), None),
    "a nested container": (
        lambda: Root(lambda m, x: x * m.config["scale"]["by"], config={"scale": {"by": 2}}),
        config_changed,
    ),
    "a default that changes": (lambda: Root(lambda m, x: m.act(x), act=one_more), None),
    "attributes of its own": (lambda: Root(lambda m, x: m.part(x), part=Own()), None),
}


@pytest.mark.parametrize("name", CASES)
def test_as_written(name):
    make, change = CASES[name]
    torch.manual_seed(0)
    plain = make().eval()
    net = fastcnn.fuse(copy.deepcopy(plain), fold_bn=True)
    one_more.__defaults__[0].clear()
    expected = [plain(IMAGES) for _ in range(3)]
    one_more.__defaults__[0].clear()
    for y in expected:
        torch.testing.assert_close(net(IMAGES), y)
    if change:
        change(plain), change(net)
        torch.testing.assert_close(net(IMAGES), plain(IMAGES))


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


def test_a_copy_of_a_timed_model_that_was_changed():
    net = fastcnn.fuse(nn.Sequential(convolution(), nn.ReLU(), nn.MaxPool2d(2)).eval(), IMAGES)
    (chain,) = fusion_of(net).forwards[False].calls
    chain.is_left = True
    net[2] = net[1] = nn.Identity()
    compare(copy.deepcopy(net), nn.Sequential(copy.deepcopy(net[0])))
