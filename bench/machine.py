"""What bears on speed, as every result records it: the processor, threads, the extension, versions."""

from __future__ import annotations

from typing import Any

import torch

import fastcnn
from fastcnn import _native
from fastcnn.bench.machine import processor


def machine() -> dict[str, Any]:
    return {
        "processor": processor("cpu"),
        "threads": torch.get_num_threads(),
        "extension": _native.load().build_info(),
        "versions": {"fastcnn": fastcnn.__version__, "torch": torch.__version__},
    }
