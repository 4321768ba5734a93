"""Training: steps, a test after each epoch, and checkpoints from which it goes on to the same bits."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ..data import Batch, Source
from ..models.weights import reason
from . import augment, batches, checkpoint, scores, statistics
from .augment import Augment, Draws, Statistics
from .batches import Steps, seed_of
from .graph import Capture, Graph
from .plan import Epoch, Plan
from .processes import Processes
from .recipe import rate
from .scores import Scores
from .stop import Stopped
from .unread import Unread
from .weights import BEST, EVERY, LAST

_TEST_BATCH = 128
_WATCH = 20  # steps


class Training:
    """A training that stands at ``step``, of ``stop`` in all; where its checkpoint was, if there is one.

    Args:
        plan: what to do.
        processes: with whom.
        tell: gets a line about each image that is skipped, in the first process.
        capture: :func:`graph.capture`, for steps that have a whole batch; None: no graph. Never used for
            several processes, whose exchange has not been tried in a graph, nor in float16, where the paper's
            optimizer waits for the device to know whether to skip the step.
        asked: whether this process should stop.

    Raises:
        OSError, RuntimeError: :func:`checkpoint.load`'s; processes that found different checkpoints.
    """

    def __init__(
        self,
        plan: Plan,
        processes: Processes,
        tell: Callable[[str], None],
        capture: Capture | None = None,
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self.plan, self.processes, self._asked = plan, processes, asked
        self.steps = Steps(len(plan.data.train), plan.recipe.batch, plan.seed)
        self.stop = plan.recipe.epochs * self.steps.per_epoch
        # cuDNN's kernels for tensor cores work in channels_last, and convert what comes in another layout.
        on_gpu = processes.device.type == "cuda"
        self._layout = torch.channels_last if on_gpu else torch.preserve_format
        self.model = plan.model.to(processes.device, memory_format=self._layout)  # type: ignore[call-overload]
        for name in plan.frozen:
            self.model.get_submodule(name).requires_grad_(False)
        self._to_training()
        moving = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = plan.recipe.optimizer(
            moving, lr=plan.recipe.rate, weight_decay=plan.recipe.weight_decay
        )
        self._writer = checkpoint.Writer()
        self.dtype: torch.dtype = getattr(torch, plan.recipe.dtype)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=self.dtype == torch.float16)
        self.step, self.rate, self.history = 0, plan.recipe.rate, list[Epoch]()
        self.unread = Unread(plan.skip_bad, processes, tell)
        # Of this epoch and this process: as scores.sums, of the loss that is trained.
        self._sums = torch.zeros(4, dtype=torch.float64, device=processes.device)
        self._seen = torch.zeros(4, dtype=torch.float64, pin_memory=on_gpu)  # the same, some steps ago
        known = self._resume() or plan.known
        found = set(processes.gathered(self.step))
        if len(found) > 1:
            raise RuntimeError(
                f"{plan.path}: must be the same file for all processes, but they are at steps {sorted(found)}"
            )
        known = known or self._statistics()
        self.known = Statistics(*(values.to(processes.device) for values in known))
        data, recipe = plan.data, plan.recipe
        colour = recipe.colour and data.channels == 3
        self._augment = Augment(self.known, data.size, recipe.scaled, data.mirrored, colour)
        parallel = processes.number > 1
        self._parallel = DistributedDataParallel(self.model) if parallel else self.model
        self._graph: Graph | None = None
        if capture and not parallel and not self.scaler.is_enabled():
            whole = partial(self._step, plan.recipe.batch)
            self._graph = Graph(whole, processes.device, capture, tell)
        # A graph reads the rate from the device where the optimizer can; else each rate has its own graph.
        reads = self._graph is not None and self.optimizer.defaults.get("capturable", False)
        self._rate_there = torch.zeros((), device=processes.device) if reads else None

    def _resume(self) -> Statistics | None:
        """Restores the checkpoint, if there is one."""
        state = checkpoint.load(self.plan.path, self.plan.settings)
        if state is None:
            return None
        if state["step"] > self.stop:
            epochs = self.plan.recipe.epochs
            raise RuntimeError(
                f"{self.plan.path}: is at step {state['step']} already; --epochs {epochs} ends at {self.stop}"
            )
        try:
            checkpoint.check_fits(
                state,
                self.model,
                self.plan.recipe.optimizer,
                self.scaler,
                steps_per_epoch=self.steps.per_epoch,
                channels=self.plan.data.channels,
            )
            self.model.load_state_dict(state["model"])
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
            self.scaler.load_state_dict(state["scaler"])
        except Exception as error:  # what does not fit a module or an optimizer fails in many ways
            raise RuntimeError(f"{self.plan.path}: damaged: {reason(error)}") from error
        self.step = state["step"]
        self.unread.restore(state["bad"])
        self.history = [Epoch(*epoch) for epoch in state["history"]]
        if self.processes.rank == 0:
            self._sums.copy_(state["sums"])
        return Statistics(*state["statistics"])

    def _save(self) -> None:
        """Saves from the first process, if all is sound; shares which images could not be read."""
        sums = self._checked_sums()
        self.unread.share()
        if self.processes.rank == 0:
            state: dict[str, Any] = {
                "settings": dict(self.plan.settings),
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict()["state"],
                "scaler": self.scaler.state_dict(),
                "sums": sums.cpu(),
                "bad": self.unread.reasons,
                "history": [tuple(epoch) for epoch in self.history],
                "statistics": tuple(values.cpu() for values in self.known),
            }
            self._writer.start(partial(self._write, self._kept(), checkpoint.copied(state)))

    def _write(self, names: list[str], state: dict[str, Any]) -> None:
        """Writes the weights before the checkpoint: a resumed training would not write the best again."""
        for name in names:
            self.plan.write(name, state["model"], Statistics(*state["statistics"]))
        checkpoint.save(self.plan.path, state)

    def _kept(self) -> list[str]:
        """Returns the names of the weight files to write at this step."""
        errors = [epoch.error for epoch in self.history]
        ended = self.step == len(errors) * self.steps.per_epoch
        best = ended and self.plan.keep != "last" and min(errors) not in errors[:-1]
        every = ended and self.plan.keep == "all"
        return [LAST, *[BEST] * best, *[EVERY.format(len(errors))] * every]

    def _checked_sums(self) -> Tensor:
        """Sums over all processes; raises unless sums and weights are finite."""
        sums = self.processes.total(self._sums.clone())
        sound = [sums.isfinite().all(), *(p.isfinite().all() for p in self.model.parameters())]
        if not torch.stack(sound).all():
            raise self._not_finite("the loss or weights")
        return sums

    def _not_finite(self, what: str) -> RuntimeError:
        return RuntimeError(
            f"{what} became NaN or infinite at step {self.step}, at rate {self.rate:.3g}; a lower --rate may "
            f"help. {self.plan.path}, if it exists, was written before that"
        )

    def _watch(self) -> None:
        """Looks at the losses of some steps ago, without waiting for a GPU."""
        if not self._seen.isfinite().all():
            raise self._not_finite("the loss or weights")
        self._seen.copy_(self._sums, non_blocking=True)

    def so_far(self) -> Scores | None:
        """Returns this epoch's scores in this process, some steps late on a GPU; None: not known yet."""
        seen = self._sums if self.processes.device.type == "cpu" else self._seen
        return scores.means(seen, len(self.plan.data.classes)) if seen[1] else None

    def _stop(self) -> None:
        """Stops after a step if any process was asked to; several ask each other now and then."""
        several = self.processes.number > 1
        if several and self.step % _WATCH:
            return
        if self.processes.count(int(self._asked())):
            self._save()
            self._writer.wait()
            raise Stopped(f"stopped by SIGTERM at step {self.step}; --resume goes on from there")

    def run(self) -> Iterator[Epoch | None]:
        """Trains to the end: yields None after each step, and the numbers of an epoch after its test.

        Raises:
            OSError: the checkpoint can't be written; the one before stays.
            RuntimeError: an image that can't be read, without ``skip_bad``; a loss that is no number, noticed
                within twice _WATCH steps.
            Stopped: it was asked to; the checkpoint is written.
        """
        try:
            yield from self._run()
        except BaseException:  # which is told, not what may be wrong with writing, too
            self._writer.join()
            raise
        self._writer.wait()

    def _run(self) -> Iterator[Epoch | None]:
        plan = self.plan
        start, first = time.perf_counter(), self.step
        for batch in batches.training(
            plan.data.train, self.steps, self.step, self.stop, self.processes, plan.workers
        ):
            self._train(batch)
            self.step += 1
            yield None
            if self.step % self.steps.per_epoch == 0:
                self.history.append(self._end_of_epoch(self.step - first, start))
                self._save()
                yield self.history[-1]
                start, first = time.perf_counter(), self.step
            elif plan.save_every and self.step % plan.save_every == 0:
                self._save()
            if self.step % _WATCH == 0:
                self._watch()
            self._writer.check()
            self._stop()

    def _end_of_epoch(self, steps: int, start: float) -> Epoch:
        """Returns the numbers of an epoch, of which this run has made some steps since the time ``start``."""
        sums = self._checked_sums()
        images = int(sums[1])
        seconds = time.perf_counter() - start  # only now is the device done with them
        if images == 0:
            raise RuntimeError(f"no image of epoch {len(self.history) + 1} could be read")
        loss = scores.means(sums, len(self.plan.data.classes)).loss
        self._sums.zero_()
        self._seen.zero_()
        tested = self.test()
        if not math.isfinite(tested.loss):
            raise self._not_finite("the test loss")
        speed = steps / seconds * images / self.steps.per_epoch
        return Epoch(len(self.history) + 1, self.rate, loss, *tested, speed, seconds)

    def _train(self, batch: Batch) -> None:
        """Makes one step, on this process's share of its images; on a GPU, does not wait for it."""
        self.unread.add(batch.bad)
        self.rate = rate(self.plan.recipe, self.step, self.stop, [epoch.error for epoch in self.history])
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate if self._rate_there is None else self._rate_there.fill_(self.rate)
        count = self._count(batch)
        if count == 0:  # none could be read
            return
        torch.manual_seed(seed_of(self.plan.seed, self.step, self.processes.rank))  # for dropout
        inputs = self._inputs(batch)
        if self._graph and count == self.plan.recipe.batch:
            self._graph(inputs, constant=self.rate if self._rate_there is None else None)
        else:
            self._step(count, *(x.to(self.processes.device, non_blocking=True) for x in inputs))

    def _count(self, batch: Batch) -> int:
        """Returns how many of the step's images could be read, by all processes: known on the host."""
        if not self.plan.skip_bad:
            return len(self.steps.numbers(self.step))
        return self.processes.count(len(batch.images))

    def _inputs(self, batch: Batch) -> list[Tensor]:
        """Returns images, labels and what is drawn for them, out of the draws for the step's whole batch."""
        data = self.plan.data
        numbers = torch.arange(len(self.steps.numbers(self.step)))
        seed = seed_of(self.plan.seed, self.step)
        draws = augment.draw(len(numbers), data.side - data.size, data.channels, seed)
        inputs = [batch.images, batch.labels, *draws.of(self.processes.share(numbers)[batch.places])]
        # The host would wait for copies from other memory.
        return [x.pin_memory() for x in inputs] if self.processes.device.type == "cuda" else inputs

    def _step(self, count: int, images: Tensor, labels: Tensor, *draws: Tensor) -> None:
        """Does a step's work on the device, of ``count`` images in all, without a look at any value there."""
        values = self._augment.drawn(images, Draws(*draws))
        self.optimizer.zero_grad()
        *parts, last = _parts(values, labels, self.plan.accumulate)
        with self._without_exchange():
            for part in parts:
                self._backward(*part, self.processes.number / count)
        self._backward(*last, self.processes.number / count)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _backward(self, images: Tensor, labels: Tensor, weight: float) -> None:
        """Gradients of the sum of some images' losses, times ``weight``: so the mean over all processes'."""
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            answers = self._parallel(images)
        loss = self.plan.loss(answers.float(), labels) * len(images) if len(images) else answers.float().sum()
        self._sums += scores.sums(loss.detach(), answers.detach(), labels)
        self.scaler.scale(loss * weight).backward()

    def _without_exchange(self) -> contextlib.AbstractContextManager[None]:
        return getattr(self._parallel, "no_sync", contextlib.nullcontext)()

    @torch.no_grad()
    def test(self) -> Scores:
        """Tests on all processes' images; probabilities are averaged over the crops."""
        data, device = self.plan.data, self.processes.device
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.processes.agree(self.model.buffers())  # each has statistics of its own, of batch norms
        self.model.eval()
        for batch in self._read(data.test, torch.arange(len(data.test))):
            images, labels = (x.to(device, non_blocking=True) for x in (batch.images, batch.labels))
            crops = [augment.middle(images, data.size)]
            if self.plan.recipe.crops == 10:
                crops = augment.ten_crops(images, data.size, data.mirrored)
            logs = scores.averaged(map(self._scores, crops))
            sums += scores.sums(F.nll_loss(logs, labels, reduction="sum"), logs, labels)
        self._to_training()
        sums = self.processes.total(sums)
        if sums[1] == 0:
            raise RuntimeError(f"no image to test with can be read{self.unread.first()}")
        return scores.means(sums, len(data.classes))

    def _scores(self, images: Tensor) -> Tensor:
        values = self._augment.plain(images)
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(values)

    def _to_training(self) -> None:
        """Layers with weights that stay as they are stay in evaluation: their dropout and statistics, too."""
        self.model.train()
        for frozen in self.plan.frozen:
            self.model.get_submodule(frozen).eval()

    def _statistics(self) -> Statistics:
        """Computes statistics of a sample of the training set."""
        data = self.plan.data
        sample = self._read(data.train, statistics.sample(len(data.train)))
        known = statistics.of(sample, data.channels, self.processes)
        if known is None:
            raise RuntimeError(f"no image to train on can be read{self.unread.first()}")
        return known

    def _read(self, source: Source, numbers: Tensor) -> Iterator[Batch]:
        for batch in batches.all_of(source, numbers, _TEST_BATCH, self.processes, self.plan.workers):
            self.unread.add(batch.bad)
            yield batch


def _parts(images: Tensor, labels: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Splits into ``count`` parts, fewer with fewer images; one empty part where there are none."""
    count = max(1, min(count, len(images)))
    return list(zip(images.tensor_split(count), labels.tensor_split(count), strict=True))
