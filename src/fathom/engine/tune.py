"""Before the first step: measure what is fastest here, on the real step, and keep that.

Threads (beside a busy neighbour one is often faster than two), memory layout of convolutions, and precision are tried
in turn, each in short rounds that alternate, so that a disturbance meets all of them. A change must gain at least a
tenth. bf16 must also give the same losses. All of the run's state is put back afterwards: only the knobs remain.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from fathom.engine import order, weights
from fathom.engine.checkpoint import Snapshot
from fathom.engine.records import Chose
from fathom.engine.run import Knobs, Run

SHARE = 0.05  # of the run's estimated time goes into measuring
LONGEST = 20.0  # seconds, at most
WORTH = 1.1  # a change must be this much faster
ROUNDS = 2
SAME_LOSS = 0.05  # relative difference that bf16's first losses may have


def tune(run: Run) -> list[Chose]:
    """Turn the run's knobs to what is fastest, plan its length if it has a time limit, and return what was chosen."""
    run.turn_knobs()
    tried = [(what, settings) for what, settings in (_threads(run), _layouts(run), _precisions(run)) if settings[1:]]
    if not tried and not run.plan.minutes:
        return []
    before = _keep(run)
    trial = _Trial(run)
    try:
        trial.steps(2, 0.0)  # the first steps allocate and plan; they say little
        base = _mean(trial.steps(3, 0.0))
        length = run.plan.minutes * 60 or base * run.pace.total
        each = min(LONGEST, SHARE * length) / (max(1, len(tried)) * ROUNDS)
        # A run too short to measure two steps of two settings in every round is left as it is.
        chosen = [_choose(run, trial, before, *one, each) for one in tried if each > 2 * 2 * base]
        return chosen + ([_plan(run, trial)] if run.plan.minutes else [])
    finally:
        _put_back(run, before)


def _choose(run: Run, trial: _Trial, before: Snapshot, what: str, settings: Sequence[Any], seconds: float) -> Chose:
    """Measure the settings of one knob, the present one first, for so long a round, and turn it to the best."""
    knobs = [replace(run.knobs, **{what: value}) for value in settings]
    taken = trial.compare(knobs, seconds / len(settings))
    why = "; ".join(f"{_say(what, v)}: {s * 1e3:.3g} ms a step" for v, s in zip(settings, taken, strict=True))
    best = min(range(len(settings)), key=lambda i: taken[i])
    if taken[best] * WORTH > taken[0]:
        best = 0
    elif what == "precision" and not _same_losses(run, before, knobs[best]):
        best, why = 0, f"{why}; but the losses differ"
    run.knobs = knobs[best]
    run.turn_knobs()
    return Chose(what=what, value=_say(what, settings[best]), why=why, gain=taken[0] / taken[best])


class _Trial:
    """Real training steps, timed."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.batches = order.batches(run.rows, run.plan.batch_size, run.plan.seed, 0)

    def steps(self, least: int, seconds: float) -> list[float]:
        """Return the seconds of each of at least so many steps, taken for at least so long."""
        times: list[float] = []
        while len(times) < least or sum(times) < seconds:
            began = time.perf_counter()
            self.run.train_on(self.batches[self.run.step % len(self.batches)])
            if self.run.device.type == "cuda":
                torch.cuda.synchronize(self.run.device)
            times.append(time.perf_counter() - began)
        return times

    def compare(self, settings: Sequence[Knobs], seconds: float) -> list[float]:
        """Return the mean seconds a step of each setting, over rounds that take turns."""
        kept, times = self.run.knobs, [[0.0, 0] for _ in settings]
        for _ in range(ROUNDS):
            for entry, setting in zip(times, settings, strict=True):
                self.run.knobs = setting
                self.run.turn_knobs()
                self.steps(1, 0.0)
                taken = self.steps(1, seconds)
                entry[0] += sum(taken)
                entry[1] += len(taken)
        self.run.knobs = kept
        self.run.turn_knobs()
        return [total / count for total, count in times]


def _threads(run: Run) -> tuple[str, list[int]]:
    """All threads first; then one, and on a large machine a half and a quarter."""
    most = run.knobs.threads
    if run.plan.threads or run.device.type != "cpu" or most == 1:
        return "threads", [most]
    return "threads", list(dict.fromkeys([most, 1, *([most // 2, most // 4] if most >= 8 else [])]))


def _layouts(run: Run) -> tuple[str, list[bool]]:
    kernels = any(p.ndim == 4 and p.shape[-1] > 1 for p in run.objective.parameters())
    return "channels_last", [False, True] if run.plan.channels_last == "auto" and kernels else [run.knobs.channels_last]


def _precisions(run: Run) -> tuple[str, list[str]]:
    """bf16 is tried where the processor computes in it; elsewhere it is emulated and slow."""
    able = run.plan.precision == "auto"
    if run.device.type == "cuda":
        able = able and torch.cuda.is_bf16_supported(including_emulation=False)
    elif run.device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64"):
        able = able and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "precision", ["fp32", "bf16"] if able else [run.knobs.precision]


def _say(what: str, value: object) -> str:
    if what == "threads":
        return f"{value} thread{'s' if value != 1 else ''}"
    return str(value) if what == "precision" else "channels last" if value else "channels first"


def _same_losses(run: Run, before: Snapshot, knobs: Knobs) -> bool:
    """Take the same first steps in both precisions, and compare the mean loss."""
    means = []
    kept = run.knobs
    for setting in (kept, knobs):
        run.knobs = setting
        _put_back(run, before)
        _Trial(run).steps(min(10, run.pace.total), 0.0)
        means.append(next(iter(run.stepper.meter.means().values()), float("nan")))
    run.knobs = kept
    return abs(means[0] - means[1]) <= SAME_LOSS * abs(means[0])


def _plan(run: Run, trial: _Trial) -> Chose:
    """Set the number of steps by the speed of the settings that were chosen."""
    seconds = _mean(trial.steps(3, min(2.0, SHARE * run.plan.minutes * 60)))
    validation = run.time_validation()
    run.pace.plan(0, run.seconds, seconds, validation)
    why = f"{seconds * 1e3:.3g} ms a step, {validation:.2g} s a validation, {run.plan.minutes:g} minutes in all"
    return Chose(what="steps", value=str(run.pace.total), why=why)


def _keep(run: Run) -> Snapshot:
    snapshot = run.snapshot()
    return Snapshot(weights.copy(snapshot.tensors), snapshot.values)


def _put_back(run: Run, before: Snapshot) -> None:
    run.turn_knobs()
    run.rewind(before)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
