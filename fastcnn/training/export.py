"""A trained network as a file that needs no fastcnn: ONNX, torch.export's pt2, or safetensors."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import _files
from .._commands import quiet
from . import trained, weights
from .trained import Trained

_LARGEST_DIFFERENCE = 1e-4  # of a probability


class Exported(torch.nn.Module):
    """From pixels (N, C, size, size), 0 to 255, red, green, blue, to probabilities (N, classes)."""

    def __init__(self, network: Trained) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.model = network.model
        self.register_buffer("mean", network.mean[:, None, None].clone())
        self.register_buffer("std", network.std[:, None, None].clone())

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model((pixels - self.mean) / self.std).softmax(1)


def export(run: Path, kind: str, out: Path) -> str:
    """Writes the network of a run, or of a weights file, and checks the outputs of the written file.

    Returns:
        What was compared.

    Raises:
        OSError: a file can't be read or written.
        ModuleNotFoundError: onnxscript, which writes ONNX files, is missing.
        RuntimeError: damaged weights; a file that answers otherwise.
    """
    if kind == "safetensors":
        trained.load(run)  # is it whole?
        _files.replace(out, weights.usable(run).read_bytes())
        return "its weights fit the network that it names"
    network = trained.load(run, fused=False)
    model = Exported(network).eval()
    draw = torch.Generator().manual_seed(0)
    examples = [
        255 * torch.rand(n, network.channels, network.size, network.size, generator=draw) for n in (2, 3)
    ]
    images = {"pixels": {0: torch.export.Dim("images")}}
    about = {"classes": network.classes, "pixels": "(N, C, H, W) float32, 0 to 255, red green blue"}
    with torch.no_grad():
        data, answer, by = {"onnx": _onnx, "pt2": _pt2}[kind](model, examples[0], images, about)
        if answer is not None:
            differences = [(answer(x) - model(x)).abs().max().item() for x in examples]
            if not max(differences) <= _LARGEST_DIFFERENCE:
                raise RuntimeError(f"{by} answers otherwise: probabilities differ by {max(differences):.2g}")
            by = f"in {by}, probabilities differ by {max(differences):.1g} at most"
    _files.replace(out, data)
    return by


Answer = Callable[[Tensor], Tensor]
Written = tuple[bytes, Answer | None, str]


def _pt2(model: Exported, x: Tensor, images: Any, about: dict[str, Any]) -> Written:
    program, file = torch.export.export(model, (x,), dynamic_shapes=images), io.BytesIO()
    torch.export.save(program, file, extra_files={"about.json": json.dumps(about)})
    data = file.getvalue()
    return data, torch.export.load(io.BytesIO(data)).module(), "torch.export.load"


def _onnx(model: Exported, x: Tensor, images: Any, about: dict[str, Any]) -> Written:
    with quiet():
        program = torch.onnx.export(
            model,
            (x,),
            dynamic_shapes=images,
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update({name: json.dumps(value) for name, value in about.items()})
    with tempfile.TemporaryDirectory() as folder:  # it writes to a path alone
        path = Path(folder) / "model.onnx"
        program.save(path, external_data=False)
        data = path.read_bytes()
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return data, None, "not compared: onnxruntime is not installed"
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def answer(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])

    return data, answer, f"ONNX Runtime {onnxruntime.__version__}"
