"""AlexNet-2012 in two towers on two devices against the same on one."""

import copy

import pytest
import torch
from torch.nn import functional as F

import fastcnn
from fastcnn.models import alexnet, lenet5

DEVICES = ["cuda:0", "cuda:1"] if torch.cuda.device_count() > 1 else ["cpu", "cpu"]


@pytest.fixture(scope="module")
def pair():
    """The network whole and split, with torch's usual weights, and images."""
    torch.manual_seed(0)
    whole = alexnet("2012", num_classes=7, dropout=0.0).to(DEVICES[0])
    for layer in whole.modules():
        if isinstance(layer, (torch.nn.Conv2d, fastcnn.nn.ConvBlock2d, torch.nn.Linear)):
            layer.reset_parameters()
    return whole, copy.deepcopy(whole).split(*DEVICES), torch.randn(2, 3, 224, 224, device=DEVICES[0])


def test_the_same_outputs_and_gradients(pair):
    whole, towers, images = pair
    grads = []
    for net in (whole, towers):
        net.zero_grad()
        y = net(images)
        F.cross_entropy(y, torch.tensor([3, 5], device=y.device)).backward()
        grads.append((y.detach(), net))
    torch.testing.assert_close(grads[0][0], grads[1][0], rtol=1e-4, atol=1e-5)
    expected = {name: p.grad for name, p in whole.named_parameters()}
    for layers in (towers.features, towers.classifier):
        for name, layer in layers.items():
            for part in ("weight", "bias"):
                halves = getattr(layer, "halves", [layer])
                found = torch.cat([h.get_parameter(part).grad.to(images.device) for h in halves])
                place = "features" if layers is towers.features else "classifier"
                torch.testing.assert_close(found, expected[f"{place}.{name}.{part}"], rtol=1e-3, atol=1e-5)


def test_state_dicts_load_both_ways(pair):
    whole, towers, _ = pair
    assert list(towers.state_dict()) == list(whole.state_dict())
    for name, value in towers.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])
    changed = {name: value + 0.01 for name, value in whole.state_dict().items()}
    towers.load_state_dict(changed)
    other = alexnet("2012", num_classes=7)
    other.load_state_dict(towers.state_dict())
    torch.testing.assert_close(dict(other.state_dict()), {n: v.cpu() for n, v in changed.items()})
    towers.load_state_dict(whole.state_dict())
    del changed["features.conv2.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) .*features.conv2"):
        towers.load_state_dict(changed)


def test_each_device_has_half_of_the_parameters(pair):
    _, towers, _ = pair
    halves = [m for m in towers.modules() if hasattr(m, "halves")]
    counts = [sum(p.numel() for m in halves for p in m.halves[i].parameters()) for i in range(2)]
    assert counts[0] == counts[1] == (60_965_224 - 4_097_000) // 2


def test_activations_cross_before_conv3_and_the_dense_layers_alone(pair):
    _, towers, images = pair
    values = {"conv3": 2 * 128 * 13 * 13, "fc6": 2 * 128 * 6 * 6, "fc7": 4096, "fc8": 2048}
    assert towers.crossing(images) == {name: 2 * 4 * count for name, count in values.items()}


def test_it_is_a_copy_of_the_same_type_and_mode():
    whole = alexnet("2012", num_classes=7).double().eval()
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    towers = whole.split("cpu", "cpu")
    assert not towers.training
    assert {p.dtype for p in towers.parameters()} == {torch.float64}
    with torch.no_grad():
        for p in towers.parameters():
            p.zero_()
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())


def test_the_same_seed_drops_the_same_units(pair):
    _, towers, images = pair
    towers = copy.deepcopy(towers).train()
    towers.dropout.p = 0.5
    results = []
    with torch.no_grad():
        for _ in range(2):
            torch.manual_seed(0)
            results.append(towers(images))
    assert torch.equal(*results)
    assert not torch.equal(results[0], towers.eval()(images))


def test_modes_reach_both_towers(pair):
    _, towers, images = pair
    with torch.no_grad():
        assert not towers(images).requires_grad
    with fastcnn.use_backend("cuda"), pytest.raises(RuntimeError, match="backend 'cuda' can't run this"):
        towers(images.cpu() if DEVICES[0] == "cpu" else images.double())
    if DEVICES[0] == "cpu":
        with torch.autocast("cpu", torch.bfloat16):
            assert towers(images).dtype == torch.bfloat16


def test_other_pooling_is_split_too():
    torch.manual_seed(0)
    whole = alexnet(num_classes=3, overlap=False, adaptive=True).eval()
    images = torch.randn(1, 3, 90, 120)
    with torch.no_grad():
        torch.testing.assert_close(whole.split("cpu", "cpu")(images), whole(images))


def test_one_tower_is_not_split():
    with torch.device("meta"):
        net = alexnet(towers=1)
    with pytest.raises(ValueError, match=r"but this is alexnet\('2012', towers=1\)"):
        net.split("cpu", "cpu")


@pytest.mark.parametrize("net", [lenet5(), lenet5(fused=False)])
def test_only_the_network_in_two_towers_is_split(net):
    with pytest.raises(ValueError, match=r"split: only alexnet\('2012'\), .* but this is lenet5\('relu'\)"):
        net.split("cpu", "cpu")
