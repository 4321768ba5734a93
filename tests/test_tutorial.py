"""The tutorial says what running it says, and its pictures can be drawn."""

import re
import sys
from pathlib import Path

import pytest
import torch

from fastcnn import available_backends
from fastcnn.demo import data
from fastcnn.models import imagenet

DOCS = Path(__file__).parents[1] / "docs"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")

pytestmark = pytest.mark.skipif(
    bool(available_backends()["cpu"]), reason="the page counts what the cpu backend keeps"
)


@pytest.fixture(scope="module")
def tutorial():
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(DOCS))
    import tutorial

    sys.path.remove(str(DOCS))
    return tutorial


@pytest.fixture(scope="module")
def ran(tutorial):
    """The page as committed, as it would be written now, and its variables."""
    try:
        data.find_file()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several, on cores that others use too, wait for each other
    page = tutorial.PAGE.read_text()
    yield page, *tutorial.run(page)
    torch.set_num_threads(threads)


def test_the_page_is_what_running_it_prints(ran):
    """Whole numbers to the digit; those with a point, which training and rounding reach, within 2 %."""
    committed, now, _ = ran
    assert NUMBER.sub("0", now) == NUMBER.sub("0", committed)
    for found, expected in zip(NUMBER.findall(now), NUMBER.findall(committed), strict=True):
        if "." in expected:
            assert float(found) == pytest.approx(float(expected), rel=0.02)
        else:
            assert found == expected


def test_its_pictures_are_there_and_are_drawn_of_its_variables(tutorial, ran, tmp_path):
    committed, _, variables = ran
    paths = tutorial.pictures(committed)
    assert sorted(paths) == sorted((DOCS / "tutorial").iterdir())
    for path in paths:
        assert path.stat().st_size < 150_000
        tutorial.draw(tmp_path / path.name, variables)
        assert (tmp_path / path.name).stat().st_size > 10_000


def test_the_same_picture_has_the_same_bytes(tutorial, ran, tmp_path):
    path = tmp_path / "column.svg"
    drawn = []
    for _ in range(2):
        tutorial.draw(path, ran[2])
        drawn.append(path.read_bytes())
    assert drawn[0] == drawn[1]


def test_a_photograph(tutorial, tmp_path, monkeypatch, capsys):
    """The block that runs where there is one, with initial weights in place of the download."""
    pytest.importorskip("PIL.Image").new("RGB", (300, 400), "teal").save(tmp_path / "photograph.jpg")
    monkeypatch.setattr(imagenet, "load", lambda model: None)
    monkeypatch.chdir(tmp_path)
    *_, block = re.findall(r"```python\n(.*?)```", tutorial.PAGE.read_text(), re.DOTALL)
    exec(block, {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "photograph.jpg"
    assert len(printed) == 6
    assert all("%" in line for line in printed[1:])
