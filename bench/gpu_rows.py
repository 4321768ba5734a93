"""The rows that time kernels and networks: their names, and how each is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import islice, product
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from gpu_cases import DTYPES, LAYOUTS, MAIN, POOL, Case, all_stages, kernels
from gpu_here import Here
from gpu_timing import Call, times
from torch import Tensor, nn
from torch.nn import functional as TF

from fastcnn import backends, measure
from fastcnn.backends import cuda
from fastcnn.backends._convolution import WAYS, convolve, output_size, rearranged
from fastcnn.backends._space_to_depth import space_to_depth
from fastcnn.models import alexnet, lenet5
from fastcnn.stages import saved_tensor
from fastcnn.testing import plain_epilogue as plain

Row = dict[str, Any]
Rows = Iterator[tuple[str, Callable[[], Row]]]

PHASES = ("inference", "training", "backward")
NEAR = 0.03  # how far contenders' values may be apart: bfloat16, rounded at each stage or once


# AlexNet's first two blocks: shapes of x and of the weight, stride, padding, dilation and groups.
BLOCKS = {
    "block 1": ((128, 3, 227, 227), (96, 3, 11, 11), ([4, 4], [0, 0], [1, 1], 1)),
    "block 2": ((128, 96, 27, 27), (256, 48, 5, 5), ([1, 1], [2, 2], [1, 1], 2)),
}
TINY = {
    "block 1": ((2, 3, 43, 43), (16, 3, 11, 11), BLOCKS["block 1"][2]),
    "block 2": ((2, 16, 9, 9), (32, 8, 5, 5), BLOCKS["block 2"][2]),
}

# Epilogues; of a case, the kind is the block whose convolution's output they take.
OTHERS = (POOL, "relu, pool 3/2, lrn", "relu, lrn", "relu, pool 2/2")
EPILOGUES = [
    *(Case(MAIN, *how, "block 1") for how in product(DTYPES[:2], LAYOUTS)),
    *(Case(stages, "bfloat16", LAYOUTS[0], "block 1") for stages in OTHERS),
    *(Case(MAIN, "bfloat16", layout, "block 2") for layout in LAYOUTS),
]
ALL_EPILOGUES = [
    Case(stages, dtype, layout, block)
    for block, layout, stages, dtype in product(BLOCKS, LAYOUTS, (MAIN, *OTHERS), DTYPES)
]


def contenders(here: Here, case: Case, phase: str, compiled: bool = False) -> tuple[dict[str, Call], int]:
    """Returns the calls, and the least bytes that must be read and written, the bias left out."""
    stages = all_stages()[case.stages]
    x, weight, conv = here.size(BLOCKS, TINY)[case.kind]
    x, bias, grad = case.tensors((x[0], weight[0], *output_size(x, weight, conv)), here.device)
    y, r, argmax = backends.module("reference").epilogue_forward(x, bias, stages, True)
    saved = saved_tensor(stages.saved_name(True), x, y, r)
    moved = {"inference": (x, y), "training": (x, y, r, argmax), "backward": (x, grad, saved, argmax)}

    def by(module: ModuleType, kind: str = "best") -> Any:
        with kernels(module, kind):
            if phase == "backward":
                return module.epilogue_backward(grad, saved, argmax, stages, x.shape, case.format, True)
            return module.epilogue_forward(x, bias, stages, phase == "training")[0]

    def by_autograd(fn: Callable[..., Tensor]) -> Call:
        leaves = [t.detach().clone().requires_grad_(phase != "inference") for t in (x, bias)]
        if phase != "backward":
            return lambda: fn(*leaves, stages)
        y = cache(lambda: fn(*leaves, stages))
        return lambda: torch.autograd.grad(y(), leaves, grad, retain_graph=True)

    calls = {"plain": by_autograd(plain), "cuda": partial(by, here.ours)}
    calls |= {"general": partial(by, here.ours, "general"), "triton": partial(by, backends.module("triton"))}
    if compiled:
        calls["compile"] = by_autograd(here.compiled(plain))
    return calls, sum(t.nbytes for t in moved[phase] if t is not None)


def epilogues(here: Here, found: list[Case], compiled: bool = False) -> Rows:
    def row(case: Case, phase: str) -> Row:
        calls, moved = contenders(here, case, phase, compiled)
        row = here.clock.race(calls, None if phase == "backward" else NEAR)  # of equal maxima, any gets it
        copy = here.clock.copy(moved)
        shares = {f"{who} of copy": round(copy.median / us.median, 3) for who, us in row["us"].items()}
        row["us"]["copy"] = copy
        return {"bytes": moved} | row | shares

    for case, phase in product(found, PHASES):
        yield f"{case}, {phase}" + ", compile too" * compiled, partial(row, case, phase)


def rates(here: Here) -> Rows:
    def copy(moved: int) -> Row:
        us = here.clock.copy(moved)
        return {"us": {"copy": us}, "GB/s": round(moved / us.median / 1e3, 1)}

    def matmul(n: int) -> Row:
        a = here.random((n, n), torch.bfloat16)
        us = here.clock.time(lambda: a @ a)
        return {"us": {"matmul": us}, "TFLOP/s": round(2e-6 * n**3 / us.median, 1)}

    for name, size in {"1 KiB": 1 << 10, "94 MiB": 94 << 20, "512 MiB": 512 << 20}.items():
        yield f"copy, {name}", partial(copy, here.size(size, 1 << 10))
    yield "matmul, bfloat16", partial(matmul, here.size(8192, 64))


# Blocks.


@cache
def convolution(here: Here, block: str) -> tuple[Tensor, Tensor, Any]:
    """Returns x and weight, in channels_last, and the convolution's numbers."""
    x, weight, conv = here.size(BLOCKS, TINY)[block]
    dtype = here.size(torch.bfloat16, torch.float32)
    return here.random(x, dtype), here.random(weight, dtype).div_(math.sqrt(math.prod(weight[1:]))), conv


def convolution_times(here: Here, calls: dict[str, tuple[Any, ...]], needed: Any, near: Any = None) -> Row:
    """Times convolutions, each a name in WAYS, x, weight and conv; their backward if gradients are needed."""

    def call(way: str, *given: Any) -> Call:
        if not needed:
            return partial(WAYS[way].forward, *given)
        return partial(WAYS[way].backward, torch.randn_like(convolve(*given)), *given, needed)

    return here.clock.race({name: call(*how) for name, how in calls.items()}, near)


def convolutions(here: Here) -> Rows:
    """The first also in NCHW, and rearranged before; the second, of two groups, in one call or by group."""
    one, two = (convolution(here, block) for block in BLOCKS)
    first = {
        "channels_last": ("as it is", *one),
        "NCHW": ("as it is", *(t.contiguous() for t in one[:2]), one[2]),
        "space to depth": ("space to depth", *one),
        "space to depth done before": ("as it is", *rearranged(*one)),
    }
    second = {"one call": ("as it is", *two), "a call a group": ("by group", *two)}
    yield "conv1 forward", partial(convolution_times, here, first, None)
    yield "conv1 weight gradient", partial(convolution_times, here, first, (False, True))
    yield "space to depth alone", lambda: here.clock.race({"images": partial(space_to_depth, one[0], 4)})
    yield "conv2 forward", partial(convolution_times, here, second, None)
    yield "conv2 backward", partial(convolution_times, here, second, (True, True))


def block_calls(here: Here, block: str, compiled: bool = False) -> dict[str, Call]:
    (x, w, conv), stages, triton = convolution(here, block), all_stages()[MAIN], backends.module("triton")
    b = here.random((len(w),), x.dtype)

    def by(module: ModuleType, way: str = "as it is") -> Tensor:
        with (
            mock.patch.object(cuda, "convolve_fastest", WAYS[way].forward),
            mock.patch.object(triton, "fastest", lambda *_: "in one kernel"),
        ):
            return module.conv_block_forward(x, w, b, conv, stages, False)[0]

    def plainly(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return plain(convolve(x, w, conv, b), None, stages)

    calls = {"plain": partial(plainly, x, w, b), "triton": partial(by, triton)}
    calls["whole"] = partial(by, here.ours)
    if block == "block 1":
        calls["space to depth, whole"] = partial(by, here.ours, "space to depth")
    if compiled:
        calls["compile"] = partial(here.compiled(plainly), x, w, b)
    return calls


def blocks(here: Here, compiled: bool = False) -> Rows:
    def row(block: str) -> Row:
        return here.clock.race(block_calls(here, block, compiled), NEAR)

    for block in BLOCKS:
        yield block + ", compile too" * compiled, partial(row, block)


# Networks.

TRAINS = {"step": True, "inference": False}


def trainer(net: nn.Module, forward: Any, x: Tensor) -> Call:
    """Returns a step of SGD; forward: the network, or it compiled."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
    labels = torch.arange(len(x), device=x.device) % 10

    def step() -> None:
        TF.cross_entropy(forward(x).float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def throughput(here: Here, fn: Call, images: int) -> Row:
    """Times calls from Python and replays of a graph, and the peak of memory beyond the network.

    The time of Python is that of a call while the GPU has nothing else to do.
    """
    us, calls, python = here.clock.time(fn), here.size(20, 1), []
    for _ in range(here.size(8, 3)):
        start = time.perf_counter()
        fn()
        python.append(time.perf_counter() - start)
        here.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        fn()
    here.cuda.synchronize()
    eager = calls * images / (time.perf_counter() - start)
    here.cuda.reset_peak_memory_stats()
    before = here.cuda.memory_allocated()
    fn()
    return {
        "img/s": round(eager, 1),
        f"img/s by {us.how}": round(1e6 * images / us.median, 1),
        "us": {
            "GPU": us,
            "Python": times(measure.quartiles(python[1:]), "host"),
        },  # the first fills the allocator's cache
        "peak MB": here.cuda.max_memory_allocated() - before >> 20,
    }


def made(here: Here, who: str) -> tuple[nn.Module, Tensor]:
    """Returns AlexNet-2012, "fused" or of plain layers, and images; in a rehearsal LeNet-5."""
    make, dtype, *size = here.size(
        (alexnet, torch.bfloat16, 256, 3, 224, 224), (lenet5, torch.float32, 2, 1, 28, 28)
    )
    with torch.device(here.device):
        net = make(fused=who == "fused").to(dtype=dtype, memory_format=torch.channels_last)
    return net, here.random(size, dtype)


def speed(here: Here, net: nn.Module, x: Tensor, trains: bool, compiled: bool = False) -> Row:
    forward = here.compiled(net.train(trains)) if compiled else net.train(trains)
    call = trainer(net, forward, x) if trains else partial(forward, x)
    with torch.set_grad_enabled(trains):
        return throughput(here, call, len(x))


def alexnets(here: Here, kind: str, names: Sequence[str]) -> Rows:
    for who in names:
        row = partial(lambda who: speed(here, *made(here, who), TRAINS[kind], who == "compile"), who)
        yield f"AlexNet {kind}, {who}", row


def networks(here: Here) -> Rows:
    def lenet(batch: int) -> Row:
        x = here.random((batch, 1, 28, 28), torch.float32)
        with torch.device(here.device):
            nets = {who: lenet5(fused=who == "fused").eval() for who in ("fused", "plain")}
        with torch.no_grad():
            return here.clock.race({who: partial(net, x) for who, net in nets.items()})

    def profile() -> Row:
        net, x = made(here, "fused")
        step = trainer(net, net, x)
        step()
        with torch.profiler.profile() as profiler:
            step()
            here.cuda.synchronize()
        slowest = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)[:16]
        return {"us of": {e.key[:70]: round(e.self_device_time_total) for e in slowest}}

    yield from alexnets(here, "step", ("plain", "fused"))
    yield "LeNet-5, one image", partial(lenet, 1)
    yield "AlexNet step, profile", profile
    yield from alexnets(here, "inference", ("plain", "fused"))
    yield "LeNet-5, 4096 images", partial(lenet, here.size(4096, 64))


def defaults(here: Here) -> Rows:
    """As `auto` has it, in torch's defaults; of a few images, Python takes longer than the GPU."""

    def row(make: Any, size: Sequence[int], images: int, kind: str, who: str) -> Row:
        with torch.device(here.device):
            net = make(fused=who == "fused")
        return speed(here, net, here.random((images, *size), torch.float32), TRAINS[kind])

    nets = {"LeNet-5": (lenet5, (1, 28, 28)), "AlexNet-2012": (alexnet, (3, 224, 224))}
    chosen = product(here.size(nets, ["LeNet-5"]), here.size((1, 8, 128), (1,)), TRAINS, ("plain", "fused"))
    for net, images, kind, who in chosen:
        yield f"{net}, {images} images, {kind}, {who}", partial(row, *nets[net], images, kind, who)


# Convolutions of published networks that can be done in more than one way: channels and side of the input,
# maps, side of the windows, stride, padding, groups. The first one's padding: alexnet("2012") on 224.
PUBLISHED = {
    "AlexNet-2012, 1": (3, 224, 96, 11, 4, (0, 0, 3, 3), 1),
    "AlexNet-2014, 1": (3, 224, 64, 11, 4, (2, 2), 1),
    "ZFNet, 1": (3, 224, 96, 7, 2, (1, 1), 1),
    "ResNet, 1": (3, 224, 64, 7, 2, (3, 3), 1),
    "MobileNet, 1": (3, 224, 32, 3, 2, (1, 1), 1),
    "one channel": (1, 64, 32, 5, 2, (2, 2), 1),
    "AlexNet-2012, 2": (96, 27, 256, 5, 1, (2, 2), 2),
    "AlexNet-2012, 4": (384, 13, 384, 3, 1, (1, 1), 2),
    "AlexNet-2012, 5": (384, 13, 256, 3, 1, (1, 1), 2),
    "of 2 groups, small": (16, 27, 16, 3, 1, (1, 1), 2),
    "of 4 groups": (256, 27, 256, 3, 1, (1, 1), 4),
}


def ways(here: Here, batches: Any, dtypes: Any, layouts: Any, layers: Any) -> Rows:
    """Each way of backends/_convolution.py, on each of these: what is taken where nothing may be timed."""

    def row(images: int, dtype: str, layout: str, layer: str, phase: str) -> Row:
        c, side, maps, k, stride, padding, groups = PUBLISHED[layer]
        side, images = here.size((side, images), (k + 8, 1))
        x = here.random((images, c, side, side), getattr(torch, dtype), layout)
        w = here.random((maps, c // groups, k, k), x.dtype, layout).div_(math.sqrt(c // groups) * k)
        given = x, w, ((stride, stride), padding, (1, 1), groups)
        calls = {name: (name, *given) for name, way in WAYS.items() if way.applies(*given)}
        if phase == "forward":
            return convolution_times(here, calls, None, NEAR)
        return convolution_times(here, calls, (groups > 1, True))

    for case in product(batches, dtypes, layouts, layers, ("forward", "backward")):
        images, dtype, layout, layer, phase = case
        yield f"{layer}; {images} images, {dtype}, {layout}, {phase}", partial(row, *case)


def unsearched(here: Here) -> Rows:
    """Without cudnn.benchmark, and in a process of its own: torch keeps an algorithm once it took it."""
    for name, row in alexnets(here, "step", ("plain", "fused")):
        yield f"{name}, without cudnn.benchmark", row
    found = ways(here, (128, 8, 1), DTYPES[:2], LAYOUTS, PUBLISHED)
    if here.thorough:
        found = ways(here, (64, 32), DTYPES, LAYOUTS[:1], [n for n in PUBLISHED if n.startswith("AlexNet")])
    yield from islice(found, here.size(None, 22))


def peers(here: Here) -> Rows:
    """Yields rows with torch.compile, which takes up to a minute for each."""
    for kind in TRAINS:
        yield from alexnets(here, kind, ["compile"])
    yield from blocks(here, compiled=True)
    yield from epilogues(here, EPILOGUES[: here.size(2, 1)], compiled=True)
