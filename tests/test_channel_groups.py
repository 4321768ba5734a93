"""Channels of groups apart and together again, by words of 16 bytes or not."""

import pytest
import torch

from fastcnn.backends._channel_groups import join, split

LAST = torch.channels_last


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 48, 5, 3), (3, 24, 1, 1), (1, 12, 1, 7), (0, 16, 4, 4), (2, 10, 3, 3)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("format", [LAST, torch.contiguous_format])
def test_parts_are_torchs_and_joined_they_are_whole(dtype, shape, groups, format):
    x = torch.randn(shape).to(dtype).contiguous(memory_format=format)
    parts = split(x, groups)
    for part, expected in zip(parts, x.chunk(groups, 1), strict=True):
        assert torch.equal(part, expected)
    joined = join(parts)
    assert torch.equal(joined, x)
    assert joined.is_contiguous(memory_format=format)


@pytest.mark.parametrize("first", [0, 4, 8])
def test_of_sliced_channels_too(first):
    x = torch.randn(2, 40, 5, 3).contiguous(memory_format=LAST)[:, first : first + 32]
    for part, expected in zip(split(x, 4), x.chunk(4, 1), strict=True):
        assert torch.equal(part, expected)


def test_values_are_copied_bit_by_bit():
    x = torch.randint(-(2**15), 2**15, (2, 32, 5, 3), dtype=torch.int16)
    x = x.contiguous(memory_format=LAST).view(torch.bfloat16)  # NaNs of any payload
    for part, expected in zip(split(x, 2), x.chunk(2, 1), strict=True):
        assert torch.equal(part.view(torch.int16), expected.view(torch.int16))
    assert torch.equal(join(split(x, 2)).view(torch.int16), x.view(torch.int16))
