"""The same computation by everyone: a name and a function without arguments for each."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastcnn.bench.contenders import (
    by_onnxruntime,
    by_openvino,
    compiled,
    differentiating,
    inferring,
    stepping,
)

Contenders = dict[str, Callable[[], object]]
CHANNELS_LAST = torch.channels_last


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


def training(plain: nn.Module, fused: nn.Module, x: Tensor) -> Contenders:
    labels = torch.arange(len(x)) % 10
    last = x.contiguous(memory_format=CHANNELS_LAST)
    plain_last, fused_last = (copy.deepcopy(m).to(memory_format=CHANNELS_LAST) for m in (plain, fused))
    return {
        "fastcnn": stepping(fused, x, labels),
        "fastcnn channels_last": stepping(fused_last, last, labels),
        "eager": stepping(plain, x, labels),
        "eager channels_last": stepping(plain_last, last, labels),
        "torch.compile": stepping(compiled(plain), x, labels),
    }


def backward(plain: nn.Module, fused: nn.Module, x: Tensor) -> Contenders:
    """Forward and the gradients of the input and of all parameters."""
    x.requires_grad_()
    return {
        "fastcnn": differentiating(fused, x),
        "eager": differentiating(plain, x),
        "torch.compile": differentiating(compiled(plain), x),
    }
