"""Keeps nothing alive that a module remembers, gives the same bits, and serves threads at once."""

import gc
import threading
import tracemalloc
import weakref

import pytest
import torch
from prepared import NETS, SUBJECTS, alike, conv, convs, dense, pair, reset, same, shifted, warm
from torch import nn
from torch.overrides import TorchFunctionMode

import fastcnn
from fastcnn import MaxPool, models

pytestmark = pytest.mark.usefixtures("one_thread", "few_objects")


class FunctionMode(TorchFunctionMode):
    """Triples what a dense layer gives."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return result * 3 if function is nn.functional.linear else result


@pytest.mark.parametrize("name", SUBJECTS)
def test_outputs_are_new_tensors(name):
    ours, plain, x = pair(name)
    before = x.clone()
    with torch.no_grad():
        outputs = [ours(x) for _ in range(5)]
        addresses = {t.untyped_storage().data_ptr() for t in (x, *ours.parameters(), *outputs)}
        assert len(addresses) == 1 + len(list(ours.parameters())) + len(outputs)
        kept = outputs[0].clone()
        outputs[1].fill_(7)
        ours(x + 1)
        assert torch.equal(ours(x), kept)
        assert torch.equal(outputs[0], kept)
    assert torch.equal(x, before)
    assert all(t._base is None for t in outputs)
    same(ours, plain, x)


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_module_and_its_tensors_are_freed(name):
    ours, _, x = pair(name)
    with torch.no_grad():
        y = ours(x)
        refs = {"output": weakref.ref(y)}
        del y
        assert refs["output"]() is None
    refs = {"input": weakref.ref(x)}
    given = x.clone()
    del x
    assert refs["input"]() is None
    old = []
    for layer in (conv, dense) if name in NETS else ():
        old.append(weakref.ref(layer(ours).weight))
        layer(ours).weight = nn.Parameter(layer(ours).weight.detach().clone())
        with torch.no_grad():
            ours(given), ours(given)
    gc.collect()
    assert not any(ref() is not None for ref in old)
    refs = [weakref.ref(t) for t in (ours, *ours.modules(), *ours.parameters())]
    del ours
    gc.collect()
    assert not any(ref() is not None for ref in refs)


@pytest.mark.parametrize("name", ["adaptive", "block", "pool", "lrn"])
def test_many_shapes_take_no_more_memory(name):
    ours, _, _ = pair(name)
    channels = SUBJECTS[name].shape[1]

    def visit(rows):
        for h in rows:
            for w in range(16, 32):
                ours(torch.zeros(1, channels, h, w))
        gc.collect()
        return len(gc.get_objects()), tracemalloc.get_traced_memory()[0]

    with torch.no_grad():
        visit(range(16, 32))
        tracemalloc.start()
        try:
            objects, memory = visit(range(16, 18))
            objects_then, memory_then = visit(range(18, 64))
        finally:
            tracemalloc.stop()
    assert objects_then - objects < 200
    assert memory_then - memory < 50_000


def test_another_module_at_the_same_address():
    torch.default_generator.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    block = fastcnn.nn.ConvBlock2d(4, 6, 3, pool=MaxPool(2)).eval()
    for _ in range(5):
        warm(block, x)
        address = id(block)
        del block
        # Python gives an address that is free to one of the next objects of the same size.
        made = [fastcnn.nn.ConvBlock2d.__new__(fastcnn.nn.ConvBlock2d)]
        while id(made[-1]) != address and len(made) < 1_000_000:
            made.append(fastcnn.nn.ConvBlock2d.__new__(fastcnn.nn.ConvBlock2d))
        block = made.pop()
        assert id(block) == address
        block.__init__(4, 6, 3, pool=MaxPool(2))
        block.eval()
        with torch.no_grad():
            plain = nn.functional.conv2d(x, block.weight, block.bias).relu()
            torch.testing.assert_close(block(x), nn.functional.max_pool2d(plain, 2))


# Bits.


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_same_bits_again_and_on_any_number_of_threads(name):
    ours, _, x = pair(name)
    x = torch.cat([x] * 10)
    with torch.no_grad():
        expected = ours(x)
        for threads in (2, 1, 3):
            with reset(torch.get_num_threads, torch.set_num_threads, threads):
                assert torch.equal(ours(x), expected)
                assert torch.equal(ours(x), expected)
        assert torch.equal(ours(shifted(x)), expected)


@pytest.mark.parametrize("name", [
    pytest.param("caffe", marks=pytest.mark.xfail(
        reason="torch's convolution and matmul sum in an order that depends on the batch", strict=False
    )),
    *(name for name in SUBJECTS if name != "caffe"),
])  # fmt: skip
def test_the_same_bits_alone_and_in_a_batch(name):
    ours, _, x = pair(name)
    with torch.no_grad():
        batch = ours(x)
        assert torch.equal(batch, torch.cat([ours(image[None]) for image in x]))
        assert torch.equal(batch[:2], ours(x[:2]))


# Threads.


def at_once(*functions):
    """Runs each function in a thread of its own, from the same moment; raises what one raised."""
    barrier, errors = threading.Barrier(len(functions)), []

    def run(function):
        try:
            barrier.wait()
            function()
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    if errors:
        raise errors[0]


@pytest.mark.parametrize("name", NETS)
def test_threads_call_while_weights_change_between_phases(name):
    ours, plain, x = pair(name)
    inputs = [x, x[:1], torch.cat([x, -x]), x.contiguous(memory_format=torch.channels_last)]
    phases, callers = 6, len(inputs)
    barrier = threading.Barrier(callers + 1, timeout=60)
    outputs = [[None] * callers for _ in range(phases)]
    expected = []

    def caller(i):
        def run():
            with torch.no_grad():
                for phase in range(phases):
                    barrier.wait()
                    for _ in range(5):
                        outputs[phase][i] = ours(inputs[i])
                    barrier.wait()

        return run

    def changer():
        with torch.no_grad():
            for phase in range(phases):
                expected.append([plain(t) for t in inputs])
                barrier.wait()
                barrier.wait()
                for m in (ours, plain):
                    if phase % 2:
                        conv(m).weight = nn.Parameter(conv(m).weight * -1.5)
                    else:
                        conv(m).weight.data.mul_(-1.5)
                        convs(m)[-1].bias.data = convs(m)[-1].bias + 1

    at_once(changer, *map(caller, range(callers)))
    for found, right in zip(outputs, expected, strict=True):
        alike(found, right)


@pytest.mark.parametrize("name", NETS)
def test_threads_in_different_modes(name):
    ours, plain, x = pair(name)
    modes = [
        torch.no_grad,
        torch.enable_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: fastcnn.use_backend("reference"),
        FunctionMode,
    ]

    def calls(mode):
        def run():
            with mode():
                for _ in range(20):
                    found.append((mode, ours(x)))

        return run

    found = []
    at_once(*map(calls, modes))
    for mode, y in found:
        with mode():
            alike(y, plain(x))


def test_threads_make_their_first_calls_at_once():
    for seed in range(5):
        torch.default_generator.manual_seed(seed)
        ours, plain = (models.lenet5(fused=fused).eval() for fused in (True, False))
        ours.load_state_dict(plain.state_dict())
        xs, found = [torch.randn(n, 1, 28, 28) for n in (1, 2, 3, 4)], {}

        def run(x, ours=ours, found=found):
            with torch.no_grad():
                found[len(x)] = [ours(x) for _ in range(4)]

        at_once(*(lambda x=x, run=run: run(x) for x in xs))
        with torch.no_grad():
            for x in xs:
                alike(found[len(x)], [plain(x)] * 4)


# Training between evaluations.


@pytest.mark.parametrize("name", NETS)
def test_training_and_evaluation_in_turns(name):
    ours, plain, x = pair(name)
    for m in (ours, plain):
        m.double()
    x = x.double()
    optimizers = [torch.optim.SGD(m.parameters(), 0.05, momentum=0.9) for m in (ours, plain)]
    for _ in range(4):
        for m, optimizer in zip((ours, plain), optimizers, strict=True):
            m.train()
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
            m.eval()
        with torch.no_grad():
            alike([ours(x), ours(x)], [plain(x), plain(x)])
    same(ours, plain, x)
