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
from beside_fuse import (
    IMAGES,
    KINDS,
    Net,
    Workers,
    autocast,
    build,
    building,
    close,
    fuse_often,
    inference,
    inference_mode,
    training,
    transforms,
)
from torch import nn
from torch.nn import functional as F

import fastcnn
from fastcnn.fusion.fused import fusion_of


@pytest.fixture(autouse=True)
def switch_often():
    """Lets threads take turns after few instructions; each computes by itself."""
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-4)
    torch.set_num_threads(1)
    yield
    sys.setswitchinterval(interval)
    torch.set_num_threads(threads)


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
        fuse_often(60 if autocast in steps and building in steps else 30)
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
