"""The registry: what there is, why not, and who chooses."""

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

        def spy(*args, forward=module.epilogue_forward, name=name):
            names.append(name)
            return forward(*args)

        monkeypatch.setattr(module, "epilogue_forward", spy)
    return names


def test_each_backend_is_there_or_says_why_not():
    reasons = fastcnn.available_backends()
    assert list(reasons) == ["reference", "plain", "cpu", "cuda", "triton"]
    assert reasons["reference"] is None
    assert reasons["cpu"] is None
    assert all(r is None or (isinstance(r, str) and r) for r in reasons.values())


def test_auto_takes_the_fastest_and_a_name_takes_that(ran):
    F.epilogue(X)
    with fastcnn.use_backend("reference"):
        F.epilogue(X)
        with fastcnn.use_backend("auto"):
            F.epilogue(X)
    F.epilogue(X)
    assert ran == ["cpu", "reference", "cpu", "cpu"]


def test_the_choice_belongs_to_its_context(ran):
    def other():
        F.epilogue(X)

    fastcnn.set_backend("reference")
    try:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        F.epilogue(X)
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
