"""docs/layout.md lists the files that there are, as they describe themselves now."""

from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    import layout

    assert layout.PAGE.read_text() == layout.page(), "run python docs/layout.py"
    described = [line.split(maxsplit=1) for line in layout.page().splitlines() if ".py " in line]
    assert all(len(words) == 2 for words in described)
