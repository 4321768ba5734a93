"""Shared by the tests of the CUDA kernels on a host and on a GPU."""

import contextlib

import pytest
import torch
from hypothesis import strategies as st
from test_properties import Case

from fastcnn import LRN, MaxPool
from fastcnn.backends import cuda, reference
from fastcnn.stages import ORDERS, Stages
from fastcnn.testing import assert_close

BEST, GENERAL, SPECIAL = -1, 0, 1
MISALIGNED = ("channels[3:-5]", "channels[:-3]")  # for the fast kernels' vectors


class Kernels:
    """The cuda backend with these kernels, or an error where they can't run."""

    def __init__(self, kernel_set):
        self.kernel_set = kernel_set

    def epilogue_forward(self, *args, save):
        with self.chosen():
            return cuda.epilogue_forward(*args, save=save)

    def epilogue_backward(self, *args):
        with self.chosen():
            return cuda.epilogue_backward(*args)

    @contextlib.contextmanager
    def chosen(self):
        def params(*args, make=cuda.params, **named):
            p = make(*args, **named)
            p.kernel_set = self.kernel_set
            return p

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda, "params", params)
            yield


@st.composite
def special_cases(draw, layouts=("contiguous", "channels_last", "channels[8:]", "sliced")):
    """Draws cases that the fast kernels take: shapes that end within and at their vectors and tiles."""
    layout = draw(st.sampled_from(layouts))
    groups = draw(st.integers(1, 3))
    vectors = st.integers(1, 9).map(lambda n: 8 * n)
    channels = groups * draw(vectors if "channels" in layout else st.integers(1, 20))
    lrn = None
    if draw(st.booleans()):
        alpha = draw(st.sampled_from([1e-4, 5e-2, 5.0]))
        lrn = LRN(5, alpha, 0.75, draw(st.sampled_from([1.0, 2.0])), groups)
    pool = None
    if width := draw(st.sampled_from([0, 3] if lrn else [0, 2, 3])):
        pool = MaxPool(width, 2, draw(st.integers(0, 1)), 1, draw(st.booleans()))
    bias = draw(st.booleans())
    return Case(
        (draw(st.integers(1, 2)), channels, draw(st.integers(3, 40)), draw(st.integers(3, 72))),
        layout,
        draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
        bias,
        Stages(draw(st.booleans()) or not (lrn or pool or bias), lrn, pool, draw(st.sampled_from(ORDERS))),
        draw(st.sampled_from([1.0, 30.0, 1e-3])),
        draw(st.integers(0, 2**31)),
    )


EACH_STAGES = {
    "relu": Stages(),
    "lrn": Stages(lrn=LRN(5, 0.1, groups=2)),
    "pool 2/2": Stages(pool=MaxPool(2)),
    "pool 3/2": Stages(pool=MaxPool(3, 2, 1)),
    "lrn, pool": Stages(lrn=LRN(5, 0.1, groups=2), pool=MaxPool(3, 2)),
    "pool, lrn": Stages(lrn=LRN(5, 0.1, groups=2), pool=MaxPool(3, 2), order="pool_lrn"),
}


def run_each_kernel(kernel_set, stages, dtype, format, device):
    """Inference, training and backward of two images of odd size; close to the reference's."""
    kernels = Kernels(kernel_set)
    x = torch.randn(2, 48, 21, 19, device=device, dtype=dtype).contiguous(memory_format=format)
    bias = torch.randn(48, device=device, dtype=dtype)
    inference, *_ = kernels.epilogue_forward(x, bias, stages, save=False)
    y, r, argmax = kernels.epilogue_forward(x, bias, stages, save=True)
    expected, *_ = reference.epilogue_forward(x, bias, stages, save=True)
    assert torch.equal(inference, y)
    assert_close(y, expected)
    rest = (y if stages.saved_name(True) == "output" else r, argmax, stages, x.shape, format, True)
    for a, b in zip(kernels.epilogue_backward(y, *rest), reference.epilogue_backward(y, *rest), strict=True):
        assert_close(a, b, factor=10)  # of the largest of many summed values
