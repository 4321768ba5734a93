"""The ops in compiled and exported graphs."""

from unittest import mock

import pytest
import torch
from torch import nn
from torch._inductor import config as inductor
from torch._inductor import graph as graphs

import fastcnn
from fastcnn import LRN, MaxPool
from fastcnn import functional as F
from fastcnn.testing import assert_close

pytestmark = pytest.mark.usefixtures("kernels_of_ours")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = fastcnn.nn.ConvBlock2d(3, 8, 3, lrn=LRN(), pool=MaxPool(3, 2))
        self.norm = fastcnn.nn.LocalResponseNorm(5)
        self.pool = fastcnn.nn.MaxPool2d(3, 2, 1)

    def forward(self, x):
        return self.pool(self.norm(self.block(x)).relu())


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_compile_without_a_graph_break(format):
    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 3, 16, 16).contiguous(memory_format=format)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), net(x))
    grads = []
    for model in (net, compiled):
        net.zero_grad()
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        assert_close(a, b)


def test_compile_with_inductor_and_any_batch():
    net = Net().eval()
    compiled = torch.compile(net, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch in (2, 5):
            x = torch.randn(batch, 3, 16, 16)
            assert_close(compiled(x), net(x))


def test_gradients_with_inductor():
    """Of torch's own pooling before dense layers it loses them: pytorch/pytorch#185509."""
    torch.manual_seed(0)
    block = fastcnn.nn.ConvBlock2d(3, 16, 3, padding=1, pool=MaxPool(3, 2))
    net = nn.Sequential(
        block, nn.Flatten(), nn.Linear(16 * 9 * 9, 64), *(nn.Linear(64, 64) for _ in range(3))
    )
    x, parameters = torch.randn(4, 3, 19, 19), list(net.parameters())
    expected, found = (
        torch.autograd.grad(model(x).square().sum(), parameters) for model in (net, torch.compile(net))
    )
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


def test_inductor_takes_our_outputs_as_aligned():
    """So that on a GPU, where inputs are aligned, the code it makes behind them loads 16 bytes at once."""
    unaligned = []
    codegen = graphs.GraphLowering.codegen

    def noted(graph):
        unaligned.append(set(graph.unaligned_buffers))
        return codegen(graph)

    on_gpu = mock.patch.object(graphs, "should_assume_input_aligned", lambda x: True)
    uncached = inductor.patch(force_disable_caches=True)
    with mock.patch.object(graphs.GraphLowering, "codegen", noted), on_gpu, uncached, torch.no_grad():
        torch.compile(lambda x: F.epilogue(x, pool=MaxPool(2)) + 1)(torch.randn(2, 8, 16, 16))
    assert unaligned == [set()]


def test_export_keeps_one_node_for_each_block():
    net = Net()
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert targets.count("fastcnn.conv2d_block.default") == 1
    assert targets.count("fastcnn.epilogue.default") == 2
    x = torch.randn(5, 3, 16, 16)
    assert_close(program.module()(x), net(x))
    assert_close(program.run_decompositions().module()(x), net(x))


def test_a_recomputed_block_compiles():
    block = fastcnn.nn.ConvBlock2d(3, 8, 3, lrn=LRN(), pool=MaxPool(3, 2), recompute=True)
    x = torch.randn(2, 3, 16, 16)
    torch.compile(block, fullgraph=True, backend="aot_eager")(x).sum().backward()
    found = block.weight.grad.clone()
    block.zero_grad()
    block(x).sum().backward()
    assert_close(found, block.weight.grad)
