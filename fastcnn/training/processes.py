"""One process, or several that torchrun started."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous


class Processes(NamedTuple):
    """This process: its number, how many there are, and its device."""

    rank: int
    number: int
    device: torch.device

    def total(self, values: Tensor) -> Tensor:
        """Sums a tensor over all processes, in place."""
        if self.number > 1:
            dist.all_reduce(values)
        return values

    def count(self, number: int) -> int:
        """Sums a host number over all processes, without waiting for the device."""
        return number if self.number == 1 else int(self.total(torch.tensor(number)))

    def agree(self, values: Iterable[Tensor]) -> None:
        """Broadcasts the first process's values to all."""
        for value in values if self.number > 1 else ():
            dist.broadcast(value, 0)

    def gathered(self, value: Any) -> list[Any]:
        """Returns every process's ``value``, by rank."""
        values = [value] * self.number
        if self.number > 1:
            dist.all_gather_object(values, value)
        return values

    def share(self, numbers: Tensor) -> Tensor:
        """Returns this process's part of (n,): parts differ by one at most, and none overlap."""
        return numbers.tensor_split(self.number)[self.rank]


@contextlib.contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Joins the other processes, by gloo on CPUs and NCCL on GPUs; alone without torchrun's environment.

    Raises:
        RuntimeError: ``device`` is "cuda" and there is none for this process.
    """
    count, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda" and torch.cuda.device_count() <= local:
        raise RuntimeError(f"--device cuda: process {local} here has no GPU of {torch.cuda.device_count()}")
    here = torch.device(device, local) if device == "cuda" else torch.device(device)
    if count == 1:
        yield Processes(0, 1, here)
        return
    if device == "cuda":
        torch.cuda.set_device(here)
    store, rank, count = next(rendezvous("env://"))
    # After a restart torchrun's store still has the addresses of those before (torch 2.13).
    store = PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    # Gloo also for GPUs: what the host has to know would wait for the device if it went through NCCL.
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count)
    yield Processes(rank, count, here)  # after an error, the others may never come to what is below
    dist.barrier()  # who leaves early takes its connections with it
    # Gloo's threads outlive the group (DistributedDataParallel leaks it, torch 2.13), and one that lets go of
    # a tensor while the interpreter shuts down aborts the process, now and then on a busy machine.
    time.sleep(0.3)
    dist.destroy_process_group()


def report(error: str) -> bool:
    """Writes this process's error for torchrun's report; returns whether it is the first on this machine.

    The others' errors mostly follow from the first, which closed their connections. torchrun takes the
    earliest for the cause, to the second (torch 2.13, torch/distributed/elastic/multiprocessing/errors).
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # FOLDER/LOCAL_RANK/error.json
    if not file:
        return True
    path = Path(file)
    try:
        with _locked(path.parent.parent):
            first = not any(path.parent.parent.glob(f"*/{path.name}"))
            about = {"timestamp": str(int(time.time()) + (not first))}
            path.write_text(json.dumps({"message": {"message": error, "extraInfo": about}}))
    except OSError:
        return True
    return first


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
