"""README's and the guide's code runs as it stands, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
if not PAGES[0].exists():
    pytest.skip("a copy of the package without its pages", allow_module_level=True)


@pytest.mark.parametrize(("page", "after"), [("README.md", "## Use it"), ("docs/guide.md", "# Guide")])
def test_the_code_runs(page, after):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text().split(after)[1], re.M | re.S)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def headings(page):
    """The anchors of a page's headings, as they are made on the usual sites."""
    lines = re.sub(r"```.*?```", "", page.read_text(), flags=re.S).splitlines()
    titles = [line.lstrip("#").strip().lower() for line in lines if re.match("#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    for target in re.findall(
        r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.S)
    ):
        if target.startswith(("http", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in headings(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_stand_apart(page):
    """Without an empty line before it, a heading, list or table is one on a forge, but text on the site."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", page.read_text(), flags=re.S)
    assert re.findall(r"^[^\n|# -].*\n(?:[#|]|- ).*|^\|.*\n[^\n|].*", text, re.M) == []
