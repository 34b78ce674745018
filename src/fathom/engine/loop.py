"""The training loop: one generator for every objective.

    for record in train(objective, data, plan, folder):
        print(record)

There are no callbacks: who wants to watch reads the records, who wants to stop closes the generator. Only pictures are
handed to `keep`: they have to be on disk before a checkpoint says that they were taken.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fathom.core.ahead import announced
from fathom.core.errors import TrainingError
from fathom.core.objective import Objective
from fathom.core.types import TrainingData
from fathom.engine import account
from fathom.engine.distributed import restarted
from fathom.engine.fingerprint import made_with
from fathom.engine.interrupt import Interrupts
from fathom.engine.plan import Plan
from fathom.engine.records import Record, Saved, Warned
from fathom.engine.recount import recount
from fathom.engine.run import Run
from fathom.engine.saving import SHARE, Saver
from fathom.engine.showing import Keep
from fathom.engine.tune import tune

LOOK_SECONDS = 0.2  # between two looks up from the work
EPOCH_SECONDS = 10.0  # an epoch's end is saved when the last checkpoint is older than this


def train(
    objective: Objective,
    data: TrainingData,
    plan: Plan,
    folder: Path | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    keep: Keep | None = None,
) -> Iterator[Record]:
    """Train `objective` in place and yield what happens.

    When the generator ends, the objective holds the chosen weights: the best by the first validation metric (from
    the moving average, if one is kept), or the last. Closing it early saves a checkpoint and does the same.

    Args:
        objective: what to train; its phases, averages and losses are all the engine knows of it.
        data: samples to learn from and to choose by.
        plan: how to train.
        folder: where checkpoints go; None for none. Checkpoints of an earlier run there are removed once this
            run has written its first.
        resume: go on from the newest whole checkpoint in `folder`. The result equals, to the bit, that of a run
            that was never interrupted (where the plan sets no time limit: there the clock decides).
        identity: further options, as JSON holds them, that an interrupted run must have had too.
        keep: is given what the objective shows, of the same rows at a few of the validations, and the pass's number:
            in one process, where it holds the whole model. A pass may come again after a resume, with the same.

    Raises:
        ConfigError: the plan does not fit this machine, or the checkpoint belongs to another run.
        DataError: there are no training rows.
        TrainingError: losses stay not-a-number, memory ran out, or a checkpoint cannot be written.
    """
    session = _Session(Run(objective, data, plan, identity), folder, resume)
    if session.run.world.leads and session.run.sharding is None:
        session.run.showing.keep = keep
    records, random = session.records(), session.run.random
    random.swap()
    try:
        while True:
            with session.interrupts:
                record = next(records, None)
            if session.leaving:
                session.save()
            random.swap()  # the caller's random numbers are the caller's
            try:
                if session.leaving or record is None:
                    session.interrupts.deliver()
                if record is None:
                    return
                yield record
            except BaseException:  # the caller leaves
                random.swap()
                try:
                    session.stop()
                finally:
                    random.swap()
                raise
            finally:
                random.swap()
    finally:
        session.settle()
        session.run.leave()
        random.swap()


class _Session:
    """A run within one process: when it looks up, reports and saves."""

    def __init__(self, run: Run, folder: Path | None, resume: bool) -> None:
        self.run = run
        self.folder, self.resume = folder, resume or (folder is not None and restarted())
        self.saver = Saver(Path(folder)) if folder is not None and run.world.leads else None
        self.interrupts = Interrupts()
        self._agreed = False  # all processes know of a signal, and leave
        self._ready = False  # the run's state is that of the run, not what the caller gave
        self._best_changed = False
        self._saved = (-1, "")  # step and reason of the state that the newest checkpoint holds
        self._saved_at = self._looked_at = time.perf_counter()
        self._saving_seconds = 0.0  # from the copy to the disk
        self._saving_cost = 0.0  # what training lost by it

    @property
    def leaving(self) -> bool:
        """Whether a signal is to be delivered now: at once, but where several processes leave together."""
        return self.interrupts.pending is not None and (self.run.world.size == 1 or self._agreed)

    def records(self) -> Iterator[Record]:
        run = self.run
        yield from self._begin()
        run.begin()
        while not run.reason:
            yield from self._epoch()
        yield from self._save(wait=True)
        kept = run.choose_weights()
        if run.objective.recounts and run.sharding is None:
            recount(run.objective, run.data.train, -(-run.plan.batch_size // run.knobs.accumulate), run.move)
        yield account.finished(run, kept)

    def stop(self) -> None:
        """The caller leaves, between two steps: keep the state, and leave the objective with the chosen weights."""
        if self._ready and (self.run.sharding is None or self._agreed):  # alone, a process has a piece of it
            try:
                self.save()
            finally:
                self.run.choose_weights()

    def save(self) -> None:
        """Write a checkpoint now, if that makes sense."""
        if self._ready:
            for _ in self._save(wait=True):
                pass

    def settle(self) -> None:
        """Wait until nothing is being written any more."""
        if self.saver is not None:
            self.saver.settle()

    def _begin(self) -> Iterator[Record]:
        run = self.run
        found = None
        if self.resume and self.folder is not None:
            warnings: list[str] = []
            if self.saver is not None:
                found, warnings = self.saver.checkpoints.load()
            found = run.world.share_snapshot(found)
            yield from (Warned(message=message) for message in warnings)
        if found is not None:
            run.restore(found)
            self._ready = True
            self._saved = (run.step, run.reason)
            yield account.started(run)
            if found.values["made_with"] != made_with():
                yield Warned(message=f"The run began with {found.values['made_with']}, so the last bits may differ.")
            return
        if self.resume:
            yield Warned(message="There is no checkpoint to resume from, so the run starts afresh.")
        yield account.started(run)
        run.measure(tune)
        self._ready = True
        yield from self._save(wait=True)  # a folder that cannot be written is refused before training
        yield from run.chosen

    def _epoch(self) -> Iterator[Record]:
        run = self.run
        batches = run.batches()
        for index in announced(run.data.train, batches[run.batch :], run.world.share_of):
            if run.step >= run.pace.total:
                break
            run.train_on(index)
            if run.stepper.trouble:
                yield from self._check()
            if run.news:
                yield from self._tell_news()
            if self._is_due():
                yield from self._look()
        record, changed = run.end_epoch()
        self._best_changed |= changed
        yield record
        if self._may_save(EPOCH_SECONDS):
            yield from self._save()

    def _is_due(self) -> bool:
        """Say whether to look up from the work now, in all processes after the same step."""
        due = time.perf_counter() - self._looked_at >= LOOK_SECONDS
        due, signal = self.run.world.pause(due, self.interrupts.pending)
        if signal is not None and self.run.world.size > 1:
            self.interrupts.pending, self._agreed = signal, True
        return due

    def _tell_news(self) -> Iterator[Record]:
        """Report what was chosen on the way, and save: a resumed run begins with it."""
        news, self.run.news = self.run.news, []
        yield from news
        yield from self._save(wait=True)

    def _look(self) -> Iterator[Record]:
        """Report, and save if it is time."""
        yield from self._check()
        self.run.adjust_length(self._saving_seconds)
        if self.run.pace.limit:
            self.run.pace.restore(self.run.world.share(self.run.pace.state()))
        yield account.progress(self.run)
        self._looked_at = time.perf_counter()
        yield from self._written()
        if self._may_save(self.run.plan.checkpoint_seconds):
            yield from self._save()

    def _may_save(self, seconds: float) -> bool:
        """Say whether the last checkpoint is that old, is written, and what it costs is small beside its age."""
        age = time.perf_counter() - self._saved_at
        due = age >= max(seconds, self._saving_cost / SHARE) and not (self.saver is not None and self.saver.busy)
        return bool(self.run.world.share(due))

    def _check(self) -> Iterator[Record]:
        try:
            warning = self.run.check_trouble()
        except TrainingError:
            self.stop()
            raise
        if warning:
            yield Warned(message=warning)

    def _save(self, wait: bool = False) -> Iterator[Record]:
        """Begin to write a checkpoint, unless the newest one holds this very state.

        Args:
            wait: until this state is on disk.
        """
        run, state = self.run, (self.run.step, self.run.reason)
        if self.saver is None:
            if run.sharding is not None and self.folder is not None and state != self._saved:
                run.snapshot()  # the first process writes what all of them have pieces of
                self._saved = state
            return
        records: list[Record] = []
        began = time.perf_counter()
        if state != self._saved:
            records += self._written(wait=True)  # the one before
            self.saver.start(run.snapshot, run.step, self._best_changed)
            self._best_changed, self._saved, self._saved_at = False, state, began
        records += self._written(wait)
        run.aside_seconds += time.perf_counter() - began
        yield from records

    def _written(self, wait: bool = False) -> Iterator[Record]:
        """Report the checkpoint that was written since this was last asked."""
        done = self.saver.written(wait) if self.saver is not None else None
        if done is not None:
            self._saving_seconds = done.seconds
            # On a CPU, what the thread does is taken from training.
            self._saving_cost = done.stalled + (done.worked if self.run.device.type == "cpu" else 0.0)
            path = str(done.path)
            yield Saved(path=path, step=done.step, bytes=done.bytes, seconds=done.seconds, stalled=done.stalled)
