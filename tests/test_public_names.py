"""Every public name and signature: what users' programs call, which a refactoring must not change."""

import inspect

import pytest
import torch

import fastcnn
from fastcnn import LRN, MaxPool, backends, fusion, stages, testing

SPECS = "relu=True, lrn=None, pool=None, order='lrn_pool'"
CONV2D = "stride=1, padding=0, dilation=1, groups=1"
LRN_NUMBERS = "size, alpha=0.0001, beta=0.75, k=1.0"
POOL_NUMBERS = "kernel_size, stride=None, padding=0, dilation=1"

NAMES = {
    fastcnn: {
        "LRN": "size=5, alpha=0.0001, beta=0.75, k=1.0, groups=1",
        "MaxPool": "kernel_size=3, stride=None, padding=0, dilation=1, ceil_mode=False",
        "available_backends": "",
        "explain": "model",
        "functional": None,
        "fuse": "model, example_inputs=None, *, fold_bn=False",
        "models": None,
        "nn": None,
        "receptive_field": "model, input_size, *, measure=False",
        "set_backend": "name",
        "unfuse": "model",
        "use_backend": "name",
    },
    fastcnn.functional: {
        "conv2d_block": f"input, weight, bias=None, {CONV2D}, *, {SPECS}, recompute=False",
        "epilogue": f"input, bias=None, *, {SPECS}",
        "local_response_norm": f"input, {LRN_NUMBERS}",
        "max_pool2d": f"input, {POOL_NUMBERS}, ceil_mode=False, return_indices=False",
    },
    fastcnn.nn: {
        "ConvBlock2d": f"in_channels, out_channels, kernel_size, {CONV2D}, bias=True, *, {SPECS}, "
        "recompute=False, device=None, dtype=None",
        "LocalResponseNorm": LRN_NUMBERS,
        "MaxPool2d": f"{POOL_NUMBERS}, return_indices=False, ceil_mode=False",
    },
    fastcnn.models: {
        "alexnet": "variant='2012', num_classes=1000, *, towers=None, norm='published', overlap=True, "
        "adaptive=None, dropout=0.5, in_channels=3, fused=True, weights=None",
        "lenet5": "variant='relu', num_classes=10, *, adaptive=False, dropout=0.0, in_channels=1, fused=True",
        "load_caffe": "model, blobs, *, channels='BGR'",
        "load_weights": "model, path",
        "map_loss": "scores, labels, j=0.1",
    },
    testing: {
        "DTYPES": None,
        "TOLERANCES": None,
        "assert_close": "actual, expected, factor=1.0",
        "assert_within_twice": "actual, plain, exact, terms=None",
        "backends": "device='cpu'",
        "devices": "",
        "plain_epilogue": "x, bias, stages",
    },
    fusion: {
        "explain": "model",
        "fuse": "model, example_inputs=None, *, fold_bn=False",
        "unfuse": "model",
    },
}

# These have no __all__.
OTHERS = {
    backends: {
        "available_backends": "",
        "current_backend": "",
        "module": "name",
        "set_backend": "name",
        "use_backend": "name",
    },
    stages: {"Stages": SPECS},
}

STAGES = "bool relu, float[]? lrn, int[]? pool, str order"
CONV = "int[] stride, SymInt[] padding, int[] dilation, int groups"
BLOCK = f"Tensor input, Tensor weight, Tensor? bias, {CONV}, {STAGES}"
SCHEMAS = {  # an exported program names them
    "epilogue": f"(Tensor input, Tensor? bias, {STAGES}) -> Tensor",
    "epilogue_forward": f"(Tensor input, Tensor? bias, {STAGES}, bool save) -> (Tensor, Tensor, Tensor)",
    "epilogue_backward": f"(Tensor grad, Tensor? r, Tensor? argmax, {STAGES}, SymInt[] size, "
    "bool channels_last, bool need_bias, Tensor? bias=None) -> (Tensor, Tensor)",
    "conv2d_block": f"({BLOCK}, bool recompute) -> Tensor",
    "conv2d_block_forward": f"({BLOCK}, bool save, bool recompute) -> (Tensor, Tensor, Tensor)",
    "convolution_backward": f"(Tensor grad, Tensor input, Tensor weight, {CONV}, bool[2] needed) "
    "-> (Tensor, Tensor)",
}


def parameters(function):
    """Names and defaults as they are written, without types."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(bare))[1:-1]


@pytest.mark.parametrize("module", NAMES, ids=lambda module: module.__name__)
def test_all_names_are_these(module):
    assert sorted(module.__all__) == sorted(NAMES[module])


def test_the_package_has_no_other_names_but_modules():
    others = {name for name in vars(fastcnn) if not name.startswith("_")} - set(fastcnn.__all__)
    assert {type(getattr(fastcnn, name)) for name in others} <= {type(fastcnn)}


@pytest.mark.parametrize("module", [*NAMES, *OTHERS], ids=lambda module: module.__name__)
def test_signatures(module):
    wanted = {**NAMES, **OTHERS}[module]
    found = {name: getattr(module, name) for name in wanted}
    assert {n: None if wanted[n] is None else parameters(f) for n, f in found.items()} == wanted


def test_a_layers_forward_takes_margins():
    assert parameters(fastcnn.nn.ConvBlock2d.forward) == "self, input, margins=()"


def test_backends_are_these():
    assert backends.BACKENDS == ("reference", "plain", "cpu", "cuda", "triton")
    assert set(backends.PREFERENCE) == {"cpu", "cuda"}


def test_specs_hold_what_they_were_given():
    norm, pool = LRN(5, 1e-4, 0.75, 2.0, 2), MaxPool(3, 2, 1, 1, True)
    assert str(norm) == "LRN(size=5, alpha=0.0001, beta=0.75, k=2.0, groups=2)"
    assert str(pool) == (
        "MaxPool(kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1), ceil_mode=True)"
    )
    assert len({norm, LRN(5, 1e-4, 0.75, 2.0, 2)}) == len({pool, MaxPool((3, 3), 2, 1, 1, True)}) == 1


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas(name):
    schema = getattr(torch.ops.fastcnn, name).default._schema
    assert str(schema) == f"fastcnn::{name}{SCHEMAS[name]}"
