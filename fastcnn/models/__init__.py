"""Published networks, built from fused blocks or, for comparison, from plain torch layers."""

from .alexnet import alexnet
from .lenet import lenet5

__all__ = ["alexnet", "lenet5"]
