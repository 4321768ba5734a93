"""Time the demo's cases, fused beside plain torch, into bench/results/NAME.json.

python bench/run.py NAME [--batch 32] [--repeats 15]
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch

import fastcnn
from fastcnn import _native
from fastcnn.demo import table

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """The processor's name as Linux has it, else the platform's word for it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def measure(case: table.Case, repeats: int) -> dict:
    """One case as plain data: seconds (median and quartiles), error, bytes kept for backward."""
    row = table.measure(case, repeats)
    return {
        "name": case.name,
        "seconds": {"eager": row.plain._asdict(), "fastcnn": row.fused._asdict()},
        "relative_error": row.error,
        "bytes_kept": {"eager": row.plain_kept, "fastcnn": row.fused_kept},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    result = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": {"fastcnn": fastcnn.__version__, "torch": torch.__version__},
        "extension": _native.load().build_info(),
        "batch": args.batch,
        "cases": [measure(case, args.repeats) for case in table.cases(args.batch)],
    }
    path = RESULTS / f"{args.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
