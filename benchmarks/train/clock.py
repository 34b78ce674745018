"""What a library's run is measured by: a tick after each step (or each few), and the end when time is up."""

from __future__ import annotations

import os
import resource
import time

BEGAN = "FATHOM_BENCHMARK_BEGAN"  # seconds since 1970 at which the parent started this process
WARM_STEPS, WARM_SHARE = 3, 0.25  # both must have passed before anything counts


class TimeIsUpError(Exception):
    """Time is up."""


class Clock:
    """Counts samples from when a run is warm.

    Args:
        seconds: to count for.
        goal: the loss to time.
    """

    def __init__(self, seconds: float, goal: float) -> None:
        self.seconds, self.goal = seconds, goal
        self.began = float(os.environ.get(BEGAN, time.time()))
        self.first = self.reached = 0.0  # seconds from the start of the process
        self._first_tick = self._warm_at = self._last = 0.0
        self._ticks = self._samples = 0
        self._loss: float | None = None
        self.extra: dict[str, float | str] = {}

    def started(self) -> None:
        """The first step has been finished."""
        if not self.first:
            self.first = time.time() - self.began

    def learned(self, loss: float) -> None:
        """Take in the loss of a step; several are averaged."""
        self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss
        if not self.reached and self._loss < self.goal:
            self.reached = time.time() - self.began

    @property
    def over(self) -> bool:
        return bool(self._warm_at) and time.perf_counter() - self._warm_at > self.seconds

    def tick(self, samples: int) -> bool:
        """So many more samples were trained on; return whether time is up."""
        now = time.perf_counter()
        self.started()
        self._ticks += 1
        self._first_tick = self._first_tick or now
        if self._warm_at:
            self._samples += samples
            self._last = now
        elif self._ticks >= WARM_STEPS and now - self._first_tick >= WARM_SHARE * self.seconds:
            self._warm_at = now
        return self.over and self._samples > 0

    def result(self) -> dict[str, float | str]:
        return {
            "samples_per_second": self._samples / (self._last - self._warm_at),
            "startup_seconds": self.first,
            "goal_seconds": self.reached,
            "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        } | self.extra
