"""Is anything slower than plain torch? Random shapes and options of every op, timed in turns.

python bench/sweep.py [--cases 200] [--seed 0]

Prints the quartiles of plain's time over fastcnn's and the worst cases; writes bench/results/sweep.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as TF

import fastcnn
from fastcnn import LRN, MaxPool
from fastcnn import functional as F

RESULTS = Path(__file__).parent / "results" / "sweep.json"
LONG = 500e-6  # seconds; below, it is the call's own time in Python that tells
Pair = tuple[str, Callable[[], Tensor], Callable[[], Tensor]]


def tensor(draw: random.Random) -> Tensor:
    """Up to 4 million values, of any shape from one pixel to a large map, in either format."""
    while True:
        n, c = 2 ** draw.randrange(7), draw.randrange(1, 2 ** draw.randrange(1, 10))
        h, w = (draw.randrange(1, 2 ** draw.randrange(2, 9)) for _ in range(2))
        if n * c * h * w <= 4 << 20:
            break
    format = draw.choice([torch.contiguous_format, torch.channels_last])
    return torch.randn(n, c, h, w).contiguous(memory_format=format)


def describe(x: Tensor, **options: object) -> str:
    format = "NCHW" if x.is_contiguous() else "channels_last"
    return f"{list(x.shape)} {format} " + " ".join(f"{k}={v}" for k, v in options.items())


def lrn_case(draw: random.Random) -> Pair:
    x, size, beta = tensor(draw), draw.randrange(1, 8), draw.choice([0.75, 0.5, 1.0, 0.6])
    args = (size, 1e-4, beta, 2.0)
    return (
        describe(x, size=size, beta=beta),
        lambda: TF.local_response_norm(x, *args),
        lambda: F.local_response_norm(x, *args),
    )


def pooling(draw: random.Random, x: Tensor) -> MaxPool:
    kernel = draw.randrange(1, min(6, *x.shape[2:]) + 1)
    stride, padding = draw.randrange(1, kernel + 1), draw.randrange(kernel // 2 + 1)
    return MaxPool(kernel, stride, padding, ceil_mode=draw.random() < 0.3)


def pool_case(draw: random.Random) -> Pair:
    x = tensor(draw)
    pool = pooling(draw, x)
    args = (*pool.pairs, pool.ceil_mode)
    return describe(x, pool=pool), lambda: TF.max_pool2d(x, *args), lambda: F.max_pool2d(x, *args)


def plain_stages(a: Tensor, lrn: LRN | None, pool: MaxPool | None) -> Tensor:
    a = a.relu_()
    if lrn:
        a = TF.local_response_norm(a, lrn.size, lrn.alpha, lrn.beta, lrn.k)
    return TF.max_pool2d(a, *pool.pairs, pool.ceil_mode) if pool else a


def epilogue_case(draw: random.Random) -> Pair:
    x = tensor(draw)
    bias = torch.randn(x.shape[1])
    lrn = LRN(5, k=2.0) if draw.random() < 0.5 else None
    pool = pooling(draw, x) if draw.random() < 0.7 else None
    return (
        describe(x, lrn=lrn, pool=pool),
        lambda: plain_stages(x + bias[:, None, None], lrn, pool),
        lambda: F.epilogue(x, bias, lrn=lrn, pool=pool),
    )


def block_case(draw: random.Random) -> Pair:
    while True:
        x, kernel = tensor(draw), draw.choice([1, 3, 5, 11])
        out, stride, padding = 2 ** draw.randrange(2, 9), draw.randrange(1, 4), kernel // 2
        work = x.numel() * out * kernel**2 / stride**2
        if work < 1e9:
            break
    weight, bias = torch.randn(out, x.shape[1], kernel, kernel), torch.randn(out)
    lrn = LRN(5, k=2.0) if draw.random() < 0.5 else None
    a = TF.conv2d(x, weight, bias, stride, padding)
    pool = pooling(draw, a) if draw.random() < 0.7 else None
    return (
        describe(x, weight=list(weight.shape), stride=stride, lrn=lrn, pool=pool),
        lambda: plain_stages(TF.conv2d(x, weight, bias, stride, padding), lrn, pool),
        lambda: F.conv2d_block(x, weight, bias, stride, padding, lrn=lrn, pool=pool),
    )


OPS = {
    "local_response_norm": lrn_case,
    "max_pool2d": pool_case,
    "epilogue": epilogue_case,
    "conv2d_block": block_case,
}


def seconds(fn: Callable[[], Tensor], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        fn()
    return (time.perf_counter() - start) / calls


def ratio(plain: Callable[[], Tensor], ours: Callable[[], Tensor]) -> tuple[float, float]:
    """Plain's time over ours, the median of turns, and plain's time."""
    fns = (plain, ours)
    calls = [max(1, int(1e-3 / seconds(fn, 2))) for fn in fns]
    rounds = [[seconds(fn, n) for fn, n in zip(fns, calls, strict=True)] for _ in range(9)]
    return statistics.median(a / b for a, b in rounds), statistics.median(a for a, _ in rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    result: dict = {
        "seed": args.seed,
        "threads": torch.get_num_threads(),
        "versions": {"fastcnn": fastcnn.__version__, "torch": torch.__version__},
    }
    torch.set_grad_enabled(False)
    for name, make in OPS.items():
        draw = random.Random(args.seed)
        torch.manual_seed(args.seed)
        rows = []
        for _ in range(args.cases):
            what, plain, ours = make(draw)
            times_faster, took = ratio(plain, ours)
            rows.append({"case": what, "times_faster": times_faster, "plain_seconds": took})
        rows.sort(key=lambda row: row["times_faster"])
        gains = [row["times_faster"] for row in rows]
        low, median, high = statistics.quantiles(gains, n=4)
        long = [row for row in rows if row["plain_seconds"] > LONG]
        result[name] = {"quartiles": [low, median, high], "worst": rows[:5], "worst_long": long[:5]}
        print(f"{name}: times faster, quartiles {low:.1f} {median:.1f} {high:.1f}")
        for of, what in ((rows, "all"), (long, f"those over {LONG * 1e6:.0f} µs")):
            slower = sum(row["times_faster"] < 1 for row in of)
            print(f"  {slower} slower of {len(of)}, {what}; the worst:")
            for row in of[:3]:
                took = f"{row['plain_seconds'] * 1e6:.0f} µs"
                print(f"    {row['times_faster']:.2f}  ({took})  {row['case']}")
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
