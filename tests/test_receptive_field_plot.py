"""The picture of receptive fields: what it shows, and what it is drawn on."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastcnn import receptive_field
from fastcnn.models import lenet5

pytest.importorskip("matplotlib")
from fastcnn.receptive_field import plot


@pytest.fixture(scope="module")
def rows():
    torch.manual_seed(0)
    return receptive_field(lenet5(), 28, measure=True)


def test_picture_shows_every_map_but_no_linear_layer(rows):
    figure = plot.picture("LeNet-5", rows, plot.leaves(28))
    left, right = figure.axes
    assert [tuple(p.get_bbox().bounds) for p in left.patches] == [
        (left - 0.5, top - 0.5, right - left, bottom - top)
        for top, left, bottom, right in (row.box for row in reversed(rows[:4]))
    ]
    texts = [text.get_text() for text in left.texts]
    assert texts[:2] == ["16 × 16", "features.c3 max_pool2d"]
    assert len(texts) == 8
    assert [text.get_text() for text in right.texts] == ["may see", "half of the gradient"]


def test_half_of_the_gradient_is_in_its_box(rows):
    top, left, bottom, right = plot._half(rows[3])
    gradient = rows[3].gradient
    assert gradient[top:bottom, left:right].sum() >= gradient.sum() / 2
    assert gradient[top + 1 : bottom - 1, left + 1 : right - 1].sum() < gradient.sum() / 2


def test_leaves_are_an_image():
    image = plot.leaves(40)
    assert image.shape == (40, 40, 3)
    assert 0 <= image.min() < image.max() <= 1
    assert torch.equal(image, plot.leaves(40))


@pytest.mark.parametrize(("suffix", "shape"), [("png", (20, 30)), ("png", (30, 20, 4)), ("jpg", (20, 31, 3))])
def test_reads_the_middle_square_of_a_photograph(suffix, shape, tmp_path):
    pixels = np.full(shape, 200, np.uint8)
    pixels[:, :2] = pixels[:2] = 0
    if len(shape) == 2:
        pixels = np.stack(3 * [pixels], 2)
    path = tmp_path / f"photograph.{suffix}"
    Image.fromarray(pixels).save(path)
    image = plot.read(path, 10)
    assert image.shape == (10, 10, 3)
    assert image[5, 5].tolist() == pytest.approx(3 * [200 / 255], abs=0.02)
