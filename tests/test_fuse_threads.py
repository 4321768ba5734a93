"""Threads beside `fastcnn.fuse`: none sees anything of it, and all results are right."""

import builtins
import contextlib
import copy
import io
import pickle
import sys
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastcnn
from fastcnn.fusion.fused import fusion_of

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def switch_often():
    """Lets threads take turns after few instructions; each computes by itself."""
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-4)
    torch.set_num_threads(1)
    yield
    sys.setswitchinterval(interval)
    torch.set_num_threads(threads)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.second = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3)
        self.lrn, self.pool = nn.LocalResponseNorm(3, 0.5), nn.MaxPool2d(2)

    def forward(self, x):
        x = self.lrn(F.relu(self.bn(self.conv(x))))
        return self.pool(F.relu(self.second(x)))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Net(), nn.Sequential(nn.Conv2d(3, 6, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2))

    def forward(self, x):
        return torch.cat([self.a(x), self.b(x)], 1)


class Draws(nn.Module):
    """Fused in part: its own forward is left as written."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        return self.net(x) if x.sum().item() < 1e9 else x


def sequence():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.LocalResponseNorm(3), nn.MaxPool2d(2)
    )


KINDS = {"sequence": sequence, "net": Net, "branches": Branches, "draws": Draws}


def build(kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    net = KINDS[kind]().eval()
    with torch.no_grad():
        for t in (*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())):
            t.copy_(torch.rand(t.shape, generator=generator) + (0.1 if t.dim() == 1 else -0.4))
    return net


class Workers:
    """Runs functions again and again, each in a thread, at least once, and raises what one raised."""

    def __init__(self, *steps):
        self.stop, self.errors, self.rounds = threading.Event(), [], [0] * len(steps)
        self.started = threading.Barrier(len(steps) + 1)
        self.threads = [threading.Thread(target=self.run, args=(i, step)) for i, step in enumerate(steps)]

    def run(self, i, step):
        self.started.wait(60)
        try:
            while not self.stop.is_set() or not self.rounds[i]:
                step()
                self.rounds[i] += 1
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        self.started.wait(60)
        return self

    def __exit__(self, *exception):
        self.stop.set()
        for thread in self.threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in self.threads)
        if self.errors:
            raise self.errors[0]
        assert all(self.rounds)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def inference(kind="sequence", expected=None):
    """Ordinary inference of a plain model, without gradients."""
    net = build(kind)
    with torch.no_grad():
        expected = net(IMAGES)

    def step():
        with torch.no_grad():
            assert not torch.is_grad_enabled()
            y = net(IMAGES)
            assert not torch.is_grad_enabled()
            assert not torch.is_autocast_enabled("cpu")
            assert not y.requires_grad
            assert type(net[0]) is nn.Conv2d
            assert torch.equal(y, expected)
            assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()

    return step


def autocast():
    """Inference under autocast, gradient mode switched to and fro."""
    net = build("sequence")[:3]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = net(IMAGES)

    def step():
        for grad in (True, False):
            with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
                x = net[0](IMAGES)
                assert torch.is_grad_enabled() == grad
                assert torch.is_autocast_enabled("cpu")
                assert torch.get_autocast_dtype("cpu") == torch.bfloat16
                assert x.dtype == torch.bfloat16
                assert x.requires_grad == grad
                y = net[2](net[1](x))
                assert torch.is_autocast_enabled("cpu")
                assert torch.is_grad_enabled() == grad
                assert torch.equal(y, expected)
            assert not torch.is_autocast_enabled("cpu")
            assert torch.is_grad_enabled()

    return step


def building():
    """Builds modules, reads parameters, unpickles a fused model and calls it the first time."""
    fused = pickle.dumps(fastcnn.fuse(build("net"), fold_bn=True))
    expected = build("net")(IMAGES).detach()

    def step():
        net = sequence()
        assert sum(p.numel() for p in net.parameters()) == 180
        assert isinstance(net[0].weight, nn.Parameter)
        net.register_buffer("extra", torch.zeros(3))
        assert next(net.named_buffers())[0] == "extra"
        assert repr(net)
        again = pickle.loads(fused)
        assert torch.is_grad_enabled()
        with torch.no_grad():
            close(again(IMAGES), expected)
        y = again(IMAGES)
        assert y.requires_grad
        close(y.detach(), expected)
        pickle.dumps(again)

    return step


def training():
    """A training step of a plain model, with backward; the generator is the global one's, unread."""
    plain = build("sequence")

    def step():
        net = copy.deepcopy(plain).train()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            net(IMAGES).sin().sum().backward()
            optimizer.step()
        found = [p.detach().clone() for p in net.parameters()]
        if not hasattr(step, "expected"):
            step.expected = found
        for a, b in zip(found, step.expected, strict=True):
            close(a, b)

    return step


def inference_mode():
    net = build("sequence")
    with torch.no_grad():
        expected = net(IMAGES)

    def step():
        with torch.inference_mode():
            y = net(IMAGES)
            assert torch.is_inference_mode_enabled()
            assert y.is_inference()
        assert not torch.is_inference_mode_enabled()
        assert torch.equal(y, expected)

    return step


def transforms():
    """torch.func in another thread."""
    net = build("net")
    gradient = torch.func.grad(lambda x: net(x).sum())(IMAGES)

    def step():
        close(torch.func.grad(lambda x: net(x).sum())(IMAGES), gradient)
        close(torch.func.vmap(net)(IMAGES[:, None])[:, 0], net(IMAGES))

    return step


def fuse_often(count=100):
    """Fuses, explains and unfuses models of several kinds."""
    nets = {kind: build(kind) for kind in KINDS}
    with torch.no_grad():
        expected = {kind: net(IMAGES) for kind, net in nets.items()}
    for i in range(count):
        kind = list(nets)[i % len(nets)]
        net = nets[kind]
        fastcnn.fuse(net, IMAGES if i % 3 == 0 else None, fold_bn=i % 2 == 0)
        assert torch.is_grad_enabled()
        if i % 5 == 0:
            with contextlib.redirect_stdout(io.StringIO()):
                fastcnn.explain(net)
        with torch.no_grad():
            close(net(IMAGES), expected[kind])
        fastcnn.unfuse(net)


@pytest.mark.parametrize(
    "steps",
    [
        (inference, autocast, building),
        (inference_mode, training, building),
        (building, building, building),
        (inference, transforms, autocast),
    ],
    ids=lambda steps: " ".join(step.__name__ for step in steps),
)
def test_threads_beside_fuse(steps):
    state = torch.get_rng_state()
    nets = [step() for step in steps]
    torch.set_rng_state(state)
    with Workers(*nets):
        fuse_often(100 if autocast in steps and building in steps else 30)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("mode", ["grad", "no_grad", "autocast", "inference"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fold", [False, True], ids=["", "fold"])
def test_first_calls_of_one_unpickled_model_at_once(kind, fold, mode):
    """Several threads make the first call of one model; each has its own modes."""
    plain = build(kind)
    modes = {
        "grad": torch.enable_grad,
        "no_grad": torch.no_grad,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "inference": torch.inference_mode,
    }
    packed = pickle.dumps(fastcnn.fuse(build(kind), fold_bn=fold))
    with modes[mode]():
        expected = plain(IMAGES)
    for _ in range(4):
        net, errors, barrier = pickle.loads(packed), [], threading.Barrier(6)

        def call(net=net, errors=errors, barrier=barrier):
            try:
                barrier.wait(60)
                with modes[mode]():
                    y = net(IMAGES)
                assert y.dtype == expected.dtype or mode == "autocast"  # LRN's stays the block's
                assert y.requires_grad == expected.requires_grad
                tolerance = 5e-2 if mode == "autocast" else 1e-4
                y, right = y.detach().float(), expected.detach().float()
                torch.testing.assert_close(y, right, rtol=tolerance, atol=tolerance)
                assert torch.is_grad_enabled()
                assert not torch.is_autocast_enabled("cpu")
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=call) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        if errors:
            raise errors[0]
        assert fusion_of(net) is not None or any(fusion_of(m) for m in net.modules())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference"])
def test_a_model_fused_while_another_thread_runs_it(kind, mode):
    net, plain = build(kind), build(kind)
    context = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]
    with context():
        expected = plain(IMAGES)

    def step():
        with context():
            y = net(IMAGES)
        close(y.detach(), expected.detach())
        assert y.requires_grad == expected.requires_grad

    with Workers(step, step):
        for i in range(30):
            fastcnn.fuse(net, fold_bn=i % 2 == 0)
            if i % 4:
                fastcnn.unfuse(net)
            if i % 5 == 0:
                with contextlib.redirect_stdout(io.StringIO()):
                    fastcnn.explain(net)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_made_while_another_thread_fuses(kind):
    net = build(kind)
    expected = build(kind)(IMAGES).detach()

    def deep():
        with torch.no_grad():
            close(copy.deepcopy(net)(IMAGES), expected)

    def packed():
        try:
            data = pickle.dumps(net)
        except pickle.PicklingError as error:
            assert "wrong class" in str(error)  # of a plain module, changed while pickle was at it
            return
        with torch.no_grad():
            close(pickle.loads(data)(IMAGES), expected)

    with Workers(deep, packed):
        for i in range(30):
            fastcnn.fuse(net, fold_bn=i % 2 == 0)
            fastcnn.unfuse(net)


class UnfusedMeanwhile(Net):
    def __getstate__(self):
        fastcnn.unfuse(self)
        return vars(self)


def test_a_copy_of_what_is_unfused_meanwhile():
    net = fastcnn.fuse(UnfusedMeanwhile().eval(), fold_bn=True)
    close(pickle.loads(pickle.dumps(net))(IMAGES), net(IMAGES))


def test_different_models_fused_in_several_threads():
    expected = {kind: build(kind)(IMAGES).detach() for kind in KINDS}

    def step(kind):
        def run():
            net = fastcnn.fuse(build(kind), IMAGES, fold_bn=True)
            with torch.no_grad():
                close(net(IMAGES), expected[kind])
            fastcnn.unfuse(net)
            assert not any(fusion_of(m) for m in net.modules())

        return run

    with Workers(*map(step, KINDS)):
        fuse_often(8)


def test_one_model_fused_in_several_threads_at_once():
    expected = build("branches")(IMAGES).detach()
    for _ in range(5):
        net, errors, barrier = build("branches"), [], threading.Barrier(4)

        def call(net=net, errors=errors, barrier=barrier):
            try:
                barrier.wait(60)
                fastcnn.fuse(net, fold_bn=True)
                with torch.no_grad():
                    close(net(IMAGES), expected)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        if errors:
            raise errors[0]
        with torch.no_grad():
            close(net(IMAGES), expected)
        fastcnn.unfuse(net)
        assert [type(m) for m in net.modules()] == [type(m) for m in build("branches").modules()]


def test_folded_weights_of_a_model_whose_weights_change():
    """Threads that run a model after a write see the new weights."""
    net, plain = fastcnn.fuse(build("sequence"), fold_bn=True), build("sequence")
    for _ in range(5):
        for m in (net, plain):
            with torch.no_grad():
                m[0].weight.mul_(1.5)
                m[1].running_mean.add_(0.1)
        with torch.no_grad():
            expected = plain(IMAGES)

        def step(expected=expected):
            with torch.no_grad():
                close(net(IMAGES), expected)

        with Workers(step, step, step):
            step()


def test_modes_of_one_model_in_two_threads():
    """One thread with gradients and one without call one folded model."""
    net, plain = fastcnn.fuse(build("net"), fold_bn=True), build("net")
    expected = plain(IMAGES)
    gradients = torch.autograd.grad(expected.sin().sum(), list(plain.parameters()))

    def with_gradients():
        y = net(IMAGES)
        assert y.requires_grad
        for a, b in zip(torch.autograd.grad(y.sin().sum(), list(net.parameters())), gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)

    def without():
        with torch.no_grad():
            y = net(IMAGES)
        assert not y.requires_grad
        close(y, expected.detach())

    def by_inference():
        with torch.inference_mode():
            close(net(IMAGES), expected.detach())

    with Workers(with_gradients, without, by_inference):
        for _ in range(20):
            without()
            with_gradients()


NAMES = ["conv2d", "relu", "max_pool2d", "batch_norm", "local_response_norm", "avg_pool3d", "dropout"]
METHODS = ["__call__", "__getattr__", "__setattr__", "forward", "_call_impl", "__torch_function__"]
CLASSES = [nn.Module, nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.BatchNorm2d, nn.Sequential, torch.Tensor]
FUNCTIONS = ["relu", "zeros", "is_tensor", "cat", "set_grad_enabled", "randn", "manual_seed"]


def snapshot():
    """The functions and methods that a tracer might replace."""
    found = {name: getattr(F, name) for name in NAMES}
    found |= {(kind, name): vars(kind).get(name) for kind in CLASSES for name in METHODS}
    found |= {("torch", name): getattr(torch, name) for name in FUNCTIONS}
    return found | {
        name: getattr(builtins, name) for name in ("isinstance", "getattr", "print", "len", "type")
    }


def test_nothing_is_patched():
    """torch's functions and classes are the same objects in another thread at each moment."""
    before = snapshot()

    def step():
        now = snapshot()
        assert [name for name in before if now[name] is not before[name]] == []

    with Workers(step, step):
        fuse_often(20)
    step()
