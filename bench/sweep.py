"""Is anything slower than plain torch? Random shapes of every op and of small networks, timed in turns.

    python bench/sweep.py [--cases 60] [--seed 0] [--quick] [--out FILE]

Each case runs in inference and in training (forward and backward), with one thread and with two. All go to
bench/results/sweep.json, from which bench/report.py writes docs/sweep.md. With --quick there are few cases, a
minute of them; the page is printed, and there is no file unless --out names one.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import random
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pages import machine, span, table, times
from torch import Tensor, nn
from torch.nn import functional as TF

import fastcnn
from fastcnn import LRN, MaxPool
from fastcnn import functional as F
from fastcnn.bench.cases import Kind
from fastcnn.bench.contenders import Run
from fastcnn.bench.machine import facts
from fastcnn.measure import Budget, in_turns, ratio
from fastcnn.models._blocks import Classifier

RESULTS = Path(__file__).parent / "results" / "sweep.json"
THREADS = (1, 2)
MODES = ("inference", "training")
SLOWER = 0.95  # plain's time over ours, at the upper quartile, below which a case is slower beyond noise
LOOK, LOOK_AGAIN = Budget(9, limit=0.5), Budget(25, limit=0.5)  # rounds; again for a case that looks slower
QUICK = 4  # cases of each op
WORST = 20
# By plain's time, in seconds.
CLASSES = {"< 50 µs": 50e-6, "50–500 µs": 500e-6, "0.5–5 ms": 5e-3, "> 5 ms": math.inf}
Row = dict[str, Any]


class Case(NamedTuple):
    """Names what is computed, by plain torch and by fastcnn, and whose gradients training takes."""

    what: str
    plain: Callable[[], Tensor]
    ours: Callable[[], Tensor]
    leaves: tuple[list[Tensor], list[Tensor]]


def of_op(what: str, plain: Callable[..., Tensor], ours: Callable[..., Tensor], *leaves: Tensor) -> Case:
    return Case(what, partial(plain, *leaves), partial(ours, *leaves), (list(leaves), list(leaves)))


def of_modules(what: str, x: Tensor, plain: nn.Module, ours: nn.Module) -> Case:
    leaves = list(plain.parameters()), list(ours.parameters())
    return Case(f"{list(x.shape)} {what}", partial(plain, x), partial(ours, x), leaves)


def tensor(draw: random.Random) -> Tensor:
    """Draws up to 4 million values, of any shape from one pixel to a large map, in either format."""
    while True:
        n, c = 2 ** draw.randrange(7), draw.randrange(1, 2 ** draw.randrange(1, 10))
        h, w = (draw.randrange(1, 2 ** draw.randrange(2, 9)) for _ in range(2))
        if n * c * h * w <= 4 << 20:
            break
    format = draw.choice([torch.contiguous_format, torch.channels_last])
    return torch.randn(n, c, h, w).contiguous(memory_format=format)


def describe(x: Tensor, **options: object) -> str:
    format = "NCHW" if x.is_contiguous() else "channels_last"
    return f"{list(x.shape)} {format} " + " ".join(f"{k}={v}" for k, v in options.items() if v is not None)


def pooling(draw: random.Random, x: Tensor) -> MaxPool:
    kernel = draw.randrange(1, min(6, *x.shape[2:]) + 1)
    stride, padding = draw.randrange(1, kernel + 1), draw.randrange(kernel // 2 + 1)
    return MaxPool(kernel, stride, padding, ceil_mode=draw.random() < 0.3)


def lrn_case(draw: random.Random) -> Case:
    x, size, beta = tensor(draw), draw.randrange(1, 8), draw.choice([0.75, 0.5, 1.0, 0.6])
    options = {"size": size, "alpha": 1e-4, "beta": beta, "k": 2.0}
    sides = (partial(of.local_response_norm, **options) for of in (TF, F))
    return of_op(describe(x, size=size, beta=beta), *sides, x)


def pool_case(draw: random.Random) -> Case:
    x = tensor(draw)
    pool = pooling(draw, x)
    sides = (lambda x, of=of: of.max_pool2d(x, *pool.pairs, pool.ceil_mode) for of in (TF, F))
    return of_op(describe(x, pool=pool), *sides, x)


def plain_stages(a: Tensor, lrn: LRN | None, pool: MaxPool | None) -> Tensor:
    a = a.relu_()
    if lrn:
        a = TF.local_response_norm(a, lrn.size, lrn.alpha, lrn.beta, lrn.k)
    return TF.max_pool2d(a, *pool.pairs, pool.ceil_mode) if pool else a


def epilogue_case(draw: random.Random) -> Case:
    x = tensor(draw)
    bias = torch.randn(x.shape[1])
    stages = {"lrn": LRN(5, k=2.0) if draw.random() < 0.5 else None}
    stages["pool"] = pooling(draw, x) if draw.random() < 0.7 else None

    def plain(x: Tensor, bias: Tensor) -> Tensor:
        return plain_stages(x + bias[:, None, None], **stages)

    return of_op(describe(x, **stages), plain, partial(F.epilogue, **stages), x, bias)


def block_case(draw: random.Random) -> Case:
    while True:
        x, kernel = tensor(draw), draw.choice([1, 3, 5, 11])
        out, stride, padding = 2 ** draw.randrange(2, 9), draw.randrange(1, 4), kernel // 2
        if x.numel() * out * kernel**2 / stride**2 < 1e9:
            break
    conv = {"stride": stride, "padding": padding}
    weight, bias = torch.randn(out, x.shape[1], kernel, kernel), torch.randn(out)
    stages = {"lrn": LRN(5, k=2.0) if draw.random() < 0.5 else None}
    stages["pool"] = pooling(draw, TF.conv2d(x, weight, bias, **conv)) if draw.random() < 0.7 else None

    def plain(*leaves: Tensor) -> Tensor:
        return plain_stages(TF.conv2d(*leaves, **conv), **stages)

    what = describe(x, weight=list(weight.shape), stride=stride, **stages)
    return of_op(what, plain, partial(F.conv2d_block, **conv, **stages), x, weight, bias)


def network_case(draw: random.Random) -> Case:
    """Draws one to four blocks and two dense layers, fused by fastcnn.fuse."""
    while True:
        side, inputs, batch = 2 ** draw.randrange(3, 7), draw.choice([1, 3]), 2 ** draw.randrange(7)
        size, channels, work = side, inputs, 0
        layers: list[nn.Module] = []
        for _ in range(draw.randrange(1, 5)):
            width, kernel = 4 * draw.randrange(1, 17), draw.choice([3, 5])
            layers += [nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.ReLU()]
            work += batch * channels * width * (size * kernel) ** 2
            channels = width
            if draw.random() < 0.3:
                layers.append(nn.LocalResponseNorm(5, k=2.0))
            if size > 2 and draw.random() < 0.8:
                layers.append(nn.MaxPool2d(2))
                size //= 2
        features = channels * size**2
        if work < 3e8 and features <= 8192:
            break
    hidden = 2 ** draw.randrange(4, 9)
    dense = nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 10)
    plain = nn.Sequential(*layers, nn.Flatten(), *dense)
    letters = {nn.Conv2d: "C{0.out_channels}", nn.LocalResponseNorm: "N", nn.MaxPool2d: "P"}
    what = "-".join(letters[type(m)].format(m) for m in layers if type(m) in letters)
    x = torch.randn(batch, inputs, side, side)
    return of_modules(f"{what}-F{hidden}-F10", x, plain, fastcnn.fuse(copy.deepcopy(plain)))


def dense_case(draw: random.Random) -> Case:
    """Draws one to three dense layers as the models have them."""
    widths = [2 ** draw.randrange(4, 13) for _ in range(draw.randrange(2, 5))]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    plain, x = nn.Sequential(*layers[:-1]), torch.randn(2 ** draw.randrange(8), widths[0])
    return of_modules("-".join(map(str, widths[1:])), x, plain, Classifier(*copy.deepcopy(layers[:-1])))


def lenet_case(draw: random.Random) -> Case:
    variant, batch = draw.choice(["relu", "caffe"]), draw.choice([1, 2, 4, 8, 16, 32, 64, 128])
    plain, ours = Kind().pair(partial(fastcnn.models.lenet5, variant))
    return of_modules(variant, torch.randn(batch, 1, 28, 28), plain, ours)


OPS = {
    "local_response_norm": lrn_case,
    "max_pool2d": pool_case,
    "epilogue": epilogue_case,
    "conv2d_block": block_case,
    "fused Sequential": network_case,
    "dense layers": dense_case,
    "lenet5": lenet_case,
}


def runs(case: Case, mode: str) -> tuple[Run, Run]:
    """Returns what is timed of plain torch and of fastcnn."""
    if mode == "inference":
        return torch.no_grad()(case.plain), torch.no_grad()(case.ours)
    for leaf in itertools.chain(*case.leaves):
        leaf.requires_grad_()
    grad = torch.randn_like(case.plain())
    plain, ours = case.leaves
    return (
        lambda: torch.autograd.grad(case.plain(), plain, grad),
        lambda: torch.autograd.grad(case.ours(), ours, grad),
    )


def compare(plain: Run, ours: Run) -> Row:
    """Times both; a case that looks slower again, in more rounds, since chance alone makes some look so."""
    for budget in (LOOK, LOOK_AGAIN):
        taken = in_turns({"eager": plain, "fastcnn": ours}, budget)
        found = ratio(taken["eager"], taken["fastcnn"])
        if found.median >= SLOWER:
            break
    plain_seconds = statistics.median(taken["eager"])
    return {"times_faster": found._asdict(), "plain_seconds": plain_seconds, "slower": found.high < SLOWER}


def sweep(cases: int, seed: int) -> Iterator[Row]:
    for op, make in OPS.items():
        draw = random.Random(seed)
        torch.manual_seed(seed)
        for _ in range(cases):
            case = make(draw)
            for mode in MODES:  # training last: leaves require gradients from then on
                pair = runs(case, mode)
                for threads in THREADS:
                    torch.set_num_threads(threads)
                    yield {"op": op, "mode": mode, "threads": threads, "case": case.what, **compare(*pair)}


def size_class(row: Row) -> str:
    return next(name for name, below in CLASSES.items() if row["plain_seconds"] < below)


def gain(row: Row) -> float:
    return row["times_faster"]["median"]


def classes(rows: list[Row]) -> Iterator[list[str]]:
    for op, mode in dict.fromkeys((row["op"], row["mode"]) for row in rows):
        for name in CLASSES:
            found = [r for r in rows if (r["op"], r["mode"], size_class(r)) == (op, mode, name)]
            if found:
                gains = list(map(gain, found))
                slower = f"{statistics.mean(row['slower'] for row in found):.0%}"
                cells = [slower, times(min(gains)), times(statistics.median(gains))]
                yield [op, mode, name, str(len(found)), *cells]


def slowest(rows: list[Row]) -> Iterator[list[str]]:
    for row in sorted((row for row in rows if row["slower"]), key=gain)[:WORST]:
        numbers = [times(gain(row)), span(row["times_faster"], times), f"{1e6 * row['plain_seconds']:.0f}"]
        yield [f"{row['op']}, {row['mode']}", f"`{row['case']}`", str(row["threads"]), *numbers]


def page(data: dict[str, Any]) -> str:
    """Returns docs/sweep.md."""
    rows = data["rows"]
    slower = sum(row["slower"] for row in rows)
    parts = [
        f"""# Random shapes beside plain torch

By `make sweep` on {machine(data)}; {data["cases"]} cases of each op, drawn
from seed {data["seed"]}, in inference and in training (forward and backward), with each number of threads.

A ratio is plain torch's time over fastcnn's, the median of rounds in which both take turns. A case counts as
slower if the upper quartile of its ratio is below {SLOWER}, after {LOOK_AGAIN.rounds} rounds if it looked
slower in the first {LOOK.rounds}.
{slower} of {len(rows)} are.
""",
        table(["", "", "plain's time", "cases", "slower", "worst", "median"], classes(rows)),
    ]
    if slower:
        columns = ["", "", "threads", "plain's time over fastcnn's", "quartiles", "plain, µs"]
        parts += ["\n## The slowest\n", table(columns, slowest(rows))]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=60, help="of each op")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} cases of each op")
    parser.add_argument("--out", type=Path, help="JSON; without --quick bench/results/sweep.json")
    args = parser.parse_args()
    cases = QUICK if args.quick else args.cases
    about = facts("cpu") | {"threads": " and ".join(map(str, THREADS))}
    data = {"machine_info": about, "seed": args.seed, "cases": cases, "rows": list(sweep(cases, args.seed))}
    print(page(data))
    if out := args.out or (None if args.quick else RESULTS):
        out.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
