"""Tables, numbers, machines and marked sections, written the same way on every page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Quartiles = dict[str, float]  # "low", "median" and "high"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Returns a table of numbers, except in the first columns, of words, and in those without a name."""
    aligned = ["--:" if name and i >= words else "---" for i, name in enumerate(columns)]
    head, *body = (f"| {' | '.join(cells)} |" for cells in (columns, *rows))
    return "\n".join([head, f"|{'|'.join(aligned)}|", *body])


def milliseconds(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 1 else f"{ms:.2f}"


def times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio >= 2 else f"{ratio:.2f}"


def digits(value: float) -> str:
    return f"{value:.3g}"


def span(quartiles: Quartiles, form: Callable[[float], str]) -> str:
    return f"{form(quartiles['low'])}–{form(quartiles['high'])}"


def unsure(quartiles: Quartiles) -> str:
    """Returns a ratio, marked if its quartiles are on both sides of 1."""
    return "≈ " * (quartiles["low"] <= 1 <= quartiles["high"]) + times(quartiles["median"])


def machine(data: dict[str, Any], *packages: str) -> str:
    """Returns processor, threads, and the versions of fastcnn, torch and some packages."""
    info = data["machine_info"]
    names = [name for name in ("fastcnn", "torch", *packages) if name in info["versions"]]
    versions = ", ".join(f"{name} {info['versions'][name]}" for name in names)
    threads = f"{info['threads']} thread{'s' * (info['threads'] != 1)}"
    return f"{processor(info)}, {threads}, {versions}"


def processor(info: dict[str, Any]) -> str:
    """Returns its name, and which it is exactly, if the results say so."""
    cpu = info.get("cpu", {})
    which = [f"{part} {cpu[f'cpu {part}']}" for part in ("family", "model") if f"cpu {part}" in cpu]
    return info["processor"] + (f" ({', '.join(which)})" if which else "")


def marked(text: str, **sections: str) -> str:
    """Returns a page with each section between the two marks of its name."""
    for name, section in sections.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{section}\n{end}{rest.split(end)[1]}"
    return text
