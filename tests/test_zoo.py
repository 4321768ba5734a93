"""The zoo itself: its networks run, and what is to be found in them is there."""

import re

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from zoo import ENTRIES

CHAIN = re.compile(r"(conv (bn )?)?((relu )?((lrn )?(pool )?|pool lrn )|pool relu (lrn )?)")
KINDS = {
    "conv2d": "conv",
    "batch_norm": "bn",
    "relu": "relu",
    "relu_": "relu",
    "local_response_norm": "lrn",
    "max_pool2d": "pool",
    "boolean_dispatch": "pool",
}


@pytest.fixture(params=ENTRIES, ids=lambda entry: entry.name)
def entry(request):
    torch.default_generator.manual_seed(0)
    return request.param


class Record(TorchFunctionMode):
    """The kinds that run, in order."""

    def __init__(self):
        super().__init__()
        self.kinds = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in KINDS:
            self.kinds.append(KINDS[name])
        return function(*args, **(kwargs or {}))


def test_names_differ():
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES) >= 20


@pytest.mark.parametrize("training", [False, True])
def test_runs_forward_and_backward(entry, training):
    model = entry.build().train(training)
    x = torch.randn(entry.size, requires_grad=True)
    outputs = tree_leaves(model(x))
    sum(y.square().sum() for y in outputs).backward()
    gradients = [p.grad for p in (x, *model.parameters()) if p.grad is not None]
    assert gradients
    assert all(t.isfinite().all() for t in (*outputs, *gradients))


def test_repeats_itself(entry):
    model, x = entry.build().eval(), torch.randn(entry.size)
    with torch.no_grad():
        first, second = tree_leaves(model(x)), tree_leaves(model(x))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("training", [False, True])
def test_chains_are_allowed_and_run_in_order(entry, training):
    expected = [entry.chains, *([] if training else [entry.chains_folded])]
    if training and entry.training_chains is not None:
        expected = [entry.training_chains]
    with Record() as record, torch.no_grad():
        entry.build().train(training)(torch.randn(entry.size))
    for chains in filter(None, expected):
        assert all(CHAIN.fullmatch("".join(f"{kind} " for kind in chain)) for chain in chains)
        assert all({"relu", "lrn", "pool"} & set(chain) for chain in chains)
        assert all({"conv", "lrn", "pool"} & set(chain) for chain in chains)
        run = iter(record.kinds)
        assert all(kind in run for chain in chains for kind in chain)
