"""Models to fuse, and what other threads do meanwhile."""

import contextlib
import copy
import io
import pickle
import threading

import torch
from torch import nn
from torch.nn import functional as F

import fastcnn

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


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
