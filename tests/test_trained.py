"""Uses of a trained network: prediction, evaluation, export, further training."""

import json
import os
import re

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from trainings import log_of, train, weights_of, write_pictures

from fastcnn import models
from fastcnn.cli import main
from fastcnn.data import find, pictures
from fastcnn.models import imagenet
from fastcnn.training import evaluate, trained

pytestmark = pytest.mark.usefixtures("one_thread")


# What a trained network answers.


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A network that tells pictures of three colours apart, and its data."""
    data, out = write_pictures(tmp_path_factory.mktemp("data"), 12), tmp_path_factory.mktemp("run")
    options = ["--model", "lenet5", "--size", "28", "--epochs", "12", "--rate", "0.005"]
    assert train(data, out, *options) == 0
    return data, out


@pytest.mark.parametrize("of", ["folder", "file"])
def test_predict_names_the_classes(of, colours, capsys):
    data, out = colours
    path = out if of == "folder" else out / "model.safetensors"
    files = sorted(data.glob("*/*"))
    capsys.readouterr()
    assert main(["predict", str(path), *map(str, files), "--json", "--top", "2"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["picture"] for row in rows] == [str(path) for path in files]
    assert all(len(row["answers"]) == 2 for row in rows)
    right = [row["answers"][0]["class"] == path.parent.name for row, path in zip(rows, files, strict=True)]
    assert sum(right) >= 0.9 * len(right)
    assert main(["predict", str(path), str(files[0])]) == 0
    name, *lines = capsys.readouterr().out.splitlines()
    assert name == str(files[0])
    assert len(lines) == len(list(data.iterdir()))
    assert re.fullmatch(r"  [ \d]\d\d?\.\d%  \S+ +#+", lines[0]) and files[0].parent.name in lines[0]


def test_predict_gives_the_probabilities_of_training(colours):
    """The same as the network gives to pixels cropped and normalised as in its test."""
    data, out = colours
    network = trained.load(out)
    path = next(data.glob("*/*"))
    pixels = pictures.picture(path, network.side)[None, 2:-2, 2:-2].permute(0, 3, 1, 2).float()
    assert pixels.shape[-1] == network.size == 28
    scores = network.model((pixels - network.mean.view(-1, 1, 1)) / network.std.view(-1, 1, 1))
    torch.testing.assert_close(network.answers(path), scores[0].double().softmax(0), rtol=1e-5, atol=1e-6)


def test_predict_names_what_it_cannot_read_and_goes_on(colours, tmp_path, capsys):
    data, out = colours
    (tmp_path / "empty\x1b[2J.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    picture = next(data.glob("*/*"))
    files = [tmp_path / "empty\x1b[2J.png", tmp_path / "pipe.png", tmp_path / "none.png", picture]
    assert main(["predict", str(out), *map(str, files)]) == 1
    said, error = capsys.readouterr()
    assert said.startswith(f"{picture}\n")
    assert [
        f"can't read {path}: ".replace("\x1b", "\\x1b") in line
        for path, line in zip(files, error.splitlines(), strict=False)
    ] == [True] * 3


def test_predict_on_digits_of_idx_files(mnist, tmp_path, capsys):
    """Of one channel, and without the zeros that training puts around them."""
    assert train(mnist, tmp_path / "run", "--epochs", "1") == 0
    Image.new("L", (28, 28), 7).save(tmp_path / "seven.png")
    network = trained.load(tmp_path / "run")
    assert (network.side, network.size, len(network.mean)) == (28, 28, 1)
    pixels = (torch.full((1, 1, 28, 28), 7.0) - network.mean) / network.std
    expected = network.model(pixels)[0].double().softmax(0)
    torch.testing.assert_close(network.answers(tmp_path / "seven.png"), expected, rtol=1e-5, atol=1e-6)


FOREIGN = {
    "no metadata": (None, "KeyError: 'network'"),
    "no classes": ({"classes": None}, "KeyError: 'classes'"),
    "another network": (
        {"network": {"model": "resnet", "variant": None, "options": {}}},
        "KeyError: 'resnet'",
    ),
    "another variant": ({"network": {"model": "lenet5", "variant": "x", "options": {}}}, "ValueError: "),
    "an unknown option": (
        {"network": {"model": "lenet5", "variant": None, "options": {"a": 1}}},
        "ValueError: variant and options are ",
    ),
    "options that would change all": (
        {"network": {"model": "lenet5", "variant": None, "options": {"num_classes": 10**12}}},
        "ValueError: variant and options are ",
    ),
    "a size of no network": ({"size": 27}, "RuntimeError: "),
    "a size of a half": ({"size": 28.5}, "ValueError: size and side are 28.5"),
    "an infinite size": ({"size": float("inf")}, "ValueError: size and side are inf"),
    "a class twice": ({"classes": ["a", "a", "b"]}, "ValueError: classes are "),
    "an infinite deviation": ({"std": [float("inf"), 1.0, 1.0]}, "ValueError: "),
    "no list": ({"mean": 3}, "ValueError: mean and std are 3"),
    "a std of 0": ({"std": [0.0, 1.0, 1.0]}, "ValueError: "),
    "a mean of NaN": ({"mean": [float("nan")] * 3}, "ValueError: "),
    "a size of 0": ({"size": 0}, "ValueError: "),
    "a size beyond its side": ({"size": 1000}, "ValueError: "),
    "a class too few": ({"classes": ["a"]}, "does not fit: "),
    "classes of numbers": ({"classes": [1, 2, 3]}, "ValueError: "),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_predict_refuses_a_file_that_does_not_say_what_it_is_of(kind, colours, tmp_path, capsys):
    _, out = colours
    changes, message = FOREIGN[kind]
    with safe_open(out / "model.safetensors", "pt") as file:
        about = file.metadata()
    changed = {name: json.dumps(value) for name, value in (changes or {}).items()}
    about = {k: v for k, v in (about | changed).items() if v != "null"} if changes else None
    save_file(weights_of(out), tmp_path / "w.safetensors", about)
    assert main(["predict", str(tmp_path / "w.safetensors"), "x.png"]) == 1
    error = capsys.readouterr().err
    assert message in error and str(tmp_path / "w.safetensors") in error and error.count("\n") == 1


def test_predict_without_a_run_takes_torchvisions_weights(colours, monkeypatch, capsys):
    data, out = colours
    monkeypatch.setattr(trained, "published", lambda: trained.load(out))
    path = next(data.glob("*/*"))
    assert main(["predict", str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"{path}\n")


def test_predict_downloads_nothing_for_a_name_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trained, "published", pytest.fail)
    for name in ("run", "x.png", "x.bin"):
        assert main(["predict", str(tmp_path / name), "y.png"]) == 1
        assert capsys.readouterr().err == f"predict: {tmp_path / name}: there is no such file\n"


def test_predict_needs_a_picture(colours, capsys):
    assert main(["predict", str(colours[1])]) == 1
    assert capsys.readouterr().err == f"predict: needs a picture, but got {colours[1]} alone\n"


def test_predict_draws_a_sheet(colours, tmp_path, capsys):
    data, out = colours
    files = [str(path) for path in sorted(data.glob("*/1*"))]
    assert main(["predict", str(out), *files, "--sheet", str(tmp_path / "sheet.png")]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 1000


# Evaluated.


def evaluated(run, data, capsys, *options):
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", str(data), "--workers", "0", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_evaluate_finds_what_training_found(colours, capsys):
    data, out = colours
    found, last = evaluated(out / "model.safetensors", data, capsys), log_of(out)[-1]
    assert found["loss"] == pytest.approx(float(last["test_loss"]), rel=1e-5)
    assert found["error"] == float(last["error"]) and found["error5"] is None
    assert found["images"] == 6 and sum(map(sum, found["confusion"])) == 6


@pytest.mark.parametrize("size", ["28", "32"])
def test_evaluate_averages_ten_crops_as_the_papers_recipe_does(size, mnist, tmp_path, capsys):
    """Five of digits."""
    options = ["--recipe", "alexnet2012", "--rate", "1e-5", "--size", size, "--epochs", "1"]
    assert train(mnist, tmp_path / "run", *options) == 0
    found = evaluated(tmp_path / "run", mnist, capsys, "--crops", "10")
    assert found["loss"] == pytest.approx(float(log_of(tmp_path / "run")[-1]["test_loss"]), rel=1e-5)
    one = evaluated(tmp_path / "run", mnist, capsys)
    assert one["loss"] != found["loss"]


def test_evaluate_counts_what_is_taken_for_what(colours, capsys):
    """By hand, from the answers to each picture."""
    data, out = colours
    network = trained.load(out)
    files = find(str(data), 28).test
    expected = torch.zeros(3, 3, dtype=torch.long)
    for path, label in zip(files.paths, files.labels, strict=True):
        expected[label, network.answers(path).argmax()] += 1
    assert evaluated(out, data, capsys)["confusion"] == expected.tolist()


def test_evaluate_finds_classes_by_name(colours, tmp_path, capsys):
    """Of fewer classes, whose numbers are others."""
    _, out = colours
    data = write_pictures(tmp_path / "data", 20, ("green", "red"))
    (tmp_path / "data" / "green").rename(tmp_path / "spare")  # colours go by place: exchange them
    (tmp_path / "data" / "red").rename(tmp_path / "data" / "green")
    (tmp_path / "spare").rename(tmp_path / "data" / "blue")
    assert evaluated(out, data, capsys)["error"] < 0.3


def test_evaluate_tells_errors_and_the_most_frequent_mistakes(colours, tmp_path, capsys):
    data, out = colours
    capsys.readouterr()
    options = ["--data", str(data), "--confusion", str(tmp_path / "c.png")]
    assert main(["evaluate", str(out), *options]) == 0
    said = capsys.readouterr().out
    assert f"{out / 'best.safetensors'}: 6 images, 3 classes\ntop-1 error " in said
    with Image.open(tmp_path / "c.png") as drawn:
        assert drawn.format == "PNG"
    evaluation = evaluate.Evaluation(9, None, torch.tensor([[1, 2, 0], [3, 1, 0], [0, 1, 1]]), {})
    assert evaluation.mistakes() == [(1, 0, 3), (0, 1, 2), (2, 1, 1)]


def test_evaluate_refuses_what_does_not_fit(colours, mnist, tmp_path, capsys):
    _, out = colours
    capsys.readouterr()
    others = write_pictures(tmp_path / "others", 3, ("blue", "pink"))
    for data, message in ((mnist, "of 3 channels, but these have 1"), (others, "does not know: pink")):
        assert main(["evaluate", str(out), "--data", str(data), "--workers", "0"]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    next(others.glob("blue/0*")).write_bytes(b"x")
    (others / "pink").rename(others / "red")
    assert main(["evaluate", str(out), "--data", str(others), "--workers", "0"]) == 1
    assert f"can't read {others / 'blue' / '0.png'}" in capsys.readouterr().err
    assert evaluated(out, others, capsys, "--skip-bad")["images"] == 1


def test_classes_go_by_number_for_imagenets_ids_in_torchvisions_network_alone(monkeypatch):
    words, ids = tuple(f"w{i}" for i in range(1000)), tuple(f"n{i:08} word" for i in range(1000))
    for ours, theirs in ((words, ids), (words, tuple(map(str, range(1000))))):
        with pytest.raises(ValueError, match="does not know"):
            evaluate.places(ours, theirs)
    monkeypatch.setattr(imagenet, "classes", lambda: words)
    assert evaluate.places(words, ids) == list(range(1000))
    assert evaluate.places(words, ("w7", "w3")) == [7, 3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_evaluate_without_a_gpu_says_so(colours, capsys):
    data, out = colours
    assert main(["evaluate", str(out), "--data", str(data), "--device", "cuda"]) == 1
    assert capsys.readouterr().err == "evaluate: --device cuda: torch sees no GPU\n"


def test_nothing_is_drawn_among_the_data(colours, capsys):
    data, out = colours
    for path in (next(data.glob("*/*")), data / "new.png"):
        before = path.read_bytes() if path.exists() else None
        assert main(["evaluate", str(out), "--data", str(data), "--confusion", str(path)]) == 1
        assert "--confusion must not be in --data" in capsys.readouterr().err
        assert before == (path.read_bytes() if path.exists() else None)


# Exported.


def test_onnx_runtime_gives_the_same_answers(colours, tmp_path, capfd):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    data, out = colours
    assert main(["export", str(out), "--to", "onnx", "--out", str(tmp_path / "m.onnx")]) == 0
    told = capfd.readouterr()
    assert "in ONNX Runtime" in told.out and not told.err
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    assert session.get_modelmeta().custom_metadata_map["classes"] == '["blue", "green", "red"]'
    network, files = trained.load(out), sorted(data.glob("*/1*"))
    pixels = torch.stack([pictures.picture(path, 32)[2:-2, 2:-2].permute(2, 0, 1).float() for path in files])
    (answers,) = session.run(None, {"pixels": pixels.numpy()})
    expected = torch.stack([network.answers(path) for path in files])
    torch.testing.assert_close(torch.from_numpy(answers).double(), expected, rtol=1e-4, atol=1e-5)


def test_pt2_and_safetensors_give_the_same_answers(colours, tmp_path, capsys):
    data, out = colours
    path = next(data.glob("*/*"))
    expected = trained.load(out).answers(path)
    assert main(["export", str(out), "--to", "pt2", "--out", str(tmp_path / "m.pt2")]) == 0
    program = torch.export.load(tmp_path / "m.pt2").module()
    pixels = pictures.picture(path, 32)[None, 2:-2, 2:-2].permute(0, 3, 1, 2).float()
    torch.testing.assert_close(program(pixels)[0].double(), expected, rtol=1e-4, atol=1e-5)
    assert main(["export", str(out), "--to", "safetensors", "--out", str(tmp_path / "m.safetensors")]) == 0
    assert torch.equal(trained.load(tmp_path / "m.safetensors").answers(path), expected)


def test_an_export_that_answers_otherwise_is_not_written(colours, tmp_path, capsys, monkeypatch):
    from fastcnn.training import export

    monkeypatch.setattr(export, "_pt2", lambda *_: (b"x", lambda x: torch.zeros(1), "a runtime"))
    assert main(["export", str(colours[1]), "--to", "pt2", "--out", str(tmp_path / "m.pt2")]) == 1
    assert "a runtime answers otherwise: probabilities differ by" in capsys.readouterr().err
    assert not (tmp_path / "m.pt2").exists()


@pytest.mark.parametrize("command", ["predict", "evaluate", "export"])
def test_nothing_is_written_over_what_is_read(command, colours, capsys):
    data, out = colours
    file, picture = out / "model.safetensors", next(data.glob("*/*"))
    before = file.read_bytes()
    options = {
        "predict": [str(picture), "--sheet", str(picture)],
        "evaluate": ["--data", str(data), "--confusion", str(file)],
        "export": ["--to", "pt2", "--out", str(file)],
    }
    assert main([command, str(file), *options[command]]) == 1
    assert "must be another file than what is read, but got" in capsys.readouterr().err
    assert file.read_bytes() == before


# Trained further.


@pytest.mark.parametrize("keep", ["best", "last", "all"])
def test_the_weights_that_are_asked_for_are_kept(keep, mnist, tmp_path):
    assert train(mnist, tmp_path, "--epochs", "5", "--rate", "0.01", "--keep", keep) == 0
    errors = [float(row["error"]) for row in log_of(tmp_path)]
    found = {path.name for path in tmp_path.glob("*.safetensors")}
    every = {f"epoch-{epoch:03}.safetensors" for epoch in range(1, 6)}
    more = {"last": set(), "best": {"best.safetensors"}, "all": {"best.safetensors", *every}}
    assert found == {"model.safetensors", *more[keep]}
    if keep == "all":
        best = f"epoch-{errors.index(min(errors)) + 1:03}.safetensors"
        for a, b in ((best, "best.safetensors"), ("epoch-005.safetensors", "model.safetensors")):
            a, b = load_file(tmp_path / a), load_file(tmp_path / b)
            assert all(torch.equal(a[name], b[name]) for name in a)


def test_weights_of_other_classes_are_a_start_with_a_new_last_layer(colours, tmp_path, capsys):
    _, out = colours
    data = write_pictures(tmp_path / "data", 10, ("blue", "green", "red", "white"))
    weights = ["--weights", str(out / "model.safetensors"), "--freeze", "features"]
    options = ["--model", "lenet5", "--size", "28", "--epochs", "1", "--rate", "0.001"]
    capsys.readouterr()
    assert train(data, tmp_path / "run", *options, *weights) == 0
    said = capsys.readouterr().out
    (layer,) = re.findall(r"model.safetensors: of 3 classes; (\S+) is new, for 4\n", said)
    before, after = weights_of(out), weights_of(tmp_path / "run")
    assert before[f"{layer}.weight"].shape[0] == 3 and after[f"{layer}.weight"].shape[0] == 4
    for name in before:
        if name.startswith("features"):
            assert torch.equal(before[name], after[name]), name
        elif not name.startswith(layer):
            assert not torch.equal(before[name], after[name]), name
            torch.testing.assert_close(before[name], after[name], rtol=0, atol=0.05)


def test_frozen_batch_norms_keep_their_statistics(mnist, tmp_path):
    model = models.alexnet("2012", num_classes=3, norm="batch")
    from fastcnn.training.loop import Training

    frozen = [m for m in model.features.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    plan = type("Plan", (), {"frozen": ("features",)})
    training = type("T", (), {"model": model, "plan": plan})()
    Training._to_training(training)
    assert frozen and not any(m.training for m in frozen)
    assert model.classifier.training


def test_weights_that_fit_but_for_more_than_the_last_layer_are_refused(colours, tmp_path, capsys):
    data, out = colours
    options = ["--model", "lenet5", "--variant", "caffe", "--size", "28"]
    assert train(data, tmp_path / "run", *options, "--weights", str(out / "model.safetensors")) == 1
    assert "does not fit: " in capsys.readouterr().err
