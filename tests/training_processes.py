"""Trainings by several processes, and what a training is compared by."""

import os
import subprocess
import sys

import torch
from trainings import weights_of


def assert_same_weights(a, b):
    a, b = weights_of(a), weights_of(b)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Shared.

SMALL = ["--batch", "16", "--epochs", "2", "--dtype", "float32", "--workers", "0"]


def torchrun(data, out, *options, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [
        f"--max-restarts={restarts}",
        "-m",
        "fastcnn",
        "train",
        "--data",
        str(data),
        "--out",
        str(out),
    ]
    return subprocess.Popen(
        [*command, *SMALL, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
