"""LeNet-5 of 1998 against the paper's figures."""

import math

import pytest
import torch
from torch.nn import functional as F

from fastcnn.models import lenet5, map_loss
from fastcnn.models.lenet1998 import C3, PartialConv2d, Squash, Subsample, bitmaps


def test_exactly_sixty_thousand_parameters():
    counts = {name: sum(p.numel() for p in m.parameters()) for name, m in lenet5("1998").named_children()}
    assert [counts[name] for name in ("c1", "s2", "c3", "s4", "c5", "f6", "output")] == [
        *(156, 12, 1516, 32, 48_120, 10_164, 0)
    ]
    assert sum(counts.values()) == 60_000


def test_the_papers_connections():
    """340,908: inputs and a bias of every unit, a subsampling's four inputs apart, and 84 for each class."""
    c3 = sum(25 * len(seen) + 1 for seen in C3) * 10 * 10
    units = {26: 6 * 28 * 28, 5: 6 * 14 * 14 + 16 * 5 * 5, 401: 120, 121: 84, 84: 10}
    assert c3 + sum(inputs * count for inputs, count in units.items()) == 340_908
    assert [sum(str(i) in seen for seen in C3) for i in range(6)] == [10] * 6


def test_c3_is_a_convolution_with_links_left_out():
    torch.default_generator.manual_seed(0)
    layer, x = PartialConv2d(6, C3), torch.randn(2, 6, 14, 14, dtype=torch.float64)
    y, links = layer.double()(x), iter(layer.weight)
    for i, seen in enumerate(C3):
        maps = x[:, [int(c) for c in seen]]
        weight = torch.stack([next(links) for _ in seen]).unsqueeze(0)
        torch.testing.assert_close(y[:, i : i + 1], F.conv2d(maps, weight, layer.bias[i : i + 1]))


def test_subsampling_sums_squares():
    layer, x = Subsample(2), torch.arange(16.0).view(1, 2, 2, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 0.5]))
        layer.bias.copy_(torch.tensor([0.0, 10.0]))
    assert layer(x).tolist() == [[[[10.0, 18.0]], [[31.0, 35.0]]]]


def test_squashing_passes_through_plus_and_minus_one():
    assert Squash()(torch.tensor([-1.0, 0.0, 1.0])).tolist() == pytest.approx([-1, 0, 1], abs=1e-4)


def test_bitmaps_are_far_apart():
    digits = bitmaps()
    assert digits.shape == (10, 84)
    assert digits.abs().eq(1).all()
    apart = torch.cdist(digits, digits, p=1) / 2  # places where they differ
    assert apart[~torch.eye(10, dtype=torch.bool)].min() >= 6


def test_scores_are_distances_to_the_bitmaps():
    net = lenet5("1998")
    assert torch.equal(net.output(bitmaps()).argmax(1), torch.arange(10))
    assert net.output(bitmaps()).diagonal().eq(0).all()
    x = torch.randn(3, 84)
    expected = [[-sum((a - b) ** 2 for a, b in zip(row, w, strict=True)) for w in bitmaps()] for row in x]
    torch.testing.assert_close(net.output(x), torch.tensor(expected))


def test_the_loss_is_equation_nine():
    scores, labels, j = -torch.rand(4, 10) * 3, torch.tensor([0, 3, 9, 3]), 0.7
    total = 0.0
    for row, label in zip((-scores).tolist(), labels.tolist(), strict=True):
        total += row[label] + math.log(math.exp(-j) + sum(math.exp(-y) for y in row))
    assert map_loss(scores, labels, j).item() == pytest.approx(total / 4)


def test_it_learns():
    torch.default_generator.manual_seed(0)
    net, labels = lenet5("1998"), torch.arange(20) % 10
    images = torch.rand(20, 1, 28, 28) / 4
    for image, label in zip(images, labels, strict=True):  # a bar for each class, at its height
        image[:, 2 + 2 * label : 5 + 2 * label] += 0.7
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(map_loss(net(images), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("size", [28, 32])
def test_it_takes_the_same_images_as_the_others(size):
    net, images = lenet5("1998"), torch.rand(2, 1, size, size)
    assert net(images).shape == (2, 10)
    torch.testing.assert_close(net(images[0]), net(images)[0])
    with pytest.raises(RuntimeError, match=r"lenet5\('1998'\): input must be .* got shape \(2, 1, 30, 28\)"):
        net(torch.rand(2, 1, 30, 28))


def test_it_has_ten_classes_and_one_channel():
    with pytest.raises(ValueError, match="must be 10, 1 and 0, but got 5, 1 and 0"):
        lenet5("1998", num_classes=5)
    state = lenet5("1998").state_dict()
    lenet5("1998").load_state_dict(state)
    assert not any("links" in name or "output" in name for name in state)
