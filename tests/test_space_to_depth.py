"""Squares of pixels as channels: the same values and format as torch's, by the kernel's sources too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as TF

from fastcnn import _native
from fastcnn.backends import cuda
from fastcnn.backends._space_to_depth import depth_to_space, space_to_depth
from fastcnn.stages import memory_format

LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded", "every other")
sizes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 40), st.integers(1, 40))


def image(size, layout, dtype):
    """Distinct values, so that a value in another's place is seen."""
    n, c, h, w = size
    if layout == "expanded":
        return torch.arange(n * h * w).view(n, 1, h, w).expand(size).to(dtype)
    if layout == "every other":
        return torch.arange(n * 2 * c * h * 2 * w).view(n, 2 * c, h, 2 * w).to(dtype)[:, ::2, :, ::2]
    if layout == "sliced":
        x = torch.arange(n * (c + 1) * h * w).view(n, c + 1, h, w).to(dtype)
        return x.contiguous(memory_format=torch.channels_last)[:, 1:]
    x = torch.arange(n * c * h * w).view(size).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


def check(size, layout, dtype, side, padding):
    x = image(size, layout, dtype)
    top, left, bottom, right = padding
    bottom, right = bottom + -(size[2] + top + bottom) % side, right + -(size[3] + left + right) % side
    expected = TF.pixel_unshuffle(TF.pad(x, (left, right, top, bottom)), side)
    found = space_to_depth(x, side, padding)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=memory_format(x))


@settings(max_examples=100, deadline=None)
@given(sizes, st.sampled_from(LAYOUTS), st.integers(1, 5), st.tuples(*[st.integers(0, 4)] * 4))
def test_squares_are_torchs(size, layout, side, padding):
    check(size, layout, torch.float64, side, padding)


@pytest.fixture
def on_host(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # of what is known to be right
    if "host" not in _native.load().build_info()["cuda"]:
        pytest.skip("the extension's kernels are not on the host")
    monkeypatch.setattr(cuda, "unsupported_reason", lambda x, stages: None)
    monkeypatch.setattr(cuda, "_where", lambda x: (0, 0))


# Every instance of the kernel: bytes of an element, sides with an instance of their own or not, formats.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_kernel_copies_what_torch_does(dtype, side, layout, on_host, monkeypatch):
    for order in ("forward", "shuffled"):
        monkeypatch.setenv("FASTCNN_THREAD_ORDER", order)
        for size, padding in [
            ((2, 3, 27, 30), (0, 0, 3, 1)),
            ((1, 1, 5, 4), (2, 1, 0, 2)),
            ((2, 5, 8, 8), (0, 0, 0, 0)),
            ((1, 2, 3, 150), (5, 6, 1, 0)),
        ]:
            check(size, layout, dtype, side, padding)


def test_no_images(on_host):
    assert space_to_depth(torch.empty(0, 3, 9, 8), 4).shape == (0, 48, 3, 2)


def test_the_kernel_keeps_every_bit(on_host):
    bits = torch.randint(-(2**15), 2**15, (2, 3, 12, 20), dtype=torch.int16)
    found = space_to_depth(bits.view(torch.float16), 4, (1, 2, 3, 2))
    assert torch.equal(found.view(torch.int16), TF.pixel_unshuffle(TF.pad(bits, (2, 2, 1, 3)), 4))


def test_the_kernel_refuses_what_it_can_not_count(on_host):
    args = (1 << 20, (1, 1, 1, 1)), 1 << 20
    sizes = (1 << 20, 3, 8, 8), (1 << 20, 48, 1 << 12, 2)
    with pytest.raises(ValueError, match="sizes must fit in 32 bits"):
        _native.load().cuda_space_to_depth(*args, *sizes, 4, 0, 0, 2, False, 0, 0)
    with pytest.raises(ValueError, match="y must be aligned"):
        _native.load().cuda_space_to_depth(args[0], 4, (1, 3, 8, 8), (1, 48, 2, 2), 4, 0, 0, 2, True, 0, 0)


@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 2, 3, 0)])
@pytest.mark.parametrize("side", [1, 2, 4])
@pytest.mark.parametrize("images", [8, 0])
def test_there_and_back(side, images, padding):
    x = torch.randn(images, 3, 11, 7)
    assert torch.equal(depth_to_space(space_to_depth(x, side, padding), side, x.shape, padding), x)
