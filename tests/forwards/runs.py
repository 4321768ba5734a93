"""Runs a network, records what it returns and changes, and compares two such results."""

import contextlib
import io
import random
import warnings

import numpy as np
import torch
from torch.utils import _pytree as pytree

from . import state
from .base import Base

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def made(forward):
    torch.default_generator.manual_seed(0)
    net = type("Net", (Base,), {"forward": forward})()
    with torch.no_grad():
        net.bn.running_mean.normal_()
        net.bn.weight.normal_()
    return net


def results(net, calls=2, training=False, grad=True):
    """Returns what calls give and leave: outputs, gradients, state, generators, globals, printed text."""
    state.reset()
    torch.default_generator.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    net.train(training)
    found, printed = [], io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(calls):
            x = IMAGES.clone().requires_grad_(grad)
            with contextlib.nullcontext() if grad else torch.no_grad():
                y = net(x)
            leaves = [t for t in pytree.tree_leaves([y, net.last]) if isinstance(t, torch.Tensor)]
            losses = [t.double().sin().sum() for t in leaves if t.requires_grad]
            if losses:
                sum(losses).backward()
            found.append([y, x.grad, None if net.last is None else net.last])
    left = dict(net.state_dict(), calls=net.calls, training=[m.training for m in net.modules()])
    left["grads"] = {name: p.grad for name, p in net.named_parameters()}
    generators = torch.get_rng_state(), np.random.get_state()[1:3], random.getstate()
    messages = sorted({str(w.message) for w in caught})
    return {"found": found, "state": left, "rng": generators, "steps": state.STEPS} | {
        "seen": list(state.SEEN),
        "printed": printed.getvalue(),
        "warned": messages,
        "last": net.table.get("last"),
        "grad": torch.is_grad_enabled(),
    }


def assert_alike(found, expected):
    found, kind = pytree.tree_flatten(found)
    expected, kind_expected = pytree.tree_flatten(expected)
    assert kind == kind_expected
    for a, b in zip(found, expected, strict=True):
        assert type(a) is type(b)
        if isinstance(a, torch.Tensor) and a.is_floating_point():
            assert a.requires_grad == b.requires_grad
            assert a.stride() == b.stride()
            tolerance = 2e-2 if a.dtype == torch.bfloat16 else 2e-4
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        elif isinstance(a, torch.Tensor | float | np.ndarray):
            torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)
        else:
            assert a == b
