"""Published networks, built from fused blocks or, for comparison, from plain torch layers."""

from .alexnet import alexnet
from .lenet import lenet5
from .lenet1998 import map_loss
from .weights import load_caffe, load_weights

__all__ = ["alexnet", "lenet5", "load_caffe", "load_weights", "map_loss"]
