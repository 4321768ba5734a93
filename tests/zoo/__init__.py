"""Convolutional networks as people write them, and the chains that `fastcnn.fuse` is to find in each."""

from .expectations import ENTRIES

__all__ = ["ENTRIES"]
