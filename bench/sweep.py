"""Is anything slower than plain torch? Random shapes of every op and of small networks, timed in turns.

    python bench/sweep.py [--cases 60] [--seed 0] [--quick] [--out FILE]

Each case runs in inference and in training (forward and backward), with one thread and with two. The worst
are printed, and all go to bench/results/sweep.json, from which bench/report.py writes docs/sweep.md. With
--quick there are few cases, a minute of them, and no file unless --out names one.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as TF

import fastcnn
from fastcnn import LRN, MaxPool
from fastcnn import functional as F
from fastcnn.bench.machine import facts
from fastcnn.measure import Timing, quartiles
from fastcnn.models._blocks import Classifier

RESULTS = Path(__file__).parent / "results" / "sweep.json"
THREADS = (1, 2)
MODES = ("inference", "training")
SLOWER = 0.95  # plain's time over ours, at the upper quartile, below which a case is slower beyond noise
ROUNDS, AGAIN = 9, 25  # and for a case that looks slower
LIMIT = 0.5  # seconds, after which there are five rounds at most
TURN = 1e-3  # seconds that a turn takes at least
QUICK = 4  # cases of each op
WORST = 5
Run = Callable[[], Any]


class Case(NamedTuple):
    """Names what is computed, by plain torch and by fastcnn, and whose gradients training takes."""

    what: str
    plain: Callable[[], Tensor]
    ours: Callable[[], Tensor]
    leaves: tuple[list[Tensor], list[Tensor]]


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


def of_op(what: str, plain: Callable[[], Tensor], ours: Callable[[], Tensor], *leaves: Tensor) -> Case:
    return Case(what, plain, ours, (list(leaves), list(leaves)))


def lrn_case(draw: random.Random) -> Case:
    x, size, beta = tensor(draw), draw.randrange(1, 8), draw.choice([0.75, 0.5, 1.0, 0.6])
    args = (size, 1e-4, beta, 2.0)
    return of_op(
        describe(x, size=size, beta=beta),
        lambda: TF.local_response_norm(x, *args),
        lambda: F.local_response_norm(x, *args),
        x,
    )


def pooling(draw: random.Random, x: Tensor) -> MaxPool:
    kernel = draw.randrange(1, min(6, *x.shape[2:]) + 1)
    stride, padding = draw.randrange(1, kernel + 1), draw.randrange(kernel // 2 + 1)
    return MaxPool(kernel, stride, padding, ceil_mode=draw.random() < 0.3)


def pool_case(draw: random.Random) -> Case:
    x = tensor(draw)
    pool = pooling(draw, x)
    args = (*pool.pairs, pool.ceil_mode)
    return of_op(describe(x, pool=pool), lambda: TF.max_pool2d(x, *args), lambda: F.max_pool2d(x, *args), x)


def plain_stages(a: Tensor, lrn: LRN | None, pool: MaxPool | None) -> Tensor:
    a = a.relu_()
    if lrn:
        a = TF.local_response_norm(a, lrn.size, lrn.alpha, lrn.beta, lrn.k)
    return TF.max_pool2d(a, *pool.pairs, pool.ceil_mode) if pool else a


def epilogue_case(draw: random.Random) -> Case:
    x = tensor(draw)
    bias = torch.randn(x.shape[1])
    lrn = LRN(5, k=2.0) if draw.random() < 0.5 else None
    pool = pooling(draw, x) if draw.random() < 0.7 else None
    return of_op(
        describe(x, lrn=lrn, pool=pool),
        lambda: plain_stages(x + bias[:, None, None], lrn, pool),
        lambda: F.epilogue(x, bias, lrn=lrn, pool=pool),
        x,
        bias,
    )


def block_case(draw: random.Random) -> Case:
    while True:
        x, kernel = tensor(draw), draw.choice([1, 3, 5, 11])
        out, stride, padding = 2 ** draw.randrange(2, 9), draw.randrange(1, 4), kernel // 2
        if x.numel() * out * kernel**2 / stride**2 < 1e9:
            break
    weight, bias = torch.randn(out, x.shape[1], kernel, kernel), torch.randn(out)
    lrn = LRN(5, k=2.0) if draw.random() < 0.5 else None
    pool = pooling(draw, TF.conv2d(x, weight, bias, stride, padding)) if draw.random() < 0.7 else None
    return of_op(
        describe(x, weight=list(weight.shape), stride=stride, lrn=lrn, pool=pool),
        lambda: plain_stages(TF.conv2d(x, weight, bias, stride, padding), lrn, pool),
        lambda: F.conv2d_block(x, weight, bias, stride, padding, lrn=lrn, pool=pool),
        x,
        weight,
        bias,
    )


def of_modules(what: str, x: Tensor, plain: nn.Module, ours: nn.Module) -> Case:
    leaves = list(plain.parameters()), list(ours.parameters())
    return Case(f"{list(x.shape)} {what}", lambda: plain(x), lambda: ours(x), leaves)


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
    plain = nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 10)
    )
    x = torch.randn(batch, inputs, side, side)
    letters = {nn.Conv2d: "C{0.out_channels}", nn.LocalResponseNorm: "N", nn.MaxPool2d: "P"}
    what = "-".join(letters[type(m)].format(m) for m in layers if type(m) in letters)
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
    plain, ours = (fastcnn.models.lenet5(variant, fused=fused) for fused in (False, True))
    ours.load_state_dict(plain.state_dict())
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
    for leaf in (*case.leaves[0], *case.leaves[1]):
        leaf.requires_grad_()
    grad_output = torch.randn_like(case.plain())

    def step(fn: Callable[[], Tensor], leaves: list[Tensor]) -> Run:
        return lambda: torch.autograd.grad(fn(), leaves, grad_output)

    return step(case.plain, case.leaves[0]), step(case.ours, case.leaves[1])


def seconds(fn: Run, calls: int) -> float:
    """Measures a call, on average over so many."""
    start = time.perf_counter()
    for _ in range(calls):
        fn()
    return (time.perf_counter() - start) / calls


def in_turns(plain: Run, ours: Run, rounds: int) -> tuple[Timing, float]:
    """Times both; returns plain's time over ours, of each round, and plain's median."""
    fns = (plain, ours)
    calls = [max(1, int(TURN / min(seconds(fn, 1) for _ in range(3)))) for fn in fns]
    taken: list[tuple[float, float]] = []
    start = time.perf_counter()
    for i in range(rounds):
        if i >= 5 and time.perf_counter() - start > LIMIT:
            break
        order = (0, 1) if i % 2 else (1, 0)
        turn = {j: seconds(fns[j], calls[j]) for j in order}
        taken.append((turn[0], turn[1]))
    return quartiles([a / b for a, b in taken]), quartiles([a for a, _ in taken]).median


def compare(plain: Run, ours: Run) -> dict[str, Any]:
    """Times both; a case that looks slower again, in more rounds, since chance alone makes some look so."""
    ratio, took = in_turns(plain, ours, ROUNDS)
    if ratio.median < SLOWER:
        ratio, took = in_turns(plain, ours, AGAIN)
    return {"times_faster": ratio._asdict(), "plain_seconds": took, "slower": ratio.high < SLOWER}


def sweep(cases: int, seed: int) -> Iterator[dict[str, Any]]:
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


def show(rows: list[dict[str, Any]]) -> None:
    for op in OPS:
        for mode in MODES:
            found = [row for row in rows if (row["op"], row["mode"]) == (op, mode)]
            gains = quartiles([row["times_faster"]["median"] for row in found])
            slower = sum(row["slower"] for row in found)
            print(f"{op}, {mode}: {slower} slower of {len(found)}; times faster, median {gains.median:.2f}")
    print("The worst:")
    for row in sorted(rows, key=lambda row: row["times_faster"]["median"])[:WORST]:
        low, high = (row["times_faster"][name] for name in ("low", "high"))
        what = f"{row['op']}, {row['mode']}, {row['threads']} threads, {1e6 * row['plain_seconds']:.0f} µs"
        print(f"  {row['times_faster']['median']:.2f} ({low:.2f} to {high:.2f})  {what}: {row['case']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=60, help="of each op")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} cases of each op")
    parser.add_argument("--out", type=Path, help="JSON; without --quick bench/results/sweep.json")
    args = parser.parse_args()
    cases = QUICK if args.quick else args.cases
    out = args.out or (None if args.quick else RESULTS)
    about = facts("cpu") | {"threads": " and ".join(map(str, THREADS))}
    rows = list(sweep(cases, args.seed))
    show(rows)
    if out:
        data = {"machine_info": about, "seed": args.seed, "cases": cases, "rows": rows}
        out.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
