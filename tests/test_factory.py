"""Models of the user's, by the name of what makes them."""

import sys

import pytest
from torch import nn

from fastcnn import _factory

SOURCE = """
from torch import nn

number = 3
model = nn.Linear(2, 2)


class Zoo:
    @staticmethod
    def small():
        return nn.Linear(2, 3)


def word():
    return "no model"
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """A folder with a module, which is forgotten afterwards."""
    (tmp_path / "mine_for_tests.py").write_text(SOURCE)
    (tmp_path / "mine_broken.py").write_text("import no_such_package")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield
    sys.modules.pop("mine_for_tests", None)


def test_functions_classes_attributes_and_modules_are_found_from_this_folder():
    assert isinstance(_factory.load("torch.nn:ReLU"), nn.ReLU)
    assert _factory.load("mine_for_tests:Zoo.small").out_features == 3
    assert _factory.load("mine_for_tests:model").out_features == 2


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("resnet", ValueError, "model must be named package.module:function, but got 'resnet'"),
        (":make", ValueError, "but got ':make'"),
        ("mine_for_tests:", ValueError, "but got 'mine_for_tests:'"),
        ("no_such_package.zoo:make", ModuleNotFoundError, "No module named 'no_such_package'"),
        ("mine_broken:make", ModuleNotFoundError, "No module named 'no_such_package'"),
        ("mine_for_tests:make", ValueError, "module 'mine_for_tests' has no attribute 'make'"),
        ("mine_for_tests:Zoo.large", ValueError, "has no attribute 'large'"),
        ("mine_for_tests:number", ValueError, "must be callable, but is int"),
        ("mine_for_tests:word", ValueError, "must return a torch.nn.Module, but returned str"),
    ],
)
def test_what_makes_no_model_is_named(name, error, words):
    with pytest.raises(error) as raised:
        _factory.load(name)
    assert words in str(raised.value)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)
