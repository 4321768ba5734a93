"""A strided convolution of few channels, rearranged: the same values, format and choice."""

import pytest
import torch
from torch.nn import functional as TF

from fastcnn.backends._space_to_depth import applies, faster, rearranged, space_to_depth
from fastcnn.backends.reference import convolve

FORMATS = [torch.contiguous_format, torch.channels_last]
CASES = {  # image, kernel, stride, padding
    "AlexNet": ((227, 227), (11, 11), 4, (0, 0)),
    "AlexNet 2014": ((224, 224), (11, 11), 4, (2, 2)),
    "uneven": ((25, 35), (5, 7), 2, (0, 1)),
    "kernel as wide as the stride": ((12, 15), (3, 3), 3, (0, 0)),
}


def case(name, format=torch.contiguous_format):
    size, kernel, stride, padding = CASES[name]
    x = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=format)
    weight = torch.randn(8, 3, *kernel, dtype=torch.float64).contiguous(memory_format=format)
    return x, weight, ((stride, stride), padding, (1, 1), 1)


def test_squares_are_torchs():
    x = torch.randn(2, 3, 8, 12)
    assert torch.equal(space_to_depth(x, 4), TF.pixel_unshuffle(x, 4))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_the_same_convolution(name, format):
    x, weight, conv = case(name, format)
    assert applies(x, weight, conv)
    others = rearranged(x, weight, conv)
    assert others[0].is_contiguous(memory_format=format)
    torch.testing.assert_close(convolve(*others), convolve(x, weight, conv))


@pytest.mark.parametrize(("size", "conv"), [
    ((226, 226), ((4, 4), (0, 0), (1, 1), 1)),
    ((227, 227), ((1, 1), (0, 0), (1, 1), 1)),
    ((227, 227), ((4, 2), (0, 0), (1, 1), 1)),
    ((227, 227), ((4, 4), (0, 0), (2, 2), 1)),
], ids=["a window too many", "no stride", "two strides", "dilation"])  # fmt: skip
def test_what_it_does_not_apply_to(size, conv):
    assert not applies(torch.empty(1, 3, *size), torch.empty(8, 3, 11, 11), conv)
    many = torch.empty(1, 64, *size), torch.empty(8, 64, 11, 11)
    assert not applies(*many, ((4, 4), (0, 0), (1, 1), 1))


def test_nothing_is_timed_without_a_gpu():
    given = case("AlexNet")
    with torch.backends.cudnn.flags(benchmark=True):
        assert faster(*given) == given
