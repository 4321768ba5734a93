"""Models that people have: some written here in the style of public code, and installed packages'."""

from . import caffe, cifar, cifar100, installed, kernelbench
from .entry import Entry

__all__ = ["Entry", "entries", "written"]


def written() -> list[Entry]:
    """Returns the models that need nothing but torch."""
    return [*cifar.ENTRIES, *cifar100.ENTRIES, *kernelbench.ENTRIES, *caffe.ENTRIES]


def entries() -> list[Entry]:
    """Returns all models, those of packages where these are installed."""
    return [*written(), *installed.torchvision_entries(), *installed.timm_entries()]
