"""How long a run is: the total number of steps, by epochs or by the clock, and how far along it stands.

With a time limit the total follows from the measured speed. It may be planned anew while the run goes on; then the
progress goes on from where it stands, so that the learning rate never jumps, and still ends at one.
"""

from __future__ import annotations

from typing import Any

MARGIN = 0.97  # share of the time that is planned; the rest absorbs what was not foreseen


class Pace:
    """Steps done against steps planned."""

    def __init__(self, steps_per_epoch: int, epochs: int, minutes: float) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.most = steps_per_epoch * epochs
        self.limit = minutes * 60  # seconds; 0: none
        self.total = self.most
        self._step, self._progress = 0, 0.0  # where the present plan began

    def progress(self, step: int) -> float:
        """Return the share of the run done in the middle of a step, so that no step has a learning rate of zero."""
        ahead = self.total - self._step
        done = min(1.0, (step - self._step + 0.5) / ahead) if ahead > 0 else 1.0
        return self._progress + (1 - self._progress) * done

    def plan(self, step: int, elapsed: float, step_seconds: float, validation_seconds: float) -> None:
        """Set the total so that training and validation end within the limit."""
        each = step_seconds + validation_seconds / self.steps_per_epoch  # one validation an epoch
        left = max(0.0, self.limit * MARGIN - elapsed - validation_seconds)  # the last validation comes on top
        total = min(self.most, step + max(1, int(left / max(each, 1e-9))))
        if total != self.total:
            self._progress = self._progress if step == self._step else self.progress(step - 1)
            self._step, self.total = step, total

    def state(self) -> list[Any]:
        return [self.total, self._step, self._progress]

    def restore(self, state: list[Any]) -> None:
        self.total, self._step, self._progress = state
