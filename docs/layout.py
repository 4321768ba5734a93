"""Writes docs/layout.md: every source file, with the first sentence that it says of itself.

python docs/layout.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "layout.md"
FOLDERS = ("fastcnn", "csrc", "bench", "tests", "docs")
KINDS = (".py", ".h", ".cpp", ".cu")


def first_sentence(path: Path) -> str:
    """Returns that of a Python file's docstring, or of a C++ file's first comment."""
    text = path.read_text()
    if path.suffix == ".py":
        said = ast.get_docstring(ast.parse(text)) or ""
    else:
        comment = re.match(r"(?://.*\n)*", text)
        said = re.sub(r"(?m)^// ?", "", comment[0]) if comment else ""
    sentence = re.split(r"(?<=[.:])\s*(?:\n\n|\s(?=[A-Z]))", said + "\n\n")[0]
    return " ".join(sentence.split()).rstrip(".:")


def tree(folder: Path, indent: str = "") -> list[str]:
    """Returns a line for each file of a folder, then for each folder in it, with its own."""
    entries = sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name))
    lines = [f"{indent}{folder.name}/"]
    for path in entries:
        if path.is_dir():
            inside = tree(path, indent + "  ")
            lines += inside if len(inside) > 1 else []
        elif path.suffix in KINDS:
            lines.append(f"{indent}  {path.name:{26 - len(indent)}} {first_sentence(path)}".rstrip())
    return lines


def page() -> str:
    """Returns the page as it should be."""
    trees = "\n".join(line for folder in FOLDERS for line in tree(ROOT / folder))
    return f"""# Where things are

Each file in a line, as it describes itself. `python docs/layout.py` writes this page; a test compares.

```text
{trees}
```
"""


if __name__ == "__main__":
    PAGE.write_text(page())
