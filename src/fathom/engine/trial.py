"""Real training steps, timed: how settings are compared, in turns, for no longer than it takes to tell them apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from fathom.engine.knobs import Knobs
from fathom.engine.run import Run

ROUNDS = (2, 7)  # least and most turns that settings take
CLEAR = 0.05  # by which the gain of every turn is off what is worth it: no further turn is needed
TURN = 0.06  # seconds that a setting is measured for in a turn, at most: of a step that takes longer, one
WARM = {"plain": 1, "recorded": 7, "compiled": 2}  # steps of each form before it is timed: recording, its proofs
PART = 4  # rows of the smallest part of a batch that stands for a whole one; of a batch below 16, a quarter
WHOLE = 0.4  # seconds in which four steps on whole batches are taken, whatever the run's length


class Trial:
    """Steps of a run, to be rewound afterwards.

    Attributes:
        rows: that a step is taken on: of a whole batch, or of a part that stands for it.
        part: rows of the smallest part.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.batches = run.order.batches(0)
        self.whole = self.rows = len(self.batches[0])
        self.part = min(PART, max(1, self.whole // 4))
        self._each = 0.0  # seconds that a row adds to a step; 0 where that is not known
        self._last = 0.0  # seconds of the last step

    def begin(self, known: float = 0.0) -> float:
        """Return the seconds of a step on a whole batch: measured, or by those of two parts where it takes long.

        Args:
            known: seconds of a step on the smallest part, where they were measured before.
        """
        small = 0.0
        if self.whole >= 4 * self.part:
            small, twice = known or self.part_seconds(self.part), self.part_seconds(2 * self.part)
            self._each = max(0.0, twice - small) / self.part
            seconds = min(twice + (self.whole - 2 * self.part) * self._each, twice * self.whole / (2 * self.part))
            if 4 * seconds > WHOLE:
                return seconds
        self.steps(1)
        seconds = self.mean(0.0)
        self._each = max(0.0, seconds - small) / (self.whole - self.part) if small else 0.0
        return seconds

    def shrink(self, base: float, seconds: float) -> None:
        """Take steps of about so many seconds, on a part of a batch where a whole one takes longer (`base`)."""
        if base > seconds and self._each:
            fewer = int(self.whole - (base - seconds) / self._each)
            self.rows = max(self.part, fewer)

    def seconds(self, base: float) -> float:
        """Return the seconds of the steps that are taken, where one on a whole batch takes `base`."""
        return base - (self.whole - self.rows) * self._each

    def part_seconds(self, rows: int) -> float:
        """Return the seconds of a step on so many rows of a batch."""
        self.rows, whole = rows, self.rows
        self.steps(1)  # the first step allocates and plans; it says little
        seconds = self.steps(1)[0]
        if seconds < TURN:
            seconds = min(seconds, *self.steps(1))
        self.rows = whole
        return seconds

    def steps(self, least: int, seconds: float = 0.0) -> list[float]:
        """Return the seconds of each of at least so many steps, taken for at least so long."""
        times: list[float] = []
        while len(times) < least or sum(times) < seconds:
            index = self.batches[self.run.step % len(self.batches)][: self.rows]
            self.run.data.train.soon(index)
            began = time.perf_counter()
            self.run.train_on(index)
            if self.run.device.type == "cuda":
                torch.cuda.synchronize(self.run.device)
            self._last = time.perf_counter() - began
            times.append(self._last)
        return times

    def mean(self, seconds: float) -> float:
        """Return the mean seconds of a step, of three at least and for at least so long."""
        return _mean(self.steps(3, seconds))

    def each_shape(self) -> None:
        """Take a step on a batch of each size that an epoch has."""
        for batch in {len(batch): batch for batch in self.batches}.values():
            self.run.train_on(batch[: self.rows])

    def compare(self, settings: Sequence[Knobs], seconds: float, worth: float = 1.0) -> list[float]:
        """Return the seconds a step of each setting.

        They take turns, twice at least (once where that takes more than twice the time there is); then until every turn
        says alike whether a setting is so many times as fast as the first (`worth`), or the time is up. What counts is
        the middle of the turns' ratios, so that what disturbs one turn, or the whole machine for a while, does not.
        """
        turns: list[list[float]] = []
        kept, began = self.run.knobs, time.perf_counter()
        turn = min(TURN, seconds / (len(settings) * ROUNDS[1]))
        try:
            while True:
                turns.append([self._turn(setting, not turns, turn) for setting in settings])
                taken = time.perf_counter() - began
                over = len(turns) == ROUNDS[1] or taken * (1 + 1 / len(turns)) > seconds
                least = ROUNDS[0] if taken <= 2 * seconds else 1
                if len(turns) >= least and (over or _clear(turns, worth)):
                    break
        finally:
            self.run.knobs = kept
            self.run.turn_knobs()
        first = statistics.median(each[0] for each in turns)
        return [first / statistics.median(each[0] / each[i] for each in turns) for i in range(len(settings))]

    def _turn(self, setting: Knobs, first: bool, seconds: float) -> float:
        """Return the mean seconds of a setting's steps in one turn."""
        self.run.knobs = setting
        self.run.turn_knobs()
        if self._last < TURN or setting.form != "plain":  # a long plain step is not told from its first
            self.steps(WARM[setting.form] if first else 1)
        return _mean(self.steps(1, seconds))


def _clear(turns: Sequence[Sequence[float]], worth: float) -> bool:
    """Whether every turn says the same of each setting beside the first: worth it by far, or not by far."""
    for i in range(1, len(turns[0])):
        gains = [each[0] / each[i] / worth for each in turns]
        if not (min(gains) > 1 + CLEAR or max(gains) < 1 - CLEAR):
            return False
    return True


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
