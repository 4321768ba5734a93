"""The files of weights that training leaves for use, and what they say of themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import _files

LAST = "model.safetensors"
BEST = "best.safetensors"  # of the epoch with the lowest error
EVERY = "epoch-{:03}.safetensors"


def save(
    path: Path,
    state: Mapping[str, Tensor],
    network: Mapping[str, Any],
    classes: tuple[str, ...],
    **images: Any,
) -> None:
    """Writes a state dict with what :func:`trained.load` reads.

    Args:
        path: the file, which is replaced.
        state: on the host.
        network: "model", a function in fastcnn.models, "variant" and "options", its arguments.
        classes: their names.
        images: side, size, mean and std, as of :class:`trained.Trained`.
    """
    from safetensors.torch import save as serialized

    about = {"network": network, "classes": classes, **images}
    metadata = {name: json.dumps(value) for name, value in about.items()}
    _files.replace(path, serialized({n: t.contiguous() for n, t in state.items()}, metadata))


def usable(run: Path) -> Path:
    """Returns the path of a run's weights, the best where they were kept; or the file itself."""
    if not run.is_dir():
        return run
    return next((run / name for name in (BEST, LAST) if (run / name).exists()), run / LAST)
