"""What goes wrong around a run: no space, no rights, no memory. It says so, or goes on with the same batch."""

from __future__ import annotations

import os
import resource
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fathom.core.errors import ConfigError, TrainingError
from fathom.core.types import Batch, Loss
from fathom.engine import loop, saving
from fathom.engine.checkpoint import Checkpoints
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.records import Chose, Epoch, Finished, Saved
from tests.engine import toys

PLAN = Plan(epochs=3, batch_size=32, threads=1)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look up, and save, after every step."""
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SHARE", 1e9)


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As on a full disk, writing stops short; the process's own limit stands in for the disk's."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


def test_no_space_while_training_stops_with_the_last_checkpoint_whole(tmp_path: Path, often: None) -> None:
    plan = replace(PLAN, checkpoint_seconds=0.0)
    records = train(toys.Regression(), toys.data(), plan, tmp_path)
    while len([p for p in tmp_path.iterdir() if p.name.startswith("checkpoint")]) < 2:
        next(records)
    with files_no_larger_than(2000), pytest.raises(TrainingError, match="cannot be written to"):
        list(records)
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]
    whole, resumed = toys.Regression(), toys.Regression()
    list(train(whole, toys.data(), plan))
    first, *_ = list(train(resumed, toys.data(), plan, tmp_path, resume=True))
    assert first.step > 0  # type: ignore[attr-defined]
    assert toys.same(whole, resumed)


def test_a_folder_without_rights_is_named_before_training() -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o555)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # root may write anywhere
            with pytest.raises(TrainingError, match="Permission denied"):
                for record in train(toys.Regression(), toys.data(), PLAN, Path(place) / "run"):
                    assert not isinstance(record, (Saved, Epoch, Finished))
        finally:
            os.seteuid(user)
            Path(place).chmod(0o755)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes until the run has gone on by five steps; what is written is the state of before."""

    class Counted(toys.Regression):
        steps = 0

        def losses(self, batch: Batch, phase: str = "main") -> Loss:
            self.steps += self.training
            return super().losses(batch, phase)

    objective, write = Counted(), Checkpoints.save

    def slow(self: Checkpoints, snapshot: saving.Snapshot, best_changed: bool) -> Path:
        until = min(objective.steps + 5, 21) if objective.steps else 0
        while objective.steps < until:
            time.sleep(0.001)
        return write(self, snapshot, best_changed)

    monkeypatch.setattr(Checkpoints, "save", slow)
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SHARE", 1e9)
    plan = replace(PLAN, checkpoint_seconds=0.0, keep="last")
    saved = [record for record in train(objective, toys.data(), plan, tmp_path) if isinstance(record, Saved)]
    behind = [s for s in saved if 0 < s.step < 16]
    assert behind and all(s.stalled < s.seconds for s in behind)
    monkeypatch.undo()
    plain = toys.Regression()
    list(train(plain, toys.data(), plan))
    assert toys.same(plain, objective)


def test_a_copy_holds_the_state_of_its_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = torch.arange(6.0).view(2, 3).T  # not contiguous
    saver = saving.Saver(tmp_path)
    for value in (1.0, 2.0):
        live.fill_(value)
        state = saving.Snapshot({"live": live}, {"value": value})
        saver.start(lambda state=state: state, 1, False)  # type: ignore[misc]
        live.fill_(-1.0)
        assert saver.written(wait=True) is not None and saver.written(wait=True) is None
        found, _ = Checkpoints(tmp_path).load()
        assert found is not None and found.values == {"value": value}
        assert torch.equal(found.tensors["live"], torch.full((3, 2), value))


class Short(toys.Adversarial):
    """Has memory for a few rows only, from its ninth loss on, and runs out of it in the second phase."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.calls, self.failed = rows, 0, 0

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        self.calls += 1
        loss = super().losses(batch, phase)
        if self.calls > 9 and phase == "judge" and len(batch["number"]) > self.rows:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        if len(batch["number"]) > self.rows:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return super().metrics(batch)


def test_memory_that_runs_out_makes_smaller_parts_of_the_same_batch(tmp_path: Path, often: None) -> None:
    objective = Short(rows=10)
    records = list(train(objective, toys.data(augment=False), PLAN, tmp_path))
    chosen = [r for r in records if isinstance(r, Chose)]
    assert [c.value for c in chosen] == ["2", "4"] and objective.failed == 2  # batches of 29 rows: 15, then 8
    assert "memory ran out at 15 rows; the batch still has 29" in chosen[1].why
    last = records[-1]
    assert isinstance(last, Finished) and last.accumulate == 4 and last.chosen == (chosen[1],)
    assert last.steps == 21
    losses = [e.train["judge"] for e in last.history]
    assert all(abs(loss) < 100 for loss in losses) and last.history[-1].valid


def test_the_step_that_ran_out_of_memory_is_that_of_smaller_parts_from_the_start(often: None) -> None:
    """Each phase moves once: what was done of the step is not done again, and leaves no trace in the means."""

    class Once(toys.Regression):
        failed = False

        def losses(self, batch: Batch, phase: str = "main") -> Loss:
            loss = super().losses(batch, phase)
            if not self.failed and len(batch["number"]) > 20:
                type(self).failed = True
                raise MemoryError
            return loss

    # Nothing varies the rows: what Python's own generator drew for the step that failed is not given back.
    pieces, short = toys.Regression(), Once()
    expected = list(train(pieces, toys.data(augment=False), replace(PLAN, accumulate=2)))[-1]
    found = list(train(short, toys.data(augment=False), PLAN))[-1]
    assert toys.same(pieces, short)
    assert isinstance(found, Finished) and isinstance(expected, Finished)
    assert [e.train for e in found.history] == [e.train for e in expected.history]


def test_the_choice_for_want_of_memory_survives_a_resumption(tmp_path: Path, often: None) -> None:
    whole = Short(rows=10)
    list(train(whole, toys.data(augment=False), PLAN))
    records = train(Short(rows=10), toys.data(augment=False), PLAN, tmp_path)
    for record in records:
        if isinstance(record, Chose) and record.value == "4":
            next(records)  # it is saved at once
            records.close()
    resumed = Short(rows=10)
    last = list(train(resumed, toys.data(augment=False), PLAN, tmp_path, resume=True))[-1]
    assert isinstance(last, Finished) and last.accumulate == 4 and resumed.failed == 0
    assert toys.same(whole, resumed)


def test_memory_for_not_even_one_row_stops_the_run() -> None:
    with pytest.raises(TrainingError, match="Memory ran out at a single row of a batch of 29 rows"):
        list(train(Short(rows=0), toys.data(valid=0), PLAN))


def test_other_errors_of_a_step_are_not_taken_for_want_of_memory() -> None:
    class Broken(toys.Regression):
        def losses(self, batch: Batch, phase: str = "main") -> Loss:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(train(Broken(), toys.data(), PLAN))


def test_more_parts_than_rows_are_refused_before_training() -> None:
    with pytest.raises(ConfigError, match="'accumulate' was given 300"):
        list(train(toys.Regression(), toys.data(), Plan(accumulate=300)))
