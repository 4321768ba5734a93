"""Run docs/tutorial.md: its Python blocks from first to last, what they print below them, and its pictures.

    python docs/tutorial.py

A picture ``tutorial/NAME.svg`` is what the function NAME of ``tutorial_figures.py`` draws, of the variables
that its parameters are called.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from pathlib import Path
from typing import Any

import matplotlib
import torch
import tutorial_figures

PAGE = Path(__file__).with_suffix(".md")
_BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n.*?```\n)?", re.DOTALL)
_PICTURE = re.compile(r"\]\((tutorial/\w+\.(?:png|svg))\)")


def run(page: str) -> tuple[str, dict[str, Any]]:
    """The page with what its blocks print now, and the variables that they leave."""
    variables: dict[str, Any] = {}

    def filled(block: re.Match[str]) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(block[1], variables)
        lines = "\n".join(line.rstrip() for line in printed.getvalue().rstrip().splitlines())
        return f"```python\n{block[1]}```\n" + (f"\n```text\n{lines}\n```\n" if lines else "")

    return _BLOCK.sub(filled, page), variables


def pictures(page: str) -> list[Path]:
    """The files that the page shows."""
    return [PAGE.parent / name for name in _PICTURE.findall(page)]


def draw(path: Path, variables: dict[str, Any]) -> None:
    """The same bytes from the same variables."""
    figure = getattr(tutorial_figures, path.stem)
    taken = {name: variables[name] for name in inspect.signature(figure).parameters}
    undated = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "fastcnn"}):
        figure(**taken).savefig(path, dpi=110, facecolor="white", metadata=undated)


def main() -> None:
    torch.set_num_threads(1)
    page, variables = run(PAGE.read_text())
    PAGE.write_text(page)
    for path in pictures(page):
        path.parent.mkdir(exist_ok=True)
        draw(path, variables)


if __name__ == "__main__":
    main()
