"""How long a run is: the total number of steps, by epochs or by the clock, and how far along it stands.

With a time limit the total follows from the measured speed. It may be planned anew while the run goes on; then the
progress goes on from where it stands, so that the learning rate never jumps, and still ends at one.
"""

from __future__ import annotations

from typing import Any

TOLERANCE = 0.05  # share of the steps left by which the plan may be off before it is made anew
LOOKAHEAD = 0.25  # seconds in which the loop does not look at the clock
MARGIN = 0.97  # share of the time that is planned; the rest absorbs what was not foreseen


class Pace:
    """Steps done against steps planned."""

    def __init__(self, steps_per_epoch: int, epochs: int, minutes: float, evaluate_every: int = 1) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.evaluate_every = evaluate_every  # epochs
        self.most = steps_per_epoch * epochs
        self.limit = minutes * 60  # seconds; 0: none
        self.total = self.most
        self._step, self._progress = 0, 0.0  # where the present plan began

    def progress(self, step: int) -> float:
        """Return the share of the run done in the middle of a step, so that no step has a learning rate of zero."""
        ahead = self.total - self._step
        done = min(1.0, max(0.0, (step - self._step + 0.5) / ahead)) if ahead > 0 else 1.0
        return self._progress + (1 - self._progress) * done

    def plan(self, step: int, elapsed: float, step_seconds: float, validation_seconds: float) -> None:
        """Set the total so that training and validation end within the limit.

        Args:
            step: steps done.
            elapsed: seconds used up, with those that closing the run will need.
            step_seconds: of one step.
            validation_seconds: of one validation.
        """
        self._move(step, self._affordable(step, elapsed, step_seconds, validation_seconds))

    def _affordable(self, step: int, elapsed: float, step_seconds: float, validation_seconds: float) -> int:
        each = step_seconds + validation_seconds / (self.steps_per_epoch * self.evaluate_every)
        left = max(0.0, self.limit * MARGIN - elapsed - validation_seconds)  # the last validation comes on top
        return min(self.most, step + max(1, int(left / max(each, 1e-9))))

    def _move(self, step: int, total: int) -> None:
        """Go on from the present progress towards another end."""
        self._progress = self.progress(step - 1) if step > self._step else self._progress
        self._step, self.total = step, total

    def adjust(self, step: int, elapsed: float, step_seconds: float, validation_seconds: float) -> None:
        """Plan anew if the time would be missed by more than a twentieth, and end at once where it is used up."""
        if not self.limit:
            return
        if elapsed + validation_seconds + max(step_seconds, LOOKAHEAD) > self.limit:
            self.total = step
            return
        total = self._affordable(step, elapsed, step_seconds, validation_seconds)
        if abs(total - self.total) > TOLERANCE * (self.total - step) and total != self.total:
            self._move(step, total)

    def state(self) -> list[Any]:
        return [self.total, self._step, self._progress]

    def restore(self, state: list[Any]) -> None:
        self.total, self._step, self._progress = state
