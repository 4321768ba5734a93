"""Training as a GPU does it: no step waits for the device, and whole batches run as a graph.

On the CPU a double stands for the graph; what needs a GPU has not run on hardware yet.
"""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainings import train, weights_of, write_mnist, write_pictures

from fastcnn.backends import _direct
from fastcnn.training import Options, _plan, batches
from fastcnn.training.augment import Augment
from fastcnn.training.graph import Graph, capture, tuned
from fastcnn.training.loop import Training
from fastcnn.training.processes import Processes

pytestmark = pytest.mark.usefixtures("one_thread")


CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
RECIPES = [
    {"recipe": "modern", "dtype": "float32"},
    {"recipe": "modern", "dtype": "bfloat16", "accumulate": 3},
    {"recipe": "alexnet2012", "rate": 1e-5},
]


def name_of(recipe):
    return " ".join(str(value) for value in recipe.values())


@pytest.fixture
def pictures(tmp_path):
    """66 of them to train on: mirrored, recoloured, and in batches of 16 the last of which has 2."""
    return write_pictures(tmp_path / "data", 25)


def training_of(data, out, record=None, device=CPU, **options):
    """A training by one process that tells a list, :attr:`said`."""
    small = {"model": "lenet5", "model_options": {"dropout": 0.5}, "size": 28, "batch": 16, "epochs": 2}
    options = Options(data=str(data), out=out, workers=0, **(small | options))
    said = []
    training = Training(_plan(options, device), Processes(0, 1, device), said.append, record)
    training.said = said
    return training


def read(training):
    plan = training.plan
    return batches.training(plan.data.train, training.steps, 0, training.stop, training.processes, 0)


@pytest.fixture(autouse=True)
def crops_as_on_a_device(monkeypatch):
    """Not one by one, for which the CPU looks at their places."""
    monkeypatch.setattr(Augment, "_one_by_one", Augment._all_at_once)


# Without a look at the device.

WAITS = {
    torch.ops.aten._local_scalar_dense,
    torch.ops.aten.equal,
    torch.ops.aten.lift_fresh,  # of torch.tensor and new_tensor, whose copy to a device is waited for
    torch.ops.aten.masked_select,
    torch.ops.aten.nonzero,
}


def is_wait(call, args):
    """Whether the host would wait for a device: calls of WAITS, and an index that is a mask."""
    masks = args[1] if call.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_) else ()
    return call.overloadpacket in WAITS or any(x is not None and x.dtype == torch.bool for x in masks)


class NoWaits(TorchDispatchMode):
    """Refuses what would wait for a device."""

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        assert not is_wait(call, args), call
        return call(*args, **(kwargs or {}))


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("recipe", [*RECIPES, {"recipe": "modern", "dtype": "float16"}], ids=name_of)
def test_no_step_asks_for_a_value(recipe, skip_bad, pictures, tmp_path):
    training = training_of(pictures, tmp_path / "run", skip_bad=skip_bad, **recipe)
    for batch in read(training):
        with NoWaits():
            training._train(batch)
        training.step += 1


@pytest.mark.parametrize(
    "ask", [torch.Tensor.item, bool, torch.nonzero, lambda x: x[x > 0], lambda x: x.new_tensor(1)]
)
def test_a_wait_is_seen(ask):
    with NoWaits(), pytest.raises(AssertionError):
        ask(torch.ones(1))


@needs_gpu
@pytest.mark.parametrize("record", [None, capture], ids=["steps", "graph"])
@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_no_step_waits_for_the_gpu(recipe, record, pictures, tmp_path):
    device = torch.device("cuda", 0)
    with tuned(device):
        training = training_of(pictures, tmp_path / "run", record, device, **recipe)
        for batch in read(training):
            # The first five warm up, capture the graph, and run the last batch of an epoch.
            torch.cuda.set_sync_debug_mode(
                "error" if training.step >= training.steps.per_epoch else "default"
            )
            try:
                training._train(batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            training.step += 1
        assert training.said == []
        assert all(p.isfinite().all() for p in training.model.parameters())


# As a graph.


class Recorder(TorchDispatchMode):
    """A CUDA graph's double: keeps operations with their memory and numbers, and repeats them on those.

    As in a capture, nothing has run when it ends: values and the generator are put back.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.before = [], []

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if is_wait(call, args):
            raise RuntimeError(f"{call} is not permitted when stream is capturing")
        for place, about in enumerate(call._schema.arguments):
            value = args[place] if place < len(args) else kwargs.get(about.name)
            if about.alias_info is not None and about.alias_info.is_write:
                self.before += [(x, x.detach().clone()) for x in tree_leaves(value) if x is not None]
        result = call(*args, **kwargs)
        self.calls.append((call, args, kwargs, result))
        return result

    @torch.no_grad()
    def undo(self):
        for tensor, value in reversed(self.before):
            tensor.detach().copy_(value)
        self.before = []

    @torch.no_grad()
    def replay(self):
        for call, args, kwargs, result in self.calls:
            again = call(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.detach().copy_(new)


def record(work):
    """Stands for :func:`capture`."""
    recorder, state = Recorder(), torch.get_rng_state()
    with recorder:
        work()
    recorder.undo()
    torch.set_rng_state(state)
    return recorder.replay


class Counted:
    """:func:`record` or :func:`capture`, and how often."""

    def __init__(self, record=record):
        self.record, self.captures, self.replays = record, 0, 0

    def __call__(self, work):
        self.captures += 1
        replay = self.record(work)

        def counted():
            self.replays += 1
            replay()

        return counted


def refuse(work):
    raise RuntimeError("no graphs here")


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_a_graph_trains_to_the_same_bits(recipe, pictures, tmp_path, monkeypatch):
    """Three whole batches warm up, and of each epoch's five the last one is not whole."""
    # The recorder sees ops alone; a direct convolution's gradients, the CPU's, are no op.
    monkeypatch.setattr(_direct, "geometry", lambda *_, **__: None)
    counted = Counted()
    graphed = training_of(pictures, tmp_path / "graphed", counted, **recipe)
    eager = training_of(pictures, tmp_path / "eager", refuse, **recipe)
    for training in (graphed, eager):
        assert len(list(training.run())) == 12  # steps, and an epoch after five of them
    assert (counted.captures, counted.replays) == (1, 5)
    for a, b in zip(graphed.model.parameters(), eager.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(graphed.history, eager.history, strict=True):
        assert a._replace(images_per_second=0, seconds=0) == b._replace(images_per_second=0, seconds=0)
    assert graphed.said == []
    assert eager.said == ["steps run without a CUDA graph, because its capture failed: no graphs here"]


def test_a_graph_is_for_whole_batches_in_which_every_image_can_be_read(pictures, tmp_path):
    torn = pictures / "red" / "11.png"
    torn.write_bytes(b"")
    counted = Counted()
    training = training_of(pictures, tmp_path / "run", counted, epochs=4, skip_bad=True)
    list(training.run())
    number = training.plan.data.train.paths.index(torn)
    steps = [training.steps.numbers(step).tolist() for step in range(training.stop)]
    whole = sum(len(numbers) == 16 and number not in numbers for numbers in steps)
    assert whole < 16 and (counted.captures, counted.replays) == (1, whole - 3)


def test_a_graph_goes_on_from_a_checkpoint(pictures, tmp_path):
    whole = training_of(pictures, tmp_path / "whole", Counted())
    list(whole.run())
    stopped = training_of(pictures, tmp_path / "stopped", Counted())
    steps = stopped.run()
    while not stopped.history:
        next(steps)
    steps.close()
    resumed = training_of(pictures, tmp_path / "stopped", Counted(), resume=True)
    assert resumed.step == 5
    list(resumed.run())
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_float16_runs_without_a_graph(pictures, tmp_path):
    counted = Counted()
    training = training_of(pictures, tmp_path / "run", counted, dtype="float16")
    list(training.run())
    assert counted.captures == 0 and training.said == []


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def device(request):
    device = torch.device(request.param, 0 if request.param == "cuda" else None)
    with tuned(device):
        yield device


def graph_of(step, device, tell=pytest.fail):
    """And what counts its captures."""
    counted = Counted(capture if device.type == "cuda" else record)
    return Graph(step, device, counted, tell), counted


def on_host(values, device):
    return values.pin_memory() if device.type == "cuda" else values


def test_a_new_constant_is_captured_anew(device):
    total, factor = torch.zeros(2, device=device), [1.0]
    graph, counted = graph_of(lambda x: total.add_(x, alpha=factor[0]), device)
    expected = torch.zeros(2)
    for i in range(8):
        factor[0] = 1.0 if i < 6 else 10.0
        graph([on_host(torch.tensor([i, 1.0]), device)], constant=factor[0])
        expected += factor[0] * torch.tensor([i, 1.0])
    assert torch.equal(total.cpu(), expected)
    assert (counted.captures, counted.replays) == (2, 5)


def test_a_graph_draws_what_the_seed_says(device):
    ones, drawn = torch.ones(1000), torch.zeros(1000, device=device)
    graph, counted = graph_of(lambda x: drawn.copy_(F.dropout(x)), device)
    for seed in range(6):
        torch.manual_seed(seed)
        graph([on_host(ones, device)])
        torch.manual_seed(seed)
        assert torch.equal(drawn, F.dropout(ones.to(device)))
    assert (counted.captures, counted.replays) == (1, 3)


def test_a_step_that_asks_for_a_value_runs_without_a_graph(device):
    said, seen = [], []
    graph, counted = graph_of(lambda x: seen.append(F.dropout(x).sum().item()), device, said.append)
    for i in range(6):
        graph([on_host(torch.full((1000,), float(i)), device)])
    assert len(seen) == 6 and seen[0] == 0 and seen[5] > 0
    assert len(said) == 1 and "capturing" in said[0] and counted.captures == 1


# Backends.


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_backend_is_asked_for_by_name(backend, tmp_path):
    data = write_mnist(tmp_path / "data")
    assert train(data, tmp_path / "auto") == 0
    assert train(data, tmp_path / backend, "--backend", backend) == 0
    weights = weights_of(tmp_path / backend)
    for name, value in weights_of(tmp_path / "auto").items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)
    assert train(data, tmp_path / "auto", "--backend", backend, "--resume") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "cuda"], "backend 'cuda' can't run this: "),
        (["--backend", "cpu", "--plain"], "--backend cpu is for fused blocks: --plain has none"),
    ],
)
def test_a_backend_that_cannot_is_refused_at_once(options, message, tmp_path, capsys):
    data = write_mnist(tmp_path / "data")
    assert train(data, tmp_path / "run", *options, "--device", "cpu") == 1
    error = capsys.readouterr().err
    assert error.startswith("train: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
