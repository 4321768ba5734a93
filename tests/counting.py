"""Operations of torch and their logical bytes: the backend ``plain`` beside plain layers.

    python tests/counting.py    # prints the table

A view counts as nothing; any other operation as one, with the bytes of each tensor it takes or gives.
"""

from itertools import product

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastcnn import LRN, MaxPool
from fastcnn import functional as F
from fastcnn.backends import use_backend
from fastcnn.stages import ORDERS, Stages

SHAPE = (2, 8, 13, 13)


class Count(TorchDispatchMode):
    """Notes what runs inside of it, and counts its bytes."""

    def __init__(self):
        super().__init__()
        self.operations, self.bytes = [], 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if not operation.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
            self.operations.append(operation)
            self.bytes += sum(t.numel() * t.itemsize for t in tensors)
        return result


class InFloat32(nn.Module):
    """torch's LRN within each group, as one writes it for half precision, which overflows."""

    def __init__(self, lrn):
        super().__init__()
        self.groups, self.norm = lrn.groups, nn.LocalResponseNorm(lrn.size, lrn.alpha, lrn.beta, lrn.k)

    def forward(self, x):
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        y = self.norm(wide.reshape(-1, x.shape[1] // self.groups, *x.shape[2:]))
        return y.view(x.shape).to(x.dtype)


def plain_layers(stages):
    """The layers behind a convolution in plain torch, with the usual ReLU in place."""
    norm = [InFloat32(stages.lrn)] if stages.lrn else []
    pool = [nn.MaxPool2d(*stages.pool.pairs, ceil_mode=stages.pool.ceil_mode)] if stages.pool else []
    relu = [nn.ReLU(inplace=True)] if stages.relu else []
    return nn.Sequential(*relu, *(norm + pool if stages.order == "lrn_pool" else pool + norm))


def combinations():
    """Every combination of stages."""
    lrns = (None, LRN(5, 0.1, k=2.0), LRN(4, 0.1, k=2.0, groups=2))
    for relu, lrn, pool, order in product((True, False), lrns, (None, MaxPool(3, 2)), ORDERS):
        if (relu or lrn or pool) and (order == "lrn_pool" or (lrn and pool)):
            yield Stages(relu, lrn, pool, order)


def leaves(dtype):
    torch.manual_seed(0)
    shapes = (SHAPE, (16, 8, 3, 3), (16,))
    return [torch.randn(s).to(dtype).requires_grad_() for s in shapes]


def by_plain(stages, x, weight, bias):
    options = {"relu": stages.relu, "lrn": stages.lrn, "pool": stages.pool, "order": stages.order}
    with use_backend("plain"):
        return F.conv2d_block(x, weight, bias, **options)


def by_layers(stages, x, weight, bias):
    return plain_layers(stages)(nn.functional.conv2d(x, weight, bias))


def counts(run, stages, dtype):
    """Operations and bytes a value of the convolution's output, forward and backward."""
    tensors = leaves(dtype)
    with Count() as forward:
        y = run(stages, *tensors)
    grad = torch.ones_like(y)
    with Count() as backward:
        torch.autograd.grad(y, tensors, grad)
    values = SHAPE[0] * 16 * 11 * 11
    return [(len(c.operations), c.bytes / values) for c in (forward, backward)]


def main():
    print("| a convolution, then | dtype | plain forward | layers | plain backward | layers |")
    print("|---|---|--:|--:|--:|--:|")
    for stages, dtype in product(combinations(), (torch.float32, torch.bfloat16)):
        ours, theirs = (counts(run, stages, dtype) for run in (by_plain, by_layers))
        cells = [f"{n} ops, {b:.1f} B" for pair in zip(ours, theirs, strict=True) for n, b in pair]
        print(f"| {stages.name} | {str(dtype)[6:]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
