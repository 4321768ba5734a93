"""Fused CNN kernels for PyTorch: convolution, bias, ReLU, local response normalisation and max pooling."""

from importlib import metadata as _metadata

from . import _requirements  # noqa: F401  first, since all else needs what it checks

# isort: split
from . import functional, models, nn
from .backends import available_backends, set_backend, use_backend
from .fusion import explain, fuse, unfuse
from .receptive_field import receptive_field
from .stages import LRN, MaxPool

try:
    __version__ = _metadata.version("fastcnn")
except _metadata.PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0"

__all__ = [
    "LRN",
    "MaxPool",
    "available_backends",
    "explain",
    "functional",
    "fuse",
    "models",
    "nn",
    "receptive_field",
    "set_backend",
    "unfuse",
    "use_backend",
]
