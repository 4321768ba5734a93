"""The rows of each part of gpu.py: their names, and who measures them. A part is a process of its own."""

from __future__ import annotations

import cProfile
import faulthandler
import json
import math
import os
import pstats
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib import metadata
from itertools import islice, product
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import gpu_cases
import torch
import torch._functorch.config
from gpu_cases import HALVES, LAYOUTS, MAIN, POOL, Case, all_stages, kept, kernels, plain
from gpu_timing import Call, Clock, Times, describe, double, peak_bytes
from torch import Tensor, nn
from torch.nn import functional as TF

from fastcnn import _native, backends, set_backend, use_backend
from fastcnn.backends import cuda
from fastcnn.backends._convolution import WAYS, convolve, rearranged
from fastcnn.backends._space_to_depth import space_to_depth
from fastcnn.models import alexnet, lenet5

Row = dict[str, Any]
Rows = Iterator[tuple[str, Callable[[], Row]]]

STICKY = 3  # exit status: the device takes no more in this process
PATIENCE = {"kernels": 20}  # seconds after which a row ends its process, as a kernel may never end; else 60
PHASES = ("inference", "training", "backward")
NEAR = 0.03  # how far contenders' values may be apart: bfloat16, rounded at each stage or once
COMPILERS = {"compile": "default", "max-autotune": "max-autotune-no-cudagraphs"}


class Here(NamedTuple):
    """What rows are measured on: a GPU; in a rehearsal the CPU, tiny shapes, and a double of torch.cuda."""

    device: str
    cuda: Any
    clock: Clock
    ours: ModuleType
    thorough: bool

    def size(self, real: Any, tiny: Any) -> Any:
        return real if self.device == "cuda" else tiny

    def random(self, shape: Any, dtype: torch.dtype, layout: str = LAYOUTS[0]) -> Tensor:
        format = torch.channels_last if layout != "NCHW" and len(shape) == 4 else torch.contiguous_format
        return torch.randn(shape, device=self.device, dtype=dtype).contiguous(memory_format=format)

    def compiled(self, fn: Any, mode: str) -> Any:
        return torch.compile(fn, dynamic=False, **self.size({"mode": mode}, {"backend": "eager"}))


def here(rehearse: bool, thorough: bool) -> Here:
    torch._functorch.config.donated_buffer = False  # it refuses a second backward of a forward
    if not rehearse:
        torch.cuda.set_stream(torch.cuda.Stream())  # the default one can't be captured
        return Here("cuda", torch.cuda, Clock(torch.cuda, "cuda", 3, 21 if thorough else 11), cuda, thorough)
    ours, stand_in = backends.module("cpu"), double()
    if _native.missing_reason() is None and "host" in _native.load().build_info()["cuda"]:
        ours, cuda._where, cuda.unsupported_reason = cuda, lambda x: (0, 0), lambda x, stages: None
    return Here("cpu", stand_in, Clock(stand_in, "cpu", 1, 2, 1 << 12), ours, thorough)


def facts(here: Here) -> Rows:
    names = ("triton", "numpy", "pytest", "hypothesis", "pybind11", "scikit_build_core")
    versions = {d.name: d.version for d in metadata.distributions() if d.name.replace("-", "_") in names}
    versions |= {
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
    }
    yield "versions", lambda: versions

    def extension() -> Row:
        if reason := _native.missing_reason():
            return {"error": reason}
        native, runs = _native.load(), here.device == "cuda" and cuda.missing_reason() is None
        return {"build_info": native.build_info(), "has code for this GPU": runs and native.cuda_runs_on(0)}

    yield "extension", extension


def restarts(here: Here) -> Rows:
    """Rehearsed alone: a row that ends its process, and one after which the device is of no more use."""
    broken = {"side_effect": RuntimeError("CUDA error: unspecified launch failure")}
    yield "a row that dies", lambda: os._exit(11)
    yield "a row that breaks the device", lambda: here.cuda.synchronize.configure_mock(**broken) or {}
    yield "a row after those", lambda: {"verdict": "ok"}


def cases(here: Here, found: list[Case], module: ModuleType, poison: bool = True) -> Rows:
    how = (here.device, here.cuda.synchronize, poison)
    for case in found[:: here.size(1, 7)]:
        yield f"{module.__name__.split('.')[2]}: {case}", partial(gpu_cases.check, module, case, *how)


def sanitized(here: Here, poison: bool = True) -> Rows:
    """Epilogues alone, and whole blocks: by torch's convolution, by space to depth, in one kernel."""

    def row(call: Call) -> Row:
        call()
        return {"verdict": "ok"}

    yield from cases(here, gpu_cases.cuda_cases()[:: 5 if here.thorough else 17], here.ours, poison)
    for block in CONVOLUTIONS:
        others = ("plain",) if here.device == "cuda" else ("plain", "triton")  # interpreted, it takes long
        ours = {who: call for who, call in block_calls(here, block).items() if who not in others}
        yield from ((f"{block}: {who}", partial(row, call)) for who, call in ours.items())


def launched(here: Here, who: str, found: list[Case]) -> Rows:
    """Each kernel once: for a profiler, or to have it compiled before it is timed."""
    for case, phase in product(found, PHASES):
        launch = lambda c=case, p=phase: (contenders(here, c, p)[0][who](), {})[1]  # noqa: E731
        yield f"{who}, launched: {case}, {phase}", launch


def triton(here: Here, dtype: str, layout: str) -> Rows:
    """These alone, as a kernel takes up to ten seconds to compile."""
    timed = ALL_EPILOGUES[: len(ALL_EPILOGUES) // 2] if here.thorough else EPILOGUES
    checked, timed = (
        [c for c in of if (c.dtype, c.layout) == (dtype, layout)] for of in (gpu_cases.triton_cases(), timed)
    )
    yield from cases(here, checked, backends.module("triton"))
    yield from launched(here, "triton", here.size(timed, timed[:1]))
    if (dtype, layout) == (HALVES[0], LAYOUTS[0]):
        for block in CONVOLUTIONS:
            launch = lambda b=block: here.clock.race({"triton": block_calls(here, b)["triton"]})  # noqa: E731
            yield f"triton, launched: {block}", launch


# Epilogues; of a case, the kind is the block in AlexNet whose convolution's output they take.

SHAPES = {"block 1": ((128, 96, 55, 55), (2, 16, 13, 13)), "block 2": ((128, 256, 27, 27), (2, 32, 9, 9))}
OTHERS = (POOL, "relu, pool 3/2, lrn", "relu, lrn", "relu, pool 2/2")
EPILOGUES = [
    *(Case(MAIN, *how, "block 1") for how in product(HALVES[:2], LAYOUTS)),
    *(Case(stages, "bfloat16", LAYOUTS[0], "block 1") for stages in OTHERS),
    *(Case(MAIN, "bfloat16", layout, "block 2") for layout in LAYOUTS),
]
ALL_EPILOGUES = [
    Case(stages, dtype, layout, block)
    for block, layout, stages, dtype in product(SHAPES, LAYOUTS, (MAIN, *OTHERS), HALVES)
]


def contenders(
    here: Here, case: Case, phase: str, compilers: Sequence[str] = ()
) -> tuple[dict[str, Call], int]:
    """And the least bytes that must be read and written, the bias left out."""
    stages = all_stages()[case.stages]
    x, bias, grad = case.tensors(here.size(*SHAPES[case.kind]), here.device)
    y, r, offsets = backends.module("reference").epilogue_forward(x, bias, stages, True)
    rest = (grad, kept(x, y, r, stages, bias), offsets, stages, x.shape, case.format, True)
    moved = {"inference": (x, y), "training": (x, y, r, offsets), "backward": (x, *rest[:3])}[phase]

    def by(module: ModuleType, kind: str = "best") -> Any:
        with kernels(module, kind):
            if phase == "backward":
                return module.epilogue_backward(*rest)
            return module.epilogue_forward(x, bias, stages, phase == "training")[0]

    def by_autograd(fn: Callable[..., Tensor]) -> Call:
        leaves = [t.detach().clone().requires_grad_(phase != "inference") for t in (x, bias)]
        if phase != "backward":
            return lambda: fn(*leaves, stages)
        y = cache(lambda: fn(*leaves, stages))
        return lambda: torch.autograd.grad(y(), leaves, grad, retain_graph=True)

    calls = {"plain": by_autograd(plain), "cuda": partial(by, here.ours)}
    calls |= {"general": partial(by, here.ours, "general"), "triton": partial(by, backends.module("triton"))}
    if compilers:
        calls |= {who: by_autograd(here.compiled(plain, COMPILERS[who])) for who in compilers}
    return calls, sum(t.nbytes for t in moved if t is not None)


def epilogues(here: Here, found: list[Case], compilers: Sequence[str] = ()) -> Rows:
    def row(case: Case, phase: str) -> Row:
        calls, moved = contenders(here, case, phase, compilers)
        row = here.clock.race(calls, None if phase == "backward" else NEAR)  # of equal maxima, any gets it
        copy = here.clock.copy(moved)
        shares = {f"{who} of copy": round(copy.median / us.median, 3) for who, us in row["us"].items()}
        return {"bytes": moved, "us": row.pop("us") | {"copy": copy}} | row | shares

    for case, phase in product(found, PHASES):
        yield f"{case}, {phase}" + "".join(f", {who} too" for who in compilers), partial(row, case, phase)


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

CONVOLUTIONS = {"block 1": ([4, 4], [0, 0], [1, 1], 1), "block 2": ([1, 1], [2, 2], [1, 1], 2)}


@cache
def block_tensors(here: Here, block: str, layout: str = LAYOUTS[0]) -> tuple[Tensor, Tensor, Tensor]:
    n, dtype, *sizes = here.size((128, torch.bfloat16, 227, 96, 27, 256), (2, torch.float32, 43, 16, 9, 32))
    side, maps, *second = sizes
    shapes = [(n, 3, side, side), (maps, 3, 11, 11)]
    if block == "block 2":
        shapes = [(n, maps, second[0], second[0]), (second[1], maps // 2, 5, 5)]
    x, w = (here.random(shape, dtype, layout) for shape in shapes)
    return x, w.div_(math.sqrt(w[0].numel())), here.random((len(w),), dtype)


def convolutions(here: Here) -> Rows:
    """The first by layout and by space to depth; the second, of two groups, in one call or one for each."""

    def row(ways: dict[str, Callable[[], list[Any]]], mask: tuple[bool, ...] = ()) -> Row:
        """A way: x, weight and convolution of each call; mask: of what backward gives, if it is that."""

        def backward(a: Tensor, x: Tensor, w: Tensor, conv: Any) -> Any:
            stride, padding, dilation, groups = conv
            args = (None, stride, padding, dilation, False, [0, 0], groups, mask)
            return torch.ops.aten.convolution_backward(a, x, w, *args)

        def call(way: Callable[[], list[Any]]) -> Call:
            if not mask:
                return lambda: [convolve(*c) for c in way()]
            grads = [torch.randn_like(convolve(*c)) for c in way()]
            return lambda: [backward(a, *c) for a, c in zip(grads, way(), strict=True)]

        return here.clock.race({name: call(way) for name, way in ways.items()})

    (x, w, _), (xn, wn, _) = (block_tensors(here, "block 1", layout) for layout in LAYOUTS)
    conv, dense = CONVOLUTIONS["block 1"], rearranged(x, w, CONVOLUTIONS["block 1"])
    first = {"channels_last": lambda: [(x, w, conv)], "NCHW": lambda: [(xn, wn, conv)]}
    first |= {
        "space to depth": lambda: [rearranged(x, w, conv)],
        "space to depth done before": lambda: [dense],
    }
    yield "conv1 forward", partial(row, first)
    yield "conv1 weight gradient", partial(row, first, (False, True, False))
    yield "space to depth alone", lambda: here.clock.race({"images": partial(space_to_depth, x, 4)})

    x2, w2, _ = block_tensors(here, "block 2")
    two = (*CONVOLUTIONS["block 2"][:3], 1)
    slices = [(*half, two) for half in zip(x2.chunk(2, 1), w2.chunk(2), strict=True)]
    apart = [(x.contiguous(memory_format=torch.channels_last), *rest) for x, *rest in slices]
    second = {"one call": lambda: [(x2, w2, CONVOLUTIONS["block 2"])], "a call a group": lambda: slices}
    second["a call a group, halves apart"] = lambda: apart
    yield "conv2 forward", partial(row, second)
    yield "conv2 backward", partial(row, second, (True, True, False))


def block_calls(here: Here, block: str, compilers: Sequence[str] = ()) -> dict[str, Call]:
    (x, w, b), conv, stages = block_tensors(here, block), CONVOLUTIONS[block], all_stages()[MAIN]
    triton = backends.module("triton")

    def by(module: ModuleType, way: Any = lambda *c: c) -> Tensor:
        with (
            mock.patch.object(cuda, "convolve_fastest", lambda *c: convolve(*way(*c))),
            mock.patch.object(triton, "fastest", lambda *_: "in one kernel"),
        ):
            return module.conv_block_forward(x, w, b, conv, stages, False)[0]

    def plainly(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return plain(convolve(x, w, conv, b), None, stages)

    calls = {"plain": partial(plainly, x, w, b), "triton": partial(by, triton)}
    calls["whole"] = partial(by, here.ours)
    if block == "block 1":
        calls["space to depth, whole"] = partial(by, here.ours, rearranged)
    if compilers:
        calls |= {who: partial(here.compiled(plainly, COMPILERS[who]), x, w, b) for who in compilers}
    return calls


def blocks(here: Here, compilers: Sequence[str] = ()) -> Rows:
    for block in CONVOLUTIONS:
        row = lambda b=block: here.clock.race(block_calls(here, b, compilers), NEAR)  # noqa: E731
        yield block + "".join(f", {who} too" for who in compilers), row


# Networks.


def network(here: Here, name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """AlexNet-2012 by "fused" layers or by plain ones, images and labels; in a rehearsal LeNet-5."""
    make, dtype, *size = here.size(
        (alexnet, torch.bfloat16, 256, 3, 224, 224), (lenet5, torch.float32, 2, 1, 28, 28)
    )
    with torch.device(here.device):
        net = make(fused=name == "fused").to(dtype=dtype, memory_format=torch.channels_last)
    return net, here.random(size, dtype), torch.arange(size[0], device=here.device)


def trainer(net: nn.Module, forward: Any, x: Tensor, labels: Tensor) -> Call:
    """A step of SGD; forward: the network, or it compiled."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        TF.cross_entropy(forward(x).float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def throughput(here: Here, fn: Call, images: int) -> Row:
    """Images a second, called from Python and by a graph's replay; the peak of memory beyond the network.

    The time of Python is that of a call while the GPU has nothing else to do.
    """
    us, calls, python = here.clock.time(fn), here.size(20, 1), []
    for _ in range(here.size(8, 3)):
        start = time.perf_counter()
        fn()
        python.append(1e6 * (time.perf_counter() - start))
        here.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        fn()
    here.cuda.synchronize()
    row = {"img/s": round(calls * images / (time.perf_counter() - start), 1)}
    row |= {f"img/s by {us.how}": round(1e6 * images / us.median, 1)}
    # A capture empties the allocator's cache: the first call fills it.
    row |= {
        "us": {"GPU": us, "Python": Times(*statistics.quantiles(python[1:], n=4, method="inclusive"), "host")}
    }
    return row | {"peak MB": peak_bytes(fn, here.cuda) >> 20}


def networks(here: Here) -> Rows:
    def row(name: str, trains: bool, mode: str | None = None) -> Row:
        net, x, labels = network(here, name)
        forward = here.compiled(net.train(trains), mode) if mode else net.train(trains)
        call = trainer(net, forward, x, labels) if trains else partial(forward, x)
        with torch.set_grad_enabled(trains):
            return throughput(here, call, len(x))

    def lenet(batch: int) -> Row:
        x = here.random((batch, 1, 28, 28), torch.float32)
        with torch.no_grad(), torch.device(here.device):
            nets = {name: lenet5(fused=name == "fused").eval() for name in ("fused", "plain")}
            return here.clock.race({name: partial(net, x) for name, net in nets.items()})

    def profile() -> Row:
        net, *batch = network(here, "fused")
        step = trainer(net, net, *batch)
        step()
        with torch.profiler.profile() as profiler:
            step()
            here.cuda.synchronize()
        slowest = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)[:16]
        return {"us of": {e.key[:70]: round(e.self_device_time_total) for e in slowest}}

    def python() -> Row:
        """Backward is on this thread, too."""
        net, *batch = network(here, "fused")
        step = trainer(net, net, *batch)
        step()
        here.cuda.synchronize()
        with torch.autograd.set_multithreading_enabled(False), cProfile.Profile() as profiler:
            step()
        slowest = sorted(pstats.Stats(profiler).stats.items(), key=lambda item: -item[1][2])[:24]
        told = {
            f"{Path(file).name}:{line} {name}": (calls, round(1e6 * own), round(1e6 * all_))
            for (file, line, name), (_, calls, own, all_, _) in slowest
        }
        return {"calls, us, us with its own": told}

    yield "AlexNet step, plain", partial(row, "plain", True)
    yield "AlexNet step, fused", partial(row, "fused", True)
    yield "LeNet-5, one image", partial(lenet, 1)
    yield "AlexNet step, profile", profile
    yield "AlexNet step, Python", python
    yield "AlexNet inference, plain", partial(row, "plain", False)
    yield "AlexNet inference, fused", partial(row, "fused", False)
    yield "LeNet-5, 4096 images", partial(lenet, here.size(4096, 64))
    for (kind, trains), (who, mode) in product({"step": True, "inference": False}.items(), COMPILERS.items()):
        yield f"AlexNet {kind}, {who}", partial(row, "plain", trains, mode)


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


DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


def ways(
    here: Here, batches: Sequence[int], dtypes: Sequence[str], layouts: Sequence[str], names: Any
) -> Rows:
    """Each way of backends/_convolution.py, on each of these: what is taken where nothing may be timed."""

    def row(sizes: tuple[Any, ...], images: int, dtype: torch.dtype, layout: str, backward: bool) -> Row:
        c, side, maps, k, stride, padding, groups = sizes
        x = here.random((images, c, here.size(side, k + 8), here.size(side, k + 8)), dtype, layout)
        w = here.random((maps, c // groups, k, k), dtype, layout).div_(math.sqrt(c // groups) * k)
        conv = (stride, stride), padding, (1, 1), groups
        found = {name: way for name, way in WAYS.items() if way.applies(x, w, conv)}
        if not backward:
            return here.clock.race({n: partial(way.forward, x, w, conv) for n, way in found.items()}, NEAR)
        grad, needed = torch.randn_like(convolve(x, w, conv)), (groups > 1, True)
        return here.clock.race({n: partial(w_.backward, grad, x, w, conv, needed) for n, w_ in found.items()})

    for images, dtype, layout, name, backward in product(batches, dtypes, layouts, names, (False, True)):
        told = f"{name}; {images} images, {dtype}, {layout}, {'backward' if backward else 'forward'}"
        yield told, partial(row, PUBLISHED[name], here.size(images, 1), DTYPES[dtype], layout, backward)


def unsearched(here: Here) -> Rows:
    """Without cudnn.benchmark, and in a process of its own: torch keeps an algorithm once it took it."""
    for name, row in islice(networks(here), 2):
        yield f"{name}, without cudnn.benchmark", row
    batches = ((64, 32), LAYOUTS[:1]) if here.thorough else ((128, 8, 1), LAYOUTS)
    names = [n for n in PUBLISHED if n.startswith("AlexNet")] if here.thorough else PUBLISHED
    dtypes = HALVES if here.thorough else HALVES[:2]
    found = ways(here, batches[0], dtypes, batches[1], names)
    yield from islice(found, here.size(None, 22))


def defaults(here: Here) -> Rows:
    """As `auto` has it, in torch's defaults; of a few images, Python takes longer than the GPU."""

    def row(make: Any, size: Sequence[int], images: int, name: str, trains: bool) -> Row:
        with torch.device(here.device):
            net, labels = make(fused=name == "fused").train(trains), torch.arange(images) % 10
        x = here.random((images, *size), torch.float32)
        call = trainer(net, net, x, labels) if trains else partial(net, x)
        with use_backend(here.size("auto", "cpu")), torch.set_grad_enabled(trains):
            return throughput(here, call, images)

    nets = {"LeNet-5": (lenet5, (1, 28, 28)), "AlexNet-2012": (alexnet, (3, 224, 224))}
    nets = here.size(nets, {"LeNet-5": nets["LeNet-5"]})
    for (net, sizes), images, trains in product(nets.items(), here.size((1, 8, 128), (1,)), (False, True)):
        for name in ("plain", "fused"):
            told = f"{net}, {images} images, {'step' if trains else 'inference'}, {name}"
            yield told, partial(row, *sizes, images, name, trains)


def peers(here: Here) -> Rows:
    """The same rows as above, and what compilers make of it, of which the second takes minutes."""
    for who in COMPILERS:
        yield from (row for row in networks(here) if row[0].endswith(f", {who}"))
        yield from blocks(here, [who])
        yield from epilogues(here, EPILOGUES[: here.size(2, 1)], [who])


PARTS: dict[str, Callable[[Here], Rows]] = {
    "facts": facts, "restarts": restarts, "rates": rates,
    **{f"triton, {d}, {f}": partial(triton, dtype=d, layout=f) for d, f in product(HALVES, LAYOUTS)},
    "networks": lambda here: (row for row in networks(here) if not row[0].endswith("max-autotune")),
    "kernels": lambda here: cases(here, gpu_cases.cuda_cases(), here.ours),
    "epilogues": lambda here: epilogues(here, here.size(EPILOGUES, EPILOGUES[:1])),
    "blocks": lambda here: (row for rows in (blocks, convolutions) for row in rows(here)),
    "unsearched": unsearched, "defaults": defaults,
    "ncu": lambda here: launched(here, "cuda", [EPILOGUES[i] for i in (0, 1, 4)]),
    "peers": peers,
    "all epilogues": lambda here: epilogues(here, ALL_EPILOGUES[: here.size(None, 1)]),
    **dict.fromkeys(("memcheck", "racecheck", "synccheck"), sanitized),
    "initcheck": partial(sanitized, poison=False),  # what is poisoned, is initialised
}  # fmt: skip


def run(part: str, first: int, until: float, rehearse: bool, thorough: bool) -> None:
    """Prints the part's rows from one on, each as it is known; ends with STICKY once the device fails."""
    torch.backends.cudnn.benchmark = part not in ("unsearched", "defaults")
    place = here(rehearse, thorough)
    if part != "facts":
        set_backend(place.ours.__name__.split(".")[2])
    for index, (name, row) in enumerate(PARTS[part](place)):
        if index < first:
            continue
        if time.monotonic() > until:
            print(json.dumps({"name": f"{part}, the rest", "error": "no time left"}))
            return
        print("begins", name, flush=True)
        faulthandler.dump_traceback_later(place.size(PATIENCE.get(part, 60), 600), exit=True)
        try:
            values = row()
        except Exception as error:
            values = {"verdict": "error", "error": describe(error)}
        try:
            place.cuda.synchronize()
        except Exception as error:
            values |= {"verdict": "error", "nothing runs any more": describe(error)}
        print(json.dumps({"name": name, **values}), flush=True)
        if "nothing runs any more" in values:
            os._exit(STICKY)
