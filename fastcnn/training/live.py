"""A training's numbers while it runs."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import NamedTuple

from .loop import Training
from .plan import Epoch
from .scores import Scores


class Moment(NamedTuple):
    """Loss and errors of an epoch's training images so far, as shares of them; None: not known yet."""

    step: int
    epoch: int
    rate: float
    loss: float | None
    error: float | None
    error5: float | None
    images_per_second: float | None  # since the moment before, without tests
    seconds: float  # since the run began


class Watch:
    """Looks at a training after its first step, and then every so many seconds."""

    def __init__(self, training: Training, every: float) -> None:
        self._training, self._every = training, every
        self._start = self._stepped = time.perf_counter()
        self._last: tuple[int, float] | None = None  # step and time of the moment before
        self._known: Scores | None = None
        self._test = 0.0  # seconds that an epoch's test took

    def look(self, epoch: Epoch | None) -> Moment | None:
        """Takes what ``Training.run`` yields; returns None if it is too early, or nothing new is known."""
        now, stepped = time.perf_counter(), self._stepped
        self._stepped = now
        if epoch:
            self._test = now - stepped
            self._last = self._last and (self._last[0], self._last[1] + self._test)
            return None
        if self._last and now - self._last[1] < self._every:
            return None
        known = self._training.so_far()
        if self._last and known == self._known:
            return None
        speed, self._known = self._speed(now), known
        self._last = (self._training.step, now)
        return self._moment(known, speed, now - self._start)

    def _speed(self, now: float) -> float | None:
        if self._last is None:  # the first step also starts workers and chooses kernels
            return None
        step, then = self._last
        return (self._training.step - step) * self._training.plan.recipe.batch / (now - then)

    def _moment(self, known: Scores | None, speed: float | None, seconds: float) -> Moment:
        at = self._training
        loss, error, error5 = known or (None, None, None)
        return Moment(at.step, len(at.history) + 1, at.rate, loss, error, error5, speed, seconds)

    def text(self, moment: Moment) -> str:
        """Returns what is known at a moment, and the time to go, for people."""
        parts = list[str]()
        if moment.loss is not None:
            parts += [f"loss {moment.loss:.4f}, top-1 error {moment.error:.1%}"]
        if moment.error5 is not None:
            parts += [f"top-5 error {moment.error5:.1%}"]
        if moment.images_per_second:
            to_go = timedelta(seconds=round(self._to_go(moment.images_per_second)))
            parts += [f"{moment.images_per_second:,.0f} images/s, {to_go} to go"]
        return ", ".join(parts)

    def _to_go(self, images_per_second: float) -> float:
        training, recipe = self._training, self._training.plan.recipe
        steps, tests = training.stop - training.step, recipe.epochs - len(training.history)
        return steps * recipe.batch / images_per_second + tests * self._test
