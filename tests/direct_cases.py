"""Drawn cases of the direct convolution, and calls of its kernels."""

import itertools
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from test_properties import LAYOUTS, laid_out, pools

from fastcnn import _making, small
from fastcnn.backends import _direct
from fastcnn.backends._convolution import conv_output_size
from fastcnn.stages import Stages

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NEEDED = [needed for needed in itertools.product([True, False], repeat=3) if any(needed)]
FORMATS = [torch.contiguous_format, torch.channels_last]


@dataclass
class Case:
    shape: tuple
    layout: str
    dtype: torch.dtype
    outputs: int
    kernel: tuple
    conv: tuple
    bias: bool
    stages: Stages
    needed: tuple
    seed: int
    weight_layout: str = "contiguous"

    def __post_init__(self):
        self.generator = torch.Generator().manual_seed(self.seed)

    def values(self, *shape):
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def tensors(self):
        if self.layout == "expanded":
            x = self.values(1, 1, *self.shape[2:]).expand(self.shape)
        else:
            x = laid_out(self.layout, *self.shape, self.values)
        weight = self.outputs, self.shape[1] // self.conv[3], *self.kernel
        weight = laid_out(self.weight_layout, *weight, self.values)
        return x, weight, self.values(self.outputs) if self.bias else None


LAUNCHERS = (_direct, _making, small)  # modules of the direct convolution that make parameters
small_pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


kernels = st.tuples(st.integers(1, 5), st.integers(1, 5)) | st.sampled_from(
    [(1, 1), (3, 3), (7, 6), (11, 17)]
)


@st.composite
def cases(draw, dtypes=DTYPES):
    """A convolution of at most 40 channels with stages that fit it."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels, outputs = (groups * draw(st.integers(1, 40 // groups)) for _ in range(2))
    kernel, stride, dilation = draw(kernels), draw(small_pairs), draw(small_pairs)
    padding = tuple(draw(st.integers(0, 3)) for _ in range(draw(st.sampled_from([2, 4]))))
    around = (*padding, *padding)[:4]
    least = [
        max(1, (k - 1) * d + 1 - a - b)
        for k, d, a, b in zip(kernel, dilation, around[:2], around[2:], strict=True)
    ]
    shape = (draw(st.integers(1, 5)), channels, *(draw(st.integers(n, max(n, 20))) for n in least))
    conv = (stride, padding, dilation, groups)
    pool = draw(st.none() | pools())
    size = conv_output_size(
        torch.empty(shape, device="meta"), torch.empty(1, 1, *kernel, device="meta"), conv
    )
    if pool and min(pool.windows(n, axis) for axis, n in enumerate(size)) < 1:
        pool = None
    return Case(
        shape,
        draw(st.sampled_from([*LAYOUTS, "expanded"])),
        draw(st.sampled_from(dtypes)),
        outputs,
        kernel,
        conv,
        draw(st.booleans()),
        Stages(draw(st.booleans()), None, pool),
        draw(st.sampled_from(NEEDED)),
        draw(st.integers(0, 2**31)),
        draw(st.sampled_from(["contiguous", *LAYOUTS])),
    )


def in_dtype(dtype, *tensors):
    return [None if t is None else t.to(dtype) for t in tensors]
