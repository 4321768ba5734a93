"""The registry: what there is, why not, and who chooses."""

import importlib.util
import threading

import pytest
import torch

import fastcnn
from fastcnn import LRN, MaxPool, _native, backends
from fastcnn import functional as F
from fastcnn.stages import Stages

X = torch.randn(1, 4, 5, 5)


@pytest.fixture
def ran(monkeypatch):
    """The names of the backends that ran a forward."""
    names = []
    for name in ("cpu", "plain", "reference"):
        module = backends.module(name)

        def spy(*args, forward=module.epilogue_forward, name=name, **named):
            names.append(name)
            return forward(*args, **named)

        monkeypatch.setattr(module, "epilogue_forward", spy)
    return names


def test_each_backend_is_there_or_says_why_not():
    reasons = fastcnn.available_backends()
    assert list(reasons) == ["reference", "plain", "cpu", "cuda", "triton"]
    assert reasons["reference"] is None
    assert reasons["cpu"] is None
    assert all(r is None or (isinstance(r, str) and r) for r in reasons.values())


def test_backends_say_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = backends.module("triton").missing_reason.__wrapped__()
    assert "not installed" in reason
    assert "pip install 'fastcnn[triton]'" in reason


def test_auto_takes_the_fastest_and_a_name_takes_that(ran):
    F.local_response_norm(X, 3)
    with fastcnn.use_backend("reference"):
        F.local_response_norm(X, 3)
        with fastcnn.use_backend("auto"):
            F.local_response_norm(X, 3)
    F.local_response_norm(X, 3)
    assert ran == ["cpu", "reference", "cpu", "cpu"]


def test_auto_leaves_to_torch_what_it_does_as_fast_and_says_why():
    large = torch.empty(4, 16, 32, 32)
    for x, stages, weight in (
        (X, Stages(), None),
        (X, Stages(pool=MaxPool(2)), None),
        (X, Stages(pool=MaxPool(2)), torch.empty(8, 4, 3, 3)),
        (large, Stages(), None),
    ):
        backend, reasons = backends.automatic(x, stages, weight)
        assert backend is backends.module("plain")
        assert "as fast" in reasons["cpu"]
        assert backends.choose(x, stages, weight, inside_op=True) is backends.module("cpu")
    for x, stages in ((large, Stages(pool=MaxPool(2))), (X, Stages(lrn=LRN()))):
        assert backends.automatic(x, stages) == (backends.module("cpu"), {})


@pytest.mark.parametrize("train", [False, True])
def test_what_is_left_to_torch_leaves_the_users_tensors(train):
    x = torch.randn(1, 4, 5, 5, requires_grad=train)
    before = x.detach().clone()
    y = F.epilogue(x, pool=MaxPool(2))
    assert torch.equal(y, torch.nn.functional.max_pool2d(x.relu(), 2))
    assert torch.equal(F.epilogue(x), x.relu())
    assert torch.equal(x, before)


def test_the_choice_belongs_to_its_context(ran):
    def other():
        F.local_response_norm(X, 3)

    fastcnn.set_backend("reference")
    try:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        F.local_response_norm(X, 3)
    finally:
        fastcnn.set_backend("auto")
    assert ran == ["cpu", "reference"]


def test_backward_runs_where_forward_ran(monkeypatch):
    called = []
    module = backends.module("reference")
    backward = module.epilogue_backward
    monkeypatch.setattr(module, "epilogue_backward", lambda *args: called.append(1) or backward(*args))
    x = X.clone().requires_grad_()
    with fastcnn.use_backend("reference"):
        y = F.epilogue(x, lrn=LRN())
    y.sum().backward()
    assert called


def test_a_block_goes_backward_at_once_where_the_backend_can(monkeypatch):
    """And in two steps where it has no such function, or that leaves the case."""
    cpu = backends.module("cpu")
    x, weight, bias = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 8, 8), (4, 3, 3, 3), (4,))
    )

    def gradients(**stages):
        with fastcnn.use_backend("cpu"):
            y = F.conv2d_block(x, weight, bias, padding=1, **stages)
        return y.detach(), torch.autograd.grad(y.sum(), (x, weight, bias))

    expected, asked = gradients(pool=MaxPool(2)), []
    answers = [None, (torch.zeros_like(x), torch.zeros_like(weight), torch.ones_like(bias))]

    def at_once(grad_y, x, weight, y, argmax, conv, stages, needed):
        asked.append((grad_y.shape, y, argmax.shape, conv, stages, tuple(needed)))
        return answers[len(asked) - 1]

    monkeypatch.setattr(cpu, "conv_block_backward", at_once, raising=False)
    for a, b in zip(gradients(pool=MaxPool(2))[1], expected[1], strict=True):
        assert torch.equal(a, b)
    assert [t.unique().tolist() for t in gradients(pool=MaxPool(2))[1]] == [[0], [0], [1]]
    conv = ((1, 1), (1, 1), (1, 1), 1)
    shape = (2, 4, 4, 4)
    assert asked[0] == (shape, None, shape, conv, Stages(pool=MaxPool(2)), (True, True, True))
    gradients(lrn=LRN())
    assert len(asked) == 2


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'gpu'"):
        fastcnn.set_backend("gpu")


def test_a_backend_asked_for_by_name_gives_its_reason():
    for name, reason in fastcnn.available_backends().items():
        if reason is not None:
            with fastcnn.use_backend(name), pytest.raises(RuntimeError) as error:
                F.epilogue(X)
            assert reason in str(error.value)
    with fastcnn.use_backend("cpu"), pytest.raises(RuntimeError, match="meta"):
        backends.choose(X.to("meta"), Stages())


def test_without_the_extension_plain_torch_takes_over_and_says_why(monkeypatch, ran):
    monkeypatch.setattr(_native, "missing_reason", lambda: "built without it")
    assert fastcnn.available_backends()["cpu"] == "built without it"
    assert backends.choose(X, Stages()) is backends.module("plain")
    assert backends.automatic(X, Stages())[1] == {"cpu": "built without it"}
    assert torch.equal(F.epilogue(X), X.relu())
    assert ran == []


def test_auto_on_a_device_without_kernels_of_ours_is_plain_torch():
    assert F.epilogue(X.to("meta"), pool=MaxPool(2)).shape == (1, 4, 2, 2)
    assert backends.automatic(X.to("meta"), Stages()) == (backends.module("plain"), {})


def test_a_broken_extension_raises(monkeypatch):
    def broken():
        raise ImportError("undefined symbol")

    monkeypatch.setattr(_native, "load", broken)
    with pytest.raises(ImportError, match="undefined symbol"):
        F.epilogue(X)
