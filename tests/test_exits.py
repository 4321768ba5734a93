"""A fused model in what people do with models: compile, export, share out, copy, differentiate."""

import copy
import io
import pickle
import time
from itertools import product

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, grad, vmap
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from zoo import ENTRIES

import fastcnn
from fastcnn import LRN, MaxPool
from fastcnn.fusion.fused import fusions

pytestmark = pytest.mark.usefixtures("one_thread")

BY_NAME = {entry.name: entry for entry in ENTRIES}
NETS = ["AlexNet", "CaffeNet", "Functional", "ResNet"]


def assert_close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=[name for name in NETS if name in BY_NAME])
def net(request):
    """A fused model in evaluation, an input, and the result before."""
    return made(request.param)


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()


def made(name="AlexNet", **options):
    torch.manual_seed(0)
    model, x = BY_NAME[name].build().eval(), torch.randn(BY_NAME[name].size)
    with torch.no_grad():
        expected = model(x)
    return fastcnn.fuse(model, **options), x, expected


def test_compile_without_a_graph_break(net):
    model, x, expected = net
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(x), expected)
    grads = []
    for run in (model, compiled):
        model.zero_grad()
        run(x).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, 1e-3)


def test_a_compiled_graph_has_blocks_and_no_guards():
    model, x, expected = made()
    targets = []

    def backend(graph, inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    with torch.no_grad():
        assert_close(torch.compile(model, fullgraph=True, backend=backend)(x), expected)
    assert targets.count("fastcnn.conv2d_block") == 5


@pytest.mark.parametrize("strict", [False, True])
def test_export_of_any_batch(net, strict):
    model, x, expected = net
    batch = {"x": {0: torch.export.Dim("batch", max=64)}}
    program = torch.export.export(model, (x,), dynamic_shapes=batch, strict=strict)
    assert any(str(node.target).startswith("fastcnn.") for node in program.graph.nodes)
    assert_close(program.module()(x), expected)
    assert_close(program.module()(x.repeat(3, 1, 1, 1)), expected.repeat(3, 1))


def test_compiled_ahead_of_time(tmp_path):
    model, x, expected = made()
    program = torch.export.export(model, (x,))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
    with torch.no_grad():
        assert_close(torch._inductor.aoti_load_package(package)(x), expected)


def test_autocast_and_memory_formats(net):
    model, x, expected = net
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert_close(model(x).float(), expected, 0.1)
    last = model.to(memory_format=torch.channels_last)
    assert_close(last(x.to(memory_format=torch.channels_last)), expected)
    assert_close(model.double()(x.double()), expected.double())


def test_copies_and_pickles_are_fused(net):
    model, x, expected = net
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    others = (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    )
    for other in others:
        assert type(other) is type(model)
        assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in model.parameters()}
        assert_close(other(x), expected)
        assert fusions(model)
        for ours, theirs in zip(fusions(model), fusions(other), strict=True):
            assert ours is not theirs
            assert ours.forwards[False].chains == theirs.forwards[False].chains
        fastcnn.unfuse(other)
        assert_close(other(x), expected)


def test_state_dicts_go_both_ways(net):
    model, x, expected = net
    plain = fastcnn.unfuse(copy.deepcopy(model))
    for p in plain.parameters():
        nn.init.zeros_(p)
    plain.load_state_dict(model.state_dict())
    assert_close(plain(x), expected)
    model.load_state_dict(plain.state_dict())
    assert_close(model(x), expected)


def test_function_transforms():
    model, x, expected = made()
    plain, parameters = fastcnn.unfuse(copy.deepcopy(model)), dict(model.named_parameters())
    grads = [
        grad(lambda p, m=m: functional_call(m, p, (x,)).square().sum())(parameters) for m in (model, plain)
    ]
    for name in parameters:
        assert_close(grads[0][name], grads[1][name], 1e-3)
    assert_close(vmap(lambda image: functional_call(model, parameters, (image[None],))[0])(x), expected)


def test_checkpointing(net):
    model, x, expected = net
    results = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        y = run(x)
        y.sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
    assert_close(results[1][0], expected)
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


def exported(model, x):
    """An ONNX model's operators, and what ONNX Runtime gives."""
    runtime = pytest.importorskip("onnxruntime")
    onnx, file = pytest.importorskip("onnx"), io.BytesIO()
    pytest.importorskip("onnxscript")
    torch.onnx.export(model, (x,), file, dynamo=True, verbose=False)
    nodes = onnx.load_from_string(file.getvalue()).graph.node
    assert {node.domain for node in nodes} == {""}
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return [node.op_type for node in nodes], torch.from_numpy(result)


def test_onnx_has_its_own_operators_for_a_fused_model():
    model, x, expected = made()
    operators, result = exported(model, x)
    assert operators[:8] == ["Conv", "Relu", "LRN", "MaxPool"] * 2
    assert_close(result, expected)


@pytest.mark.parametrize(("size", "groups", "order"), [*product((3, 4, 5), (1, 2), ("lrn_pool", "pool_lrn"))])
def test_onnx_of_every_window(size, groups, order):
    torch.manual_seed(0)
    lrn, pool = LRN(size, 0.5, 0.7, 1.5, groups), MaxPool(3, 2, 1, ceil_mode=True)
    block = fastcnn.nn.ConvBlock2d(3, 8, 3, lrn=lrn, pool=pool, order=order).eval()
    x = torch.randn(2, 3, 12, 13)
    operators, result = exported(block, x)
    assert ("LRN" in operators) == (size % 2 == 1)
    assert_close(result, block(x).detach())


def test_onnx_of_layers_and_functions():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.pool = fastcnn.nn.LocalResponseNorm(5, 0.1), fastcnn.nn.MaxPool2d(2)

        def forward(self, x):
            bias = torch.ones(6)
            return fastcnn.functional.epilogue(self.pool(self.norm(x)), bias, lrn=LRN(3, 0.1))

    x = torch.randn(2, 6, 8, 8)
    operators, result = exported(Net(), x)
    assert [name for name in operators if name in ("LRN", "MaxPool", "Relu")] == [
        "LRN",
        "MaxPool",
        "Relu",
        "LRN",
    ]
    assert_close(result, Net()(x))


def in_parallel(rank, meeting, wrap):
    """A training step of one of two processes on half of the batch, held against one on all of it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    try:
        model, x, _ = made()
        plain = fastcnn.unfuse(copy.deepcopy(model))
        x = torch.cat([x, -x])
        if wrap == "ddp":
            parallel = DistributedDataParallel(model)
        else:
            parallel = fully_shard(model, mesh=dist.init_device_mesh("cpu", (2,)))
        optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (parallel, plain)]
        for optimizer, m, images in ((optimizers[0], parallel, x.chunk(2)[rank]), (optimizers[1], plain, x)):
            for _ in range(2):
                optimizer.zero_grad()
                m(images).square().mean().backward()
                optimizer.step()
        for ours, theirs in zip(parallel.parameters(), plain.parameters(), strict=True):
            assert_close(ours.full_tensor() if wrap == "fsdp" else ours, theirs)
        dist.barrier()  # or one takes its connections down while the other still reads from them
    finally:
        time.sleep(0.3)  # see fastcnn/training/processes.py
        dist.destroy_process_group()


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_two_processes_train_as_one(wrap, tmp_path):
    mp.spawn(in_parallel, (tmp_path / "meeting", wrap), nprocs=2)
