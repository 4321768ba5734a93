"""The same computation by everyone: a name and a function without arguments for each."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import onnxruntime
import openvino
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Contenders = dict[str, Callable[[], object]]
CHANNELS_LAST = torch.channels_last


def inferring(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return module(x)

    return run


def compiled(module: nn.Module, **options: bool) -> nn.Module:
    return torch.compile(copy.deepcopy(module), dynamic=False, options=options)


def by_onnxruntime(module: nn.Module, x: Tensor) -> Callable[[], object]:
    file = io.BytesIO()
    torch.onnx.export(module, (x,), file, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # into others' turns
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def by_openvino(module: nn.Module, x: Tensor, precision: str) -> Callable[[], object]:
    """precision: "f32" or "bf16", a hint that OpenVINO follows where the processor has the arithmetic."""
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
    return lambda: torch.from_numpy(network([feed])[0])


def inference(plain: nn.Module, fused: nn.Module, x: Tensor) -> Contenders:
    """Both modules and their input are of one dtype; plain is torch's own layers."""
    plain, fused = plain.eval(), fused.eval()
    half = x.dtype != torch.float32
    last = x.contiguous(memory_format=CHANNELS_LAST)
    plain_last, fused_last = (copy.deepcopy(m).to(memory_format=CHANNELS_LAST) for m in (plain, fused))
    result: Contenders = {
        "fastcnn": inferring(fused, x),
        "fastcnn channels_last": inferring(fused_last, last),
        "eager": inferring(plain, x),
        "eager channels_last": inferring(plain_last, last),
        "torch.compile": inferring(compiled(plain), x),
        "torch.compile channels_last": inferring(compiled(plain_last), last),
        "torch.compile freezing": inferring(compiled(plain, freezing=True), x),
    }
    if not half:
        result["ONNX Runtime"] = by_onnxruntime(plain, x)
    result["OpenVINO"] = by_openvino(copy.deepcopy(plain), x, "bf16" if half else "f32")
    return result


def step(module: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], None]:
    """One step of SGD."""
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(module(x), labels).backward()
        optimizer.step()

    return run


def training(plain: nn.Module, fused: nn.Module, x: Tensor) -> Contenders:
    labels = torch.arange(len(x)) % 10
    last = x.contiguous(memory_format=CHANNELS_LAST)
    plain_last, fused_last = (copy.deepcopy(m).to(memory_format=CHANNELS_LAST) for m in (plain, fused))
    return {
        "fastcnn": step(fused, x, labels),
        "fastcnn channels_last": step(fused_last, last, labels),
        "eager": step(plain, x, labels),
        "eager channels_last": step(plain_last, last, labels),
        "torch.compile": step(compiled(plain), x, labels),
    }


def backward(plain: nn.Module, fused: nn.Module, x: Tensor) -> Contenders:
    """Forward and the gradients of the input and of all parameters."""

    def run(module: nn.Module) -> Callable[[], object]:
        leaves = [x, *module.parameters()]
        grad = torch.ones_like(module(x))
        return lambda: torch.autograd.grad(module(x), leaves, grad)

    x.requires_grad_()
    return {"fastcnn": run(fused), "eager": run(plain), "torch.compile": run(compiled(plain))}
