"""The numbers and steps of both recipes, by what the model and the optimizer get.

The values are the paper's (Krizhevsky, Sutskever & Hinton 2012); those of "modern" are in ``train --help``.
Each recipe trains a small model on made-up images for as many epochs as it says.
"""

import functools
import itertools
import math

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from trainings import write_mnist, write_pictures

from fastcnn.cli import main
from fastcnn.data import Data, find
from fastcnn.data.held import Held
from fastcnn.training import Options, _plan
from fastcnn.training.loop import Training
from fastcnn.training.options import network
from fastcnn.training.processes import Processes
from fastcnn.training.recipe import RECIPES
from fastcnn.training.scores import Scores

pytestmark = pytest.mark.usefixtures("one_thread")


EPOCHS = {"alexnet2012": 90, "modern": 30}  # §5: "roughly 90"
SMOOTHING = {"alexnet2012": 0.0, "modern": 0.1}
DTYPE = {"alexnet2012": torch.float32, "modern": torch.bfloat16}
CROPS = {"alexnet2012": 10, "modern": 1}  # §4.1
HELP = {
    "alexnet2012": "the paper's: batch 128, 90 epochs, rate 0.01 (divided by 10 after 3 epochs without a "
    "lower test error, at most 3 times), momentum 0.9, weight decay 0.0005, float32",
    "modern": "batch 128, 30 epochs, AdamW, rate 0.001 (5 % warm-up, then a cosine to 0), weight decay 0.05, "
    "label smoothing 0.1, bfloat16",
}
IMAGES, CLASSES, SIDE, SIZE = 150, 6, 16, 14


class Spotted(Held):
    """Images of random colours, a pixel left of the middle the brightest; keeps the numbers asked for."""

    def __init__(self, count, channels, side):
        generator = torch.Generator().manual_seed(side)
        components = torch.tensor([[17.0, 17, 17], [13, -13, 0], [4, 4, -8]])
        noise = torch.randn(count, side, side, 3, generator=generator) @ components
        colours = torch.tensor([70, 90, 110]) + noise
        self.pixels = colours.clamp(0, 200).byte().permute(0, 3, 1, 2)[:, :channels].contiguous()
        self.pixels[:, :, side // 2, side // 4] = 255
        self.asked = []
        super().__init__(
            self.pixels.permute(0, 2, 3, 1), torch.randint(CLASSES, (count,), generator=generator)
        )

    def __getitems__(self, numbers):
        self.asked += numbers
        return super().__getitems__(numbers)


def data_of(channels=3, side=SIDE, size=SIZE, count=IMAGES):
    train, test = Spotted(count, channels, side), Spotted(20, channels, side)
    return Data(train, test, tuple("abcdef"), channels, side, size, mirrored=channels == 3)


class Probe(nn.Module):
    """Scores an image's first pixel; keeps inputs and scores, of training (True) and of testing (False)."""

    def __init__(self, channels):
        super().__init__()
        self.dense = nn.Linear(channels, CLASSES)
        self.inputs, self.scores = {True: [], False: []}, {True: [], False: []}

    def forward(self, x):
        scores = self.dense(x[:, :, 0, 0] / 8)
        self.inputs[self.training].append(x.detach().clone())
        self.scores[self.training].append(scores.detach())
        return scores


class Watched(Training):
    """A recipe's training of a :class:`Probe`; keeps losses, and what the optimizer's steps begin with."""

    def __init__(self, recipe, data, out, **options):
        torch.manual_seed(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fastcnn.training.find", lambda *_: data)
            patch.setattr("fastcnn.training.network", lambda *_: (Probe(data.channels), []))
            plan = _plan(Options("made up", out, recipe=recipe, workers=0, **options), torch.device("cpu"))
        self.losses, self.updates = [], []
        plan = plan._replace(loss=functools.partial(self._watched, plan.loss))
        super().__init__(plan, Processes(0, 1, torch.device("cpu")), pytest.fail)
        self.optimizer.register_step_pre_hook(self._before)
        plan.model.inputs[False], plan.model.scores[False] = [], []  # _plan tries the model
        data.train.asked.clear()  # the mean is taken of all

    def _watched(self, loss, scores, labels):
        value = loss(scores, labels)
        self.losses.append((scores.detach().double(), labels, value.item()))
        return value

    def _before(self, optimizer, *_):
        weights = [p.detach().clone() for p in self.model.parameters()]
        gradients = [p.grad.clone() for p in self.model.parameters()]
        self.updates.append((float(optimizer.param_groups[0]["lr"]), weights, gradients))

    def finished(self):
        list(self.run())
        return self


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns a recipe's training, finished."""
    return functools.cache(lambda name: Watched(name, data_of(), tmp_path_factory.mktemp(name)).finished())


@pytest.fixture(params=EPOCHS)
def recipe(request):
    return request.param


def kinds(images, side=SIDE):
    """Reads from the spot which crops (N, C, S, S) are: row, column and mirrored or not, (N, 3)."""
    size = images.shape[-1]
    spots = images.sum(1).flatten(1).argmax(1)
    rows, columns = spots // size, spots % size
    mirrored = columns > size // 2
    columns = torch.where(mirrored, size - 1 - columns, columns)
    return torch.stack([side // 2 - rows, side // 4 - columns, mirrored], 1)


def pixels_of(run):
    return run.plan.data.train.pixels.double().transpose(0, 1).flatten(1)


def scaled(run, recipe, images):
    """Returns images less the mean by channel (§2: no more than that); in modern, over the deviation."""
    mean, std = (x.view(-1, 1, 1) for x in (pixels_of(run).mean(1), pixels_of(run).std(1, correction=0)))
    return (images - mean) / (std if recipe == "modern" else 1)


def shifts(run, recipe):
    """Returns how far an input's colour (N, 3) is from its image's; all else must be as in a crop of that."""
    inputs, data, crops = torch.cat(run.model.inputs[True]), run.plan.data.train, []
    for number, (row, column, mirrored) in zip(data.asked, kinds(inputs).tolist(), strict=True):
        crop = data.pixels[number, :, row : row + SIZE, column : column + SIZE]
        crops.append(crop.flip(-1) if mirrored else crop)
    rest = inputs - scaled(run, recipe, torch.stack(crops))
    shifts = rest.mean((2, 3), keepdim=True)
    assert (rest - shifts).abs().max() < 1e-3
    return shifts[:, :, 0, 0]


def test_batches_have_128_images_and_an_epoch_each_image_once_in_a_new_order(whole, recipe):
    """§5."""
    run = whole(recipe)
    assert [len(x) for x in run.model.inputs[True]] == [128, IMAGES - 128] * EPOCHS[recipe]
    epochs = list(zip(*[iter(run.plan.data.train.asked)] * IMAGES, strict=True))
    assert all(sorted(epoch) == list(range(IMAGES)) for epoch in epochs)
    assert len({*epochs, tuple(range(IMAGES))}) == EPOCHS[recipe] + 1


@pytest.mark.parametrize("size", [(640, 320), (100, 200)], ids=["wide", "high"])
def test_a_picture_is_scaled_to_256_by_its_shorter_side_and_cut_to_its_middle(size, tmp_path):
    """§2; here to a green square in red."""
    picture, short = Image.new("RGB", size, "red"), min(size)
    picture.paste((0, 200, 0), tuple((n + sign * short) // 2 for sign in (-1, 1) for n in size))
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in "012":
            picture.save(tmp_path / name / f"{i}.png")
    images = find(str(tmp_path), None).train.__getitems__([0, 1]).images
    assert images.shape == (2, 256, 256, 3)
    assert (images[:, 2:-2, 2:-2] == torch.tensor([0, 200, 0])).all()


def test_a_crop_is_of_a_random_place_and_mirrored_or_not(whole, recipe):
    """§4.1: each of three rows, three columns and two directions as likely, for each image anew."""
    steps = [kinds(x) for x in whole(recipe).model.inputs[True][::2]]
    assert all(len(step.unique(dim=0)) > 12 for step in steps)
    assert len({str(step.tolist()) for step in steps}) == len(steps)
    drawn, counts = torch.cat(steps).unique(dim=0, return_counts=True)
    assert drawn.tolist() == [list(kind) for kind in itertools.product(range(3), range(3), range(2))]
    assert (counts / counts.sum() * 18).tolist() == pytest.approx([1] * 18, abs=0.25)


def test_crops_of_224_are_drawn_from_all_of_256(recipe, tmp_path):
    """§4.1."""
    found = find(str(write_pictures(tmp_path / "data", 2)), None)
    assert (found.side, found.size, found.mirrored) == (256, 224, True)
    run = Watched(recipe, data_of(3, 256, 224, count=128), tmp_path / "run", epochs=2).finished()
    assert [x.shape for x in run.model.inputs[True]] == [(128, 3, 224, 224)] * 2
    rows, columns, _ = torch.cat([kinds(x, side=256) for x in run.model.inputs[True]]).T.tolist()
    assert set(rows) == set(columns) == set(range(33))


def test_digits_are_moved_and_never_mirrored(recipe, tmp_path):
    assert not find(str(write_mnist(tmp_path / "data", 8)), None).mirrored
    run = Watched(recipe, data_of(channels=1), tmp_path / "run", epochs=2).finished()
    drawn = kinds(torch.cat(run.model.inputs[True])).unique(dim=0)
    assert drawn.tolist() == [[row, column, 0] for row in range(3) for column in range(3)]


def test_the_papers_colours_move_by_a_tenth_along_each_principal_component(whole):
    """§4.1: N(0, 0.1) times the square root of the eigenvalue, once an image. In modern none moves."""
    run = whole("alexnet2012")
    variances, components = torch.linalg.eigh(pixels_of(run).cov(correction=0))
    assert variances[0] > 50 and (variances[1:] > 2 * variances[:-1]).all()
    draws = shifts(run, "alexnet2012").double() @ components / variances.sqrt()
    assert len(draws.round(decimals=4).unique(dim=0)) > 0.9 * len(draws)
    assert draws.std(0).tolist() == pytest.approx([0.1] * 3, rel=0.03)
    assert draws.mean(0).tolist() == pytest.approx([0] * 3, abs=0.004)
    assert (draws.abs() < 0.1).double().mean(0).tolist() == pytest.approx([0.683] * 3, abs=0.02)
    assert draws.T.corrcoef().fill_diagonal_(0).abs().max() < 0.04
    assert shifts(whole("modern"), "modern").abs().max() < 1e-4


def test_a_loss_is_a_batchs_mean_and_labels_are_smoothed_in_modern_alone(whole, recipe):
    run = whole(recipe)
    for scores, labels, value in run.losses:
        expected = F.cross_entropy(scores, labels, label_smoothing=SMOOTHING[recipe])
        assert value == pytest.approx(expected.item(), rel=1e-5)
    (_, _, first), (_, _, second) = run.losses[-2:]
    assert run.history[-1].loss == pytest.approx((128 * first + 22 * second) / IMAGES, rel=1e-5)


@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_are_those_of_the_mean_over_the_whole_batch(parts, recipe, tmp_path):
    run = Watched(recipe, data_of(), tmp_path, epochs=1, accumulate=parts, dtype="float32").finished()
    assert len(run.losses) == 2 * parts
    for i, (_, _, (_, gradient)) in enumerate(run.updates):
        scores, labels, _ = zip(*run.losses[i * parts : (i + 1) * parts], strict=True)
        scores, labels = torch.cat(scores).requires_grad_(), torch.cat(labels)
        F.cross_entropy(scores, labels, label_smoothing=SMOOTHING[recipe]).backward()
        torch.testing.assert_close(gradient, scores.grad.sum(0).float())  # the bias's


def test_products_have_the_recipes_dtype_and_weights_float32(whole, recipe):
    model = whole(recipe).model
    assert {scores.dtype for kept in model.scores.values() for scores in kept} == {DTYPE[recipe]}
    assert {x.dtype for x in [*model.parameters(), *model.inputs[True]]} == {torch.float32}


def test_the_papers_weights_move_by_its_rule(whole):
    """§5: v <- 0.9 v - 0.0005 lr w - lr dL/dw; w <- w + v."""
    updates = whole("alexnet2012").updates
    vs = [torch.zeros_like(w) for w in updates[0][1]]
    for (rate, weights, gradients), (_, after, _) in itertools.pairwise(updates):
        before = zip(vs, weights, gradients, strict=True)
        vs = [0.9 * v - 0.0005 * rate * w - rate * gradient for v, w, gradient in before]
        moved = [w + v for w, v in zip(weights, vs, strict=True)]
        torch.testing.assert_close(after, moved, rtol=1e-6, atol=1e-7)


def test_modern_weights_move_by_adamw(whole):
    updates = whole("modern").updates
    weights = [w.clone() for w in updates[0][1]]
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)
    for (optimizer.param_groups[0]["lr"], _, gradients), (_, after, _) in itertools.pairwise(updates):
        weights[0].grad, weights[1].grad = gradients
        optimizer.step()
        torch.testing.assert_close(after, weights, rtol=1e-5, atol=1e-6)


def test_the_papers_rate_is_divided_by_10_where_the_error_stops_falling(tmp_path):
    """§5: three times, by hand; here after three epochs without a lower error."""
    run = Watched("alexnet2012", data_of(), tmp_path)
    errors = iter([0.9, 0.8, 0.7, 0.7, 0.8, 0.7, *[0.6] * 84])
    run.test = lambda: Scores(1.0, next(errors), None)
    expected = [0.01] * 6 + [0.001] * 4 + [0.0001] * 3 + [0.00001] * 77
    assert [rate for rate, _, _ in run.finished().updates[::2]] == pytest.approx(expected)


def test_the_modern_rate_rises_for_a_twentieth_of_the_steps_and_falls_as_a_cosine(whole):
    falling = [0.0005 * (1 + math.cos(math.pi * i / 57)) for i in range(57)]
    rates = [rate for rate, _, _ in whole("modern").updates]
    assert rates == pytest.approx([0.001 / 3, 0.002 / 3, 0.001, *falling]) and rates[-1] < 1e-6


@pytest.mark.parametrize("mirrored", [True, False], ids=["pictures", "digits"])
def test_an_epochs_test_is_of_the_recipes_crops(mirrored, whole, recipe, tmp_path):
    """§4.1: corners, middle and their mirror images, which a digit has not; in modern, the middle."""
    run = whole(recipe) if mirrored else Watched(recipe, data_of(1), tmp_path, epochs=1).finished()
    images = scaled(run, recipe, run.plan.data.test.pixels).float()
    places = [(1, 1)] if recipe == "modern" else [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
    crops = [images[..., row : row + SIZE, column : column + SIZE] for row, column in places]
    if mirrored and recipe == "alexnet2012":
        crops += [crop.flip(-1) for crop in crops]
    inputs = run.model.inputs[False]
    assert len(inputs) == len(crops) * len(run.history)
    for crop in crops:
        assert sum(torch.allclose(x, crop, atol=1e-4) for x in inputs[-len(crops) :]) == 1


def test_probabilities_are_averaged_over_the_crops(whole, recipe):
    """§4.1: the softmax's. Errors and test loss follow from their mean; no label is smoothed."""
    run = whole(recipe)
    scores = torch.stack(run.model.scores[False][-CROPS[recipe] :]).double()
    average, labels = scores.softmax(2).mean(0), run.plan.data.test.labels
    ranks = (average.argsort(1, descending=True) == labels[:, None]).double().argmax(1)
    last = run.history[-1]
    assert last.test_loss == pytest.approx(-average[range(20), labels].log().mean().item(), rel=1e-9)
    assert (last.error, last.error5) == pytest.approx([sum(ranks >= n).item() / 20 for n in (1, 5)])


def alexnet(recipe):
    """Returns the network as a training begins with it, and its layers by name."""
    net, _ = network(Options("made up", recipe=recipe), RECIPES[recipe], data_of())
    return net, {name.split(".")[1]: layer for name, layer in net.named_modules() if hasattr(layer, "weight")}


def test_the_papers_weights_begin_normal_and_some_biases_at_1():
    """§5: N(0, 0.01); 1 in the second, fourth and fifth convolution and the hidden dense layers."""
    biases = {"conv1": 0, "conv2": 1, "conv3": 0, "conv4": 1, "conv5": 1, "fc6": 1, "fc7": 1, "fc8": 0}
    _, layers = alexnet("alexnet2012")
    assert layers.keys() == biases.keys()
    for name, layer in layers.items():
        assert (layer.bias == biases[name]).all()
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert abs(layer.weight.mean().item()) < 3e-4
        assert (layer.weight.abs() < 0.01).double().mean().item() == pytest.approx(0.683, abs=0.02)


def test_modern_weights_begin_as_torchs_and_dropout_is_a_half():
    """torch: uniform, up to one over the square root of inputs. §4.2: the first two dense layers' outputs."""
    net, layers = alexnet("modern")
    for layer in layers.values():
        bound = layer.weight[0].numel() ** -0.5
        assert 0.99 * bound < layer.weight.abs().max().item() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert layer.bias.abs().max() <= bound and len(layer.bias.unique()) > 1
    given = {}
    for name in ("fc6", "fc7", "fc8"):
        layers[name].register_forward_pre_hook(lambda _, x, name=name: given.update({name: x[0].clone()}))
    for training in (False, True):
        net.classifier.train(training)(torch.ones(8, 256 * 6 * 6))
        assert (given["fc6"] == 1).all()
        for before, after in (("fc6", "fc7"), ("fc7", "fc8")):
            made, kept = layers[before](given[before]).relu(), given[after] != 0
            share = 0.5 if training else 1
            assert kept[made > 0].double().mean().item() == pytest.approx(share, abs=0.02)
            torch.testing.assert_close(given[after][kept], made[kept] / share)


def test_the_help_tells_the_numbers(recipe, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "9999")  # no word is broken
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert f"{recipe}: {HELP[recipe]}" in " ".join(capsys.readouterr().out.split())


def test_options_change_a_recipes_numbers(recipe, tmp_path):
    options = {"weight_decay": 0.25, "smoothing": 0.5, "warm_up": 0.5, "batch": 64, "scale_rate": True}
    run = Watched(recipe, data_of(), tmp_path, epochs=2, **options).finished()  # of 3 steps each
    assert {group["weight_decay"] for group in run.optimizer.param_groups} == {0.25}
    scores, labels, value = run.losses[0]
    assert value == pytest.approx(F.cross_entropy(scores, labels, label_smoothing=0.5).item(), rel=1e-5)
    full = {"alexnet2012": 0.005, "modern": 0.0005}[recipe]  # Goyal et al. 2017: in proportion to the batch
    rates = [rate / full for rate, _, _ in run.updates]
    assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert rates[4:] == pytest.approx([1, 1] if recipe == "alexnet2012" else [0.75, 0.25])


@pytest.mark.parametrize("option", ["--warm-up", "--weight-decay", "--smoothing"])
@pytest.mark.parametrize("value", ["1", "-0.1", "nan", "x"])
def test_a_share_is_from_0_to_below_1(option, value, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--data", "digits", f"{option}={value}"])
    assert f"{option}: must be a number from 0 to below 1, but got {value!r}" in capsys.readouterr().err
