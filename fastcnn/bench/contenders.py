"""The same computation by everyone: functions that return what runs it, a function without arguments."""

from __future__ import annotations

import copy
import importlib.util
import io
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._torch_private import tree_leaves
from ..stages import LRN, MaxPool

Run = Callable[[], Any]
Builders = dict[str, Callable[[], Run]]  # by the contender's name; building takes seconds, or fails

NEEDS = {
    "ONNX Runtime": ("onnxruntime", "onnxscript"),
    "OpenVINO": ("openvino",),
    "JAX": ("jax",),
}
ALONE = "convolutions and dense layers alone"
_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def peers(device: str, dtype: torch.dtype) -> list[str]:
    """Returns whom fastcnn can be timed beside here; those of NEEDS run on the CPU only."""
    names = ["eager", "torch.compile"]
    if device == "cpu":
        names += [name for name, packages in NEEDS.items() if not _missing(*packages)]
    if dtype != torch.float32 and "ONNX Runtime" in names:
        names.remove("ONNX Runtime")
    return names


def not_installed() -> list[str]:
    """Returns the packages that some contender needs and that are not there."""
    return _missing(*(package for packages in NEEDS.values() for package in packages))


def _missing(*packages: str) -> list[str]:
    return [package for package in packages if importlib.util.find_spec(package) is None]


def inferring(module: nn.Module, x: Tensor) -> Run:
    return torch.no_grad()(partial(module, x))


def differentiating(module: nn.Module, x: Tensor) -> Run:
    """Returns what runs forward and the gradients of all parameters, and of the input if it requires one."""
    leaves = [t for t in (x, *module.parameters()) if t.requires_grad]
    grads = [torch.ones_like(y) for y in tensors(module(x))]

    def run() -> list[Tensor]:
        found = torch.autograd.grad(tensors(module(x)), leaves, grads, allow_unused=True)
        return [grad for grad in found if grad is not None]

    return run


def tensors(output: Any) -> list[Tensor]:
    """Returns the tensors in what a model returns."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def stepping(module: nn.Module, x: Tensor, labels: Tensor) -> Run:
    """Returns what takes a step of SGD; it returns the step's gradients."""
    module.train()
    parameters = list(module.parameters())
    optimizer = torch.optim.SGD(parameters, lr=1e-4)

    def run() -> list[Tensor]:
        optimizer.zero_grad()
        F.cross_entropy(module(x), labels).backward()
        optimizer.step()
        return [p.grad for p in parameters if p.grad is not None]

    return run


def compiled(module: nn.Module, **options: Any) -> Any:
    return torch.compile(copy.deepcopy(module), dynamic=False, options=options)


def products(plain: nn.Module, x: Tensor) -> Run:
    """Returns what runs a model's convolutions and dense layers alone, each on the input that it gets."""
    calls: list[tuple[nn.Module, Tensor]] = []
    layers = [m for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [m.register_forward_hook(lambda m, inputs, _: calls.append((m, inputs[0]))) for m in layers]
    with torch.no_grad():
        plain(x)
    for hook in hooks:
        hook.remove()
    return torch.no_grad()(lambda: [layer(given) for layer, given in calls][-1])


def by_onnxruntime(module: nn.Module, x: Tensor) -> Run:
    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(module, (x,), file, dynamo=True, verbose=False)  # type: ignore[arg-type]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # into others' turns
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def by_openvino(module: nn.Module, x: Tensor, precision: str) -> Run:
    """precision: "f32", "bf16" or "f16", a hint that OpenVINO follows where the processor has the arithmetic.

    The module itself becomes float32, and so are the input and the output that OpenVINO reads and writes.
    """
    import openvino

    config = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    module, x = module.float(), x.float()
    try:
        model = openvino.convert_model(module, example_input=x, input=x.shape)  # keeps an LRN whole
    except RuntimeError:  # our LeNet-5 looks at its input's size, which tracing does not like
        model = openvino.convert_model(torch.export.export(module, (x,)))
    network = openvino.compile_model(model, "CPU", config)
    feed = x.numpy()
    return lambda: torch.from_numpy(network([feed], share_outputs=True)[0])


def by_jax(x: Tensor, relu: bool, lrn: LRN | None, pool: MaxPool | None) -> Run:
    """An epilogue of (N, C, H, W) as XLA compiles it; the LRN is of one group, the pooling has no padding."""
    os.environ.setdefault("NPROC", str(torch.get_num_threads()))  # XLA's threads, read when JAX begins
    import jax
    from jax import lax
    from jax import numpy as jnp

    def normalised(r: Any, lrn: LRN) -> Any:
        wide, sides = r.astype(jnp.float32), (lrn.size // 2, (lrn.size - 1) // 2)
        no = (0, 0)
        sums = lax.reduce_window(wide**2, 0.0, lax.add, (1, lrn.size, 1, 1), (1,) * 4, (no, sides, no, no))
        return (wide * (lrn.k + lrn.alpha / lrn.size * sums) ** -lrn.beta).astype(r.dtype)

    @jax.jit
    def epilogue(a: Any) -> Any:
        if relu:
            a = jnp.maximum(a, 0)
        if lrn:
            a = normalised(a, lrn)
        if pool:
            window, strides, _, _ = pool.pairs
            a = lax.reduce_window(a, -jnp.inf, lax.max, (1, 1, *window), (1, 1, *strides), "VALID")
        return a

    a = jnp.from_dlpack(x)
    return lambda: torch.utils.dlpack.from_dlpack(epilogue(a).block_until_ready())


def inference(plain: nn.Module, fused: nn.Module, x: Tensor) -> Builders:
    """Both modules and their input are of one dtype; plain is torch's own layers.

    ONNX Runtime has half precision on GPUs only. Neither it nor OpenVINO takes channels_last: the input would
    have to be converted.
    """
    plain, fused = plain.eval(), fused.eval()
    builders: Builders = {
        "fastcnn": partial(inferring, fused, x),
        "eager": partial(inferring, plain, x),
        "torch.compile": lambda: inferring(compiled(plain), x),
    }
    if x.is_contiguous():
        builders["torch.compile freezing"] = lambda: inferring(compiled(plain, freezing=True), x)
        if x.dtype == torch.float32:
            builders["ONNX Runtime"] = partial(by_onnxruntime, plain, x)
        builders["OpenVINO"] = lambda: by_openvino(copy.deepcopy(plain), x, _HINTS[x.dtype])
    return builders


def backward(plain: nn.Module, fused: nn.Module, x: Tensor) -> Builders:
    """Forward and backward, of the parameters and of an input that requires a gradient."""
    return {
        "fastcnn": partial(differentiating, fused, x),
        "eager": partial(differentiating, plain, x),
        "torch.compile": lambda: differentiating(compiled(plain), x),
    }


def training(plain: nn.Module, fused: nn.Module, x: Tensor, labels: Tensor) -> Builders:
    """A step of copies of the modules, so that all begin with the same weights."""
    return {
        "fastcnn": lambda: stepping(copy.deepcopy(fused), x, labels),
        "eager": lambda: stepping(copy.deepcopy(plain), x, labels),
        "torch.compile": lambda: stepping(compiled(plain), x, labels),
    }
