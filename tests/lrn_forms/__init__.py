"""Local response normalisation as people write it, by name, and networks with it."""

from . import spellings, values
from .base import FORMS, Module, spelled
from .nets import IMAGES, MAPS, OPTIONS, build, compare, kinds

__all__ = [
    "FORMS",
    "IMAGES",
    "MAPS",
    "OPTIONS",
    "Module",
    "build",
    "compare",
    "kinds",
    "spelled",
    "spellings",
    "values",
]
