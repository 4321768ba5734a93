"""Images that can't be read: an error, or skipped and told."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .processes import Processes


class Unread:
    """The images that could not be read so far, and why, by path.

    Args:
        skip: go on without them.
        processes: which tell each other, where several train.
        tell: gets a line about each image, once.
    """

    def __init__(self, skip: bool, processes: Processes, tell: Callable[[str], None]) -> None:
        self.reasons: dict[str, str] = {}
        self._skip, self._processes, self._tell = skip, processes, tell
        self._told: set[str] = set()

    def add(self, reasons: Mapping[str, str]) -> None:
        """Takes a batch's; without ``skip``, raises RuntimeError for the first."""
        if reasons and not self._skip:
            path, why = next(iter(reasons.items()))
            raise RuntimeError(f"can't read {path}: {why}; --skip-bad goes on without such images")
        self.reasons |= reasons

    def share(self) -> None:
        """Makes what any process found known to all, and tells what is new; every process must call it."""
        for reasons in self._processes.gathered(self.reasons):
            self.reasons = self.reasons | reasons
        for path in sorted(self.reasons.keys() - self._told):
            self._tell(f"skipped {path}: {self.reasons[path]}")
        self._told = set(self.reasons)

    def restore(self, reasons: Mapping[str, str]) -> None:
        """Takes those of a checkpoint, which have been told."""
        self.reasons = dict(reasons)
        self._told = set(reasons)

    def first(self) -> str:
        """Returns the end of a message that names one; empty if there is none."""
        return next((f"; {path}: {why}" for path, why in self.reasons.items()), "")
