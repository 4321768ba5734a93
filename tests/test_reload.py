"""Importing fastcnn again in one process, as IPython's autoreload does, or whoever empties sys.modules."""

import subprocess
import sys

USE = """
import gc, importlib, sys
import torch
import fastcnn

def use(fastcnn):
    torch.manual_seed(0)
    x, w = torch.randn(2, 4, 9, 9, requires_grad=True), torch.randn(8, 4, 3, 3, requires_grad=True)
    block = lambda x, w: fastcnn.functional.conv2d_block(x, w, lrn=fastcnn.LRN(3), pool=fastcnn.MaxPool(2))
    found = [fastcnn.functional.epilogue(x, lrn=fastcnn.LRN(3)), fastcnn.functional.max_pool2d(x, 2)]
    compiled = torch.compile(block, backend="aot_eager")
    for call in (block, torch.func.vmap(block, (None, 0)), compiled):
        y = call(x, w[None] if call not in (block, compiled) else w)
        found += [y, *torch.autograd.grad(y.square().sum(), [x, w])]
    with torch.autocast("cpu"):
        found += [block(x, w), compiled(x, w)]
    with torch.profiler.profile() as profile:
        found.append(block(x, w))
    assert any("fastcnn::conv2d_block_forward" in event.name for event in profile.events())
    model = fastcnn.models.lenet5().eval()
    model.load_state_dict({k: torch.ones_like(v) for k, v in model.state_dict().items()})
    with torch.no_grad():
        found += [model(torch.ones(2, 1, 28, 28)) for _ in range(2)]
    return found

def purge():
    for name in [n for n in sys.modules if n == "fastcnn" or n.startswith("fastcnn.")]:
        del sys.modules[name]
    return importlib.import_module("fastcnn")

first = use(fastcnn)
"""
AGAIN = """
def check(fastcnn):
    gc.collect()
    for a, b in zip(use(fastcnn), first, strict=True):
        assert torch.equal(a, b)

importlib.reload(fastcnn._ops)
check(importlib.reload(fastcnn))
check(purge())  # the old one is still here
fastcnn = purge()
fastcnn = purge()
check(fastcnn)
check(fastcnn)
"""


def test_all_works_after_another_import():
    program = [sys.executable, "-c", USE + AGAIN]
    result = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "previously registered" not in result.stderr
