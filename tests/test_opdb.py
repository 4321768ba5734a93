"""Every sample and every error input of torch's own op database."""

import pytest
import torch
from torch.nn import functional as TF

from fastcnn import functional as F
from fastcnn.testing import assert_close

pytest.importorskip("expecttest", reason="torch's op database needs expecttest, which is not installed")
from torch.testing._internal.common_methods_invocations import op_db

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("local_response_norm", "max_pool2d", "conv2d")
INFOS = {name: next(op for op in op_db if op.name == f"nn.functional.{name}") for name in NAMES}
CASES = [(name, dtype) for name, op in INFOS.items() for dtype in op.supported_dtypes("cpu")]


def block(input, weight, bias=None, *args, relu, **kwargs):
    return F.conv2d_block(input, weight, bias, *args, relu=relu, **kwargs)


OURS = {
    "local_response_norm": F.local_response_norm,
    "max_pool2d": F.max_pool2d,
    "conv2d": lambda *args, **kwargs: block(*args, relu=False, **kwargs),
}


def theirs(name, input, *args, **kwargs):
    """torch's answer; in float32, rounded, where it has an LRN in a dtype by name only."""
    f = getattr(TF, name)
    try:
        return f(input, *args, **kwargs)
    except NotImplementedError:
        assert name == "local_response_norm"
        assert input.dtype in (torch.float16, torch.bfloat16)
        return f(input.float(), *args, **kwargs).to(input.dtype)


def compare(ours, theirs, tensors):
    outputs = [o if isinstance(o, tuple) else (o,) for o in (ours, theirs)]
    for a, b in zip(*outputs, strict=True):
        assert_close(a, b)
    a, b = (o[0] for o in outputs)
    wanted = [t for t in tensors if isinstance(t, torch.Tensor) and t.requires_grad]
    if not wanted or not b.requires_grad:
        return
    assert a.requires_grad
    grad = torch.randn_like(b)
    pairs = zip(*(torch.autograd.grad(o, wanted, grad) for o in (a, b)), strict=True)
    for x, y in pairs:
        assert_close(x, y, factor=4)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_samples(name, dtype):
    op = INFOS[name]
    samples = list(
        op.sample_inputs(
            "cpu",
            dtype,
            requires_grad=op.supports_autograd and (dtype.is_floating_point or dtype.is_complex),
        )
    )
    assert samples
    for sample in samples:
        args = (sample.input, *sample.args)
        tensors = [*args, *sample.kwargs.values()]
        compare(OURS[name](*args, **sample.kwargs), theirs(name, *args, **sample.kwargs), tensors)


@pytest.mark.parametrize("dtype", [d for n, d in CASES if n == "conv2d" and not d.is_complex])
def test_conv2d_samples_with_relu(dtype):
    for sample in INFOS["conv2d"].sample_inputs("cpu", dtype, requires_grad=dtype.is_floating_point):
        args = (sample.input, *sample.args)
        expected = TF.conv2d(*args, **sample.kwargs).relu()
        compare(block(*args, relu=True, **sample.kwargs), expected, [*args, *sample.kwargs.values()])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("relu", [False, True])
def test_error_inputs_raise_the_same_type(name, relu):
    op = INFOS[name]
    if op.error_inputs_func is None:
        assert name == "local_response_norm"
        return
    ours = OURS[name] if name != "conv2d" else lambda *a, **k: block(*a, relu=relu, **k)
    for error in op.error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises(error.error_type):
            getattr(TF, name)(sample.input, *sample.args, **sample.kwargs)
        with pytest.raises(error.error_type):
            ours(sample.input, *sample.args, **sample.kwargs)
