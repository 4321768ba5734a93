"""Where there is no GPU, Triton's kernels are tested in its interpreter: it must know before its import."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
