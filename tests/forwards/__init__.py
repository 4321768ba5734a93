"""Forwards written in every way that Python allows, by name, and what a network with one of them gives."""

from . import draws, exceptions, modes, outputs, python, sizes, state, values
from .base import FORWARDS, Base, pooled
from .runs import IMAGES, assert_alike, made, results

__all__ = [
    "FORWARDS",
    "IMAGES",
    "Base",
    "assert_alike",
    "draws",
    "exceptions",
    "made",
    "modes",
    "outputs",
    "pooled",
    "python",
    "results",
    "sizes",
    "state",
    "values",
]
