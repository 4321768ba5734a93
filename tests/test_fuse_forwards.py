"""Forwards written in every way that Python allows: fused, they give the same and leave the same behind."""

import copy
import random
import warnings

import numpy as np
import pytest
import torch
from forwards import FORWARDS, assert_alike, made, results, state
from torch import nn

import fastcnn

pytestmark = pytest.mark.usefixtures("one_thread")

MODES = {
    "eval": dict(training=False, grad=True),
    "train": dict(training=True, grad=True),
    "no_grad": dict(training=False, grad=False),
    "folded": dict(training=False, grad=False),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FORWARDS)
def test_forwards(name, mode):
    forward, fold = FORWARDS[name], mode == "folded"
    training, grad = MODES[mode].values()
    if name in {"in_autocast"} and training:
        pytest.skip("its statistics are rounded otherwise")
    try:
        expected = results(made(forward), training=training, grad=grad)
    except RuntimeError as error:
        with pytest.raises(type(error)):
            results(fastcnn.fuse(made(forward), fold_bn=fold), training=training, grad=grad)
        return
    assert_alike(results(fastcnn.fuse(made(forward), fold_bn=fold), training=training, grad=grad), expected)


@pytest.mark.parametrize("name", FORWARDS)
def test_other_sizes(name):
    """Nothing that was read from the first shape stays."""
    plain, net = made(FORWARDS[name]).eval(), fastcnn.fuse(made(FORWARDS[name]).eval())
    generator = torch.Generator().manual_seed(3)
    for shape in ((2, 3, 12, 12), (1, 3, 13, 12), (3, 3, 9, 16), (2, 3, 12, 12), (1, 3, 12, 12)):
        x = torch.randn(shape, generator=generator)
        outputs = []
        for m in (net, plain):
            state.reset()
            torch.default_generator.manual_seed(2)
            np.random.seed(2)
            random.seed(2)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    outputs.append(m(x))
            except Exception as error:
                outputs.append(type(error))
        assert_alike(*outputs)


@pytest.mark.parametrize("name", FORWARDS)
def test_fuse_leaves_generators_globals_and_state(name, capsys):
    state.reset()
    net = made(FORWARDS[name])
    before = copy.deepcopy(net.state_dict())
    torch.default_generator.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fastcnn.fuse(net)
    assert capsys.readouterr().out == ""
    fastcnn.explain(net)
    capsys.readouterr()
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert (net.calls, net.last, state.STEPS, state.SEEN) == (0, None, 0, [])
    assert not [w for w in caught if "fastcnn" in str(w.filename)]
    assert torch.is_grad_enabled()
    assert isinstance(net.relu, nn.ReLU)
    fastcnn.unfuse(net)
    assert "forward" not in vars(net)
