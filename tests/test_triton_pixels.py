"""Triton's kernels for channels_last, whose lanes have 8 channels: what happens at a lane's borders."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_properties import PHASES, Case, follows_the_reference

from fastcnn import LRN, MaxPool
from fastcnn.backends import triton
from fastcnn.stages import ORDERS, Stages

if triton.missing_reason() is not None:
    pytest.skip(f"no Triton: {triton.missing_reason()}", allow_module_level=True)

import triton as compiler
import triton.language as tl

from fastcnn.backends.triton import lanes, pixels, pixels_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHANNELS = (1, 3, 6, 8, 12, 13, 16, 24, 40, 52)  # a lane, part of one, several, with a last that is not full
GROUPS = {16: 2, 24: 3, 40: 5}  # of a whole number of lanes
WINDOWS = [
    MaxPool(3, 2),
    MaxPool(3, 2, ceil_mode=True),
    MaxPool(3, 2, 1),
    MaxPool(2),
    MaxPool((3, 2), (1, 2), (1, 0)),
    MaxPool(3, 1, 1),
    MaxPool(2, 3),
]


@st.composite
def cases(draw):
    """Draws cases that the kernels take, forward and backward."""
    channels = draw(st.sampled_from(CHANNELS))
    groups = draw(st.sampled_from([1, GROUPS.get(channels, 1)]))
    norm = st.builds(
        LRN,
        st.sampled_from([5, 5, 4, 3, 2, 1]),
        st.sampled_from([1e-4, 5e-2, 5.0]),
        st.sampled_from([0.75, 0.75, 0.5, 1.0, 0.6]),
        st.sampled_from([1.0, 2.0]),
        st.just(groups),
    )
    lrn, pool = draw(st.none() | norm), draw(st.none() | st.sampled_from(WINDOWS[:2] * 2 + WINDOWS[2:]))
    bias, relu = draw(st.booleans()), draw(st.booleans())
    dtypes = [torch.bfloat16, torch.float16, torch.float32]
    if lrn and lrn.beta == 0.6:
        dtypes.remove(torch.float32)
    return Case(
        (draw(st.integers(1, 2)), channels, draw(st.integers(3, 7)), draw(st.integers(3, 8))),
        draw(st.sampled_from(["channels_last", "channels[8:]", "channels[:-3]"])),
        draw(st.sampled_from(dtypes)),
        bias,
        Stages(relu or not (bias or lrn or pool), lrn, pool, draw(st.sampled_from(ORDERS))),
        draw(st.sampled_from([1.0, 30.0])),
        draw(st.integers(0, 2**31)),
    )


@settings(max_examples=25, deadline=None, phases=PHASES)
@given(cases(), st.sampled_from([32, 64]))
def test_the_kernels_follow_the_reference(case, lanes_):
    x, _ = case.tensors(DEVICE)
    one_channel = x.shape[1] == 1  # is of either format
    assert one_channel or pixels.takes(x, case.stages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "INTERPRETED_LANES", lanes_)  # of few, a tensor is of several programs
        follows_the_reference(triton, case, DEVICE)


FULL = Case(
    (1, 24, 9, 9), "channels_last", torch.float32, True, Stages(lrn=LRN(5, 5.0), pool=MaxPool(3, 2)), 1.0, 0
)
POOL_FIRST = dataclasses.replace(FULL, stages=dataclasses.replace(FULL.stages, order="pool_lrn"))


@compiler.jit
def halo_off_by_one(p, at, c, ok, spec):
    _, own, after = halo(p, at, c, ok, spec)
    return lanes.load(p, at, c, ok & (c % spec.group > 0), 0, spec, -4, 2).to(tl.float32), own, after


@compiler.jit
def halo_without_mask(p, at, c, ok, spec):
    before, own, _ = halo(p, at, c, ok, spec)
    return before, own, lanes.load(p, at, c, ok & (c > 0), 0, spec, 8, 2).to(tl.float32)


@compiler.jit
def neighbours_the_other_way(t, c, spec):
    s0, s1, s2, s3 = neighbours(t, c, spec)
    return s1, s0, s2, s3


halo, neighbours = lanes.with_halo, lanes.neighbours
PLANTED = [
    (lanes, "with_halo", halo_off_by_one, FULL),
    (lanes, "with_halo", halo_without_mask, FULL),
    (pixels_kernels, "neighbours", neighbours_the_other_way, FULL),
    (pixels_kernels, "neighbours", neighbours_the_other_way, POOL_FIRST),
]


@pytest.mark.skipif(DEVICE == "cuda", reason="compiled kernels do not look up a function again")
@pytest.mark.parametrize(("module", "name", "planted", "case"), PLANTED)
def test_a_planted_fault_is_found(module, name, planted, case, monkeypatch):
    follows_the_reference(triton, case)
    monkeypatch.setattr(module, name, planted)
    with pytest.raises(AssertionError):
        follows_the_reference(triton, case)


def test_what_the_kernels_do_not_take():
    def takes(stages, x=None, backward=False):
        default = torch.empty(2, 24, 9, 9).contiguous(memory_format=torch.channels_last)
        return pixels.takes(default if x is None else x, stages, backward)

    last = torch.empty(2, 24, 9, 9).contiguous(memory_format=torch.channels_last)
    assert takes(Stages(lrn=LRN(5), pool=MaxPool(3, 2)), backward=True)
    assert takes(Stages(), last[:, 8:])
    assert not takes(Stages(), torch.empty(2, 24, 9, 9))
    assert not takes(Stages(), last.double())
    assert not takes(Stages(), last[:, :, 1:, 1:])
    assert not takes(Stages(lrn=LRN(7)))
    assert not takes(Stages(lrn=LRN(5, beta=0.6)))
    assert takes(Stages(lrn=LRN(5, beta=0.6)), last.bfloat16())
    assert not takes(Stages(lrn=LRN(5, k=0.0)))
    assert not takes(Stages(lrn=LRN(5, groups=2)))  # of 12 channels, one and a half lanes
    assert takes(Stages(pool=MaxPool(3, 2, dilation=2)))
    assert not takes(Stages(pool=MaxPool(3, 2, dilation=2)), backward=True)
    assert not takes(Stages(pool=MaxPool(3, 2, 1, dilation=2)))
    assert not takes(Stages(pool=MaxPool(6)))
    assert not takes(Stages(pool=MaxPool(3)), backward=True)
