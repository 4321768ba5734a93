"""The cpu and triton backends against the float64 reference over drawn shapes, strides, dtypes, stages."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fastcnn import LRN, MaxPool, _native
from fastcnn._verify import check_argmax, check_backward, check_forward
from fastcnn.backends import _launch, cpu, triton
from fastcnn.stages import ORDERS, Stages
from fastcnn.testing import DTYPES

pytestmark = pytest.mark.usefixtures("kernels_of_ours")

# Of channels_last: how many channels before and after these the tensor has. Vectors of 16 bytes are then
# aligned, or for their first address not, or for their strides not.
CHANNELS = {"channels[8:]": (8, 0), "channels[3:-5]": (3, 5), "channels[:-3]": (0, 3)}
LAYOUTS = ("contiguous", "channels_last", *CHANNELS, "sliced", "strided", "transposed")
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # a Case says enough without shrinking it
ISAS = _native.load().instruction_sets()


@st.composite
def pools(draw):
    large = draw(st.integers(0, 19)) == 0  # more places than a byte counts
    kernel = (16, 17) if large else draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    strides = st.tuples(st.integers(1, 4), st.integers(1, 4))
    dilations = st.tuples(st.integers(1, 3), st.integers(1, 3))
    return MaxPool(kernel, draw(strides), padding, draw(dilations), draw(st.booleans()))


@dataclass
class Case:
    shape: tuple
    layout: str
    dtype: torch.dtype
    bias: bool
    stages: Stages
    scale: float
    seed: int

    def __post_init__(self):
        self.generator = torch.Generator().manual_seed(self.seed)

    def values(self, *shape):
        return self.scale * torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def tensors(self, device="cpu"):
        """The input, and the bias or None."""
        x = laid_out(self.layout, *self.shape, lambda *shape: self.values(*shape).to(device, self.dtype))
        return x, self.values(self.shape[1]).to(device, self.dtype) if self.bias else None


@st.composite
def cases(draw):
    """A shape, and stages that fit it."""
    groups = draw(st.integers(1, 3))
    channels = groups * draw(st.integers(1, 12) | st.sampled_from([16, 43]))
    pool = draw(st.none() | pools())
    least = [1, 1]
    if pool:
        least = [max(1, e - 2 * p) for e, p in zip(pool.extent, pool.padding, strict=True)]
    size = [low + draw(st.integers(0, 20)) for low in least]
    lrn = draw(
        st.none()
        | st.builds(
            LRN,
            st.sampled_from([1, 2, 3, 4, 5, 5, 5, 9]),
            st.sampled_from([1e-4, 5e-2, 5.0]),
            st.sampled_from([0.75, 0.75, 0.5, 1.0, 0.6]),
            st.sampled_from([1.0, 2.0]),
            st.just(groups),
        )
    )
    bias = draw(st.booleans())
    relu = draw(st.booleans()) or not (lrn or pool or bias)
    return Case(
        (draw(st.integers(1, 3)), channels, *size),
        draw(st.sampled_from(LAYOUTS)),
        draw(st.sampled_from(DTYPES)),
        bias,
        Stages(relu, lrn, pool, draw(st.sampled_from(ORDERS))),
        draw(st.sampled_from([1.0, 30.0, 1e-3])),
        draw(st.integers(0, 2**31)),
    )


def laid_out(layout, n, c, h, w, values):
    if layout == "channels_last":
        return values(n, c, h, w).contiguous(memory_format=torch.channels_last)
    if layout in CHANNELS:
        before, after = CHANNELS[layout]
        x = values(n, before + c + after, h, w).contiguous(memory_format=torch.channels_last)
        return x[:, before : before + c]
    if layout == "sliced":
        return values(n, 2 * c, h + 2, w)[:, ::2, 1:-1]
    if layout == "strided":
        return values(n, c, h, 2 * w)[..., ::2]
    if layout == "transposed":
        return values(n, c, w, h).transpose(2, 3)
    return values(n, c, h, w)


def with_isa(monkeypatch, isa, *modules):
    """Makes these modules launch the kernels of one instruction set."""

    def params(*args):
        p = _launch.params(*args)
        p.kernel_set = ISAS.index(isa)
        return p

    for module in modules:
        monkeypatch.setattr(module, "params", params)


def follows_the_reference(backend, case, device="cpu"):
    (x, bias), stages = case.tensors(device), case.stages
    saved = check_forward(backend, x, bias, stages)
    grad = torch.randn(saved[0].shape, dtype=torch.float64, generator=case.generator).to(x)
    check_backward(backend, x, bias, stages, saved, grad)
    if stages.pool:
        check_argmax(x, bias, stages, saved[2])


@settings(max_examples=1000, deadline=None, phases=PHASES)
@given(cases())
def test_epilogue_follows_the_reference(case):
    follows_the_reference(cpu, case)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_follows_the_reference(isa, monkeypatch):
    with_isa(monkeypatch, isa, cpu)

    @settings(max_examples=200, deadline=None, phases=PHASES)
    @given(cases())
    def check(case):
        follows_the_reference(cpu, case)

    check()


@pytest.mark.skipif(triton.missing_reason() is not None, reason=f"no Triton: {triton.missing_reason()}")
@settings(max_examples=15, deadline=None, phases=PHASES)  # slow, being interpreted
@given(cases().filter(lambda case: not case.stages.pool or case.stages.pool.argmax_dtype == torch.uint8))
def test_triton_follows_the_reference(case):
    follows_the_reference(triton, case, "cuda" if torch.cuda.is_available() else "cpu")
