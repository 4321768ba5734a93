"""The cpu and triton backends against the float64 reference over drawn shapes, strides, dtypes, stages."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fastcnn import LRN, MaxPool, _native
from fastcnn.backends import cpu, reference, triton
from fastcnn.stages import ORDERS, Stages, memory_format
from fastcnn.testing import DTYPES, assert_within_twice, plain_epilogue

LAYOUTS = ("contiguous", "channels_last", "sliced", "strided", "transposed")
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
    if layout == "sliced":
        return values(n, 2 * c, h + 2, w)[:, ::2, 1:-1]
    if layout == "strided":
        return values(n, c, h, 2 * w)[..., ::2]
    if layout == "transposed":
        return values(n, c, w, h).transpose(2, 3)
    return values(n, c, h, w)


@pytest.fixture(autouse=True)
def always_our_kernels(monkeypatch):
    """However small the tensor."""
    monkeypatch.setattr(cpu, "_best_by_torch", lambda *_: False)


def with_isa(monkeypatch, isa):
    make = cpu.params

    def params(*args):
        p = make(*args)
        p.variant = ISAS.index(isa)
        return p

    monkeypatch.setattr(cpu, "params", params)


def wide(t):
    return None if t is None else t.double()


def check_forward(backend, x, bias, stages):
    y, r, offsets = backend.epilogue_forward(x, bias, stages, save=True)
    exact, exact_r, _ = reference.epilogue_forward(wide(x), wide(bias), stages, save=True)
    assert_within_twice(y, plain_epilogue(x, bias, stages), exact)
    assert (r is None) == (exact_r is None)
    if r is not None:
        pool = stages.pool if stages.pool_first else None
        plain = plain_epilogue(x, bias, Stages(stages.relu, None, pool))
        assert_within_twice(r, plain, exact_r)
    assert y.is_contiguous(memory_format=memory_format(x))
    inference, *nothing = backend.epilogue_forward(x, bias, stages, save=False)
    assert torch.equal(inference.nan_to_num(), y.nan_to_num())
    assert nothing == [None, None]
    return y, r, offsets


def check_backward(backend, x, bias, stages, saved, generator):
    """With the same r and offsets, so that no near-tie in a window decides for one side."""
    y, r, offsets = saved
    keeps = stages.residual(bias is not None, x.device.type)
    kept = {"input": x, "output": y, "r": r, None: None}[keeps]
    grad = torch.randn(y.shape, dtype=torch.float64, generator=generator).to(x)
    rest = (stages, list(x.shape), memory_format(x), True, bias if keeps == "input" else None)
    grad_x, grad_bias = backend.epilogue_backward(grad, kept, offsets, *rest)
    if stages.lrn_first and bias is not None:  # from the stages' input, or from r: the same bits
        again = backend.epilogue_backward(grad, x, offsets, *rest[:4], bias)
        whole = backend.epilogue_backward(grad, reference.lrn_input(x, bias, stages), offsets, *rest[:4])
        assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))
    plain_x, plain_bias = reference.epilogue_backward(grad, kept, offsets, *rest)
    exact_rest = (*rest[:4], wide(rest[4]))
    exact_x, exact_bias = reference.epilogue_backward(wide(grad), wide(kept), offsets, *exact_rest)
    summed = terms(grad, reference.lrn_input(kept, rest[4], stages), offsets, rest[1], stages)
    assert_within_twice(grad_x, plain_x, exact_x, summed)
    assert grad_x.is_contiguous(memory_format=memory_format(x))
    if x.dtype == torch.float64:
        return
    # A sum's rounding is judged against the size of what is summed.
    slack = torch.finfo(x.dtype).eps * summed.sum((0, 2, 3)).max()
    error, plain_error = ((b.double() - exact_bias).abs().max() for b in (grad_bias, plain_bias))
    assert error <= 2 * plain_error + slack


def terms(grad, kept, offsets, size, stages):
    """How large the terms are that the gradient is a sum or difference of."""
    largest = wide(grad).abs()
    if stages.pool:
        largest = reference._pool_backward(largest, offsets, size, stages.pool)
    if stages.lrn is None:
        return largest
    return largest * reference._denominator(wide(kept), stages.lrn).pow(-stages.lrn.beta).max()


def check_offsets(x, bias, stages, offsets):
    """Each offset names a place that holds the window's maximum, to rounding."""
    before = Stages(stages.relu, None if stages.pool_first else stages.lrn)
    full = plain_epilogue(wide(x), wide(bias), before)
    pooled, exact = reference._pool(full, stages.pool)
    moved = offsets != exact
    if not moved.any():
        return
    unit = torch.ones_like(pooled)
    at = reference._pool_backward(torch.where(moved, unit, 0), offsets, list(x.shape), stages.pool)
    # A window whose place differs must hold a value as large there: compare sums over moved windows.
    counted = (full * at).sum()
    expected = pooled[moved].sum()
    eps = torch.finfo(torch.float32 if x.dtype != torch.float64 else torch.float64).eps
    assert (counted - expected).abs() <= 8 * eps * pooled[moved].abs().sum() + 1e-30


@settings(max_examples=2000, deadline=None, phases=PHASES)
@given(cases())
def test_epilogue_follows_the_reference(case):
    (x, bias), stages = case.tensors(), case.stages
    saved = check_forward(cpu, x, bias, stages)
    check_backward(cpu, x, bias, stages, saved, case.generator)
    if stages.pool:
        check_offsets(x, bias, stages, saved[2])


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_follows_the_reference(isa, monkeypatch):
    with_isa(monkeypatch, isa)

    @settings(max_examples=200, deadline=None, phases=PHASES)
    @given(cases())
    def check(case):
        (x, bias), stages = case.tensors(), case.stages
        check_backward(cpu, x, bias, stages, check_forward(cpu, x, bias, stages), case.generator)

    check()


@pytest.mark.skipif(triton.missing_reason() is not None, reason=f"no Triton: {triton.missing_reason()}")
@settings(max_examples=25, deadline=None, phases=PHASES)  # slow, being interpreted
@given(cases())
def test_triton_follows_the_reference(case):
    (x, bias), stages = case.tensors("cuda" if torch.cuda.is_available() else "cpu"), case.stages
    saved = check_forward(triton, x, bias, stages)
    check_backward(triton, x, bias, stages, saved, case.generator)
    if stages.pool:
        check_offsets(x, bias, stages, saved[2])
