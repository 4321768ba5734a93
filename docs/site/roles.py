"""Makes links of the docstrings' roles: :func:`name`, which Markdown does not know."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|data|func|meth|mod):`([\w.]+)`")


def _link(role: re.Match[str]) -> str:
    name = role[1]
    return f"`{name}`" if name.startswith("torch.") else f"[`{name}`][{name}]"


class Roles(griffe.Extension):
    """Rewrites each docstring as it is found; a link to a name without an entry makes the build fail."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(_link, obj.docstring.value)
