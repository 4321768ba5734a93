"""`fastcnn.fuse` on the zoo: what it finds, that results stay, and that it can be undone."""

import sys

import pytest
import torch
from torch.utils import _pytree as pytree
from zoo import ENTRIES

import fastcnn
from fastcnn.fusion import fused, runtime

BY_NAME = {entry.name: entry for entry in ENTRIES}


def built(entry):
    torch.manual_seed(0)
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
    for name in ("block", "epilogue"):
        original = getattr(runtime, name)

        def noted(*args, _original=original, **kwargs):
            frame = sys._getframe(1)
            call = (id(frame.f_code), frame.f_lineno)
            calls.append(call) if call not in calls else None
            return _original(*args, **kwargs)

        monkeypatch.setattr(runtime, name, noted)

    def chains(model):
        found = []
        for code, line in calls:
            lines = sorted(at for other, at in calls if other == code)
            forwards = [f for m in model.modules() for f in forwards_of(m) if id(f.run.__code__) == code]
            found.append(forwards[0].chains[lines.index(line)][0])
        calls.clear()
        return found

    return chains


def forwards_of(m):
    fusion = vars(m).get("fusion")
    return [f for f in fusion.forwards.values() if isinstance(f, fused.Fused)] if fusion else []


@pytest.mark.parametrize("fold_bn", [False, True])
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_chains_that_run(entry, fold_bn, ran):
    model, x = built(entry)
    fastcnn.fuse(model.eval(), fold_bn=fold_bn)
    model(x)
    evaluation = entry.chains_folded if fold_bn and entry.chains_folded is not None else entry.chains
    assert ran(model) == evaluation
    model.train()(x)
    training = entry.training_chains if entry.training_chains is not None else entry.chains
    assert ran(model) == training


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_same_results_and_undone(entry):
    model, x = built(entry)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    parameters, kinds = list(model.parameters()), [type(m) for m in model.modules()]

    def results(training):
        """Outputs, gradients at the input and of the parameters, and buffers after a call."""
        model.load_state_dict(state)
        model.train(training)
        torch.manual_seed(1)
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
    assert not any("fusion" in vars(m) for m in model.modules())
