"""Writes tables between marks in a page, and leaves what people wrote around them."""

from __future__ import annotations


def table(header: list[str], rows: list[list[str]], words: int = 1) -> str:
    """Returns a table, with words in the first columns and numbers in the others."""
    lines = ["---" if column < words else "--:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, lines, *rows])


def marked(text: str, **sections: str) -> str:
    """Returns a page with each section between the two marks of its name."""
    for name, section in sections.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{section}\n{end}{rest.split(end)[1]}"
    return text
