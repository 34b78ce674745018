from __future__ import annotations

import json
import math
import os
import random
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.core.config import build
from fathom.core.errors import ConfigError, DataError, TrainingError
from fathom.core.types import Batch, Loss, TrainingData
from fathom.engine import loop
from fathom.engine.checkpoint import Checkpoints
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.records import Chose, Epoch, Finished, Saved, Started, Step, Warned
from tests.engine import toys

PLAN = Plan(epochs=3, batch_size=32, threads=1, precision="fp32")


class Scripted(toys.Regression):
    """Validation scores as written, whatever was learned."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores, self.validations = scores, 0
        self.register_buffer("validated", torch.zeros(()))

    def train(self, mode: bool = True) -> Scripted:
        if mode and not self.training:
            self.validations += 1
            self.validated.fill_(self.validations)
        return super().train(mode)

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        size = len(batch["number"])
        return {"score": torch.full((size,), self.scores[self.validations]), "other": torch.ones(size)}


def test_it_learns_and_reports(tmp_path: Path) -> None:
    objective = toys.Regression(dropout=0.0)
    records = list(train(objective, toys.data(augment=False), replace(PLAN, epochs=30, learning_rate=0.02), tmp_path))
    started, *_, last = records
    assert isinstance(started, Started) and isinstance(last, Finished)
    assert (started.rows, started.valid_rows, started.steps, started.batch_size) == (203, 60, 30 * 7, 32)
    assert started.parameters == started.trainable == sum(p.numel() for p in objective.parameters())
    epochs = [r for r in records if isinstance(r, Epoch)]
    assert len(epochs) == 30 and tuple(epochs) == last.history
    assert epochs[-1].valid["loss"] < 0.2 * epochs[0].valid["loss"]
    assert epochs[-1].train["loss"] < 0.2 * epochs[0].train["loss"] and "absolute" in epochs[0].train
    assert last.best == min((e.valid for e in epochs), key=lambda v: v["loss"])
    assert any(isinstance(r, Saved) for r in records)
    for record in records:
        assert json.loads(json.dumps(record.as_json()))["record"] == type(record).__name__.lower()
    with torch.no_grad():
        objective.eval()
        found = toys.data().valid
        assert found is not None
        scored = objective.metrics(found.gather(torch.arange(60)))["loss"].mean()
    assert float(scored) == pytest.approx(last.best["loss"], rel=1e-4)  # the objective holds the best weights


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_kept_weights_are_those_that_the_plan_names(keep: str) -> None:
    objective = Scripted([3.0, 1.0, 2.0, 4.0])
    *_, last = train(objective, toys.data(), replace(PLAN, epochs=4, keep=keep))
    assert isinstance(last, Finished) and last.best_epoch == 2
    steps = 14 if keep == "best" else 28
    assert int(objective.model[1].num_batches_tracked) == steps  # type: ignore[index]


def test_patience_counts_validations_without_improvement() -> None:
    *_, last = train(Scripted([3.0, 1.0, math.nan, 1.0, 1.0, 0.5]), toys.data(), replace(PLAN, epochs=9, patience=3))
    assert isinstance(last, Finished)
    assert (last.reason, last.epochs, last.best_epoch) == ("patience", 5, 2)


def test_evaluate_every_counts_epochs_and_the_last_is_always_validated() -> None:
    *_, last = train(toys.Regression(), toys.data(), replace(PLAN, epochs=5, evaluate_every=2))
    assert isinstance(last, Finished)
    assert [bool(e.valid) for e in last.history] == [False, True, False, True, True]


def test_without_validation_the_last_weights_are_kept() -> None:
    *_, last = train(toys.Regression(), replace(toys.data(), valid=None), PLAN)
    assert isinstance(last, Finished) and last.kept == "last" and last.best_epoch is None


def test_a_moving_average_is_what_is_validated_and_kept() -> None:
    plain, averaged = toys.Regression(), toys.Regression()
    list(train(plain, toys.data(), replace(PLAN, keep="last")))
    *_, last = train(averaged, toys.data(), replace(PLAN, keep="last", average=0.9))
    assert isinstance(last, Finished) and last.kept == "moving average"
    assert not toys.same(plain, averaged)


def test_the_process_gets_back_what_is_its_own() -> None:
    objective, threads = toys.Regression(), torch.get_num_threads()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    list(train(objective, toys.data(), PLAN))
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_seed_decides_everything() -> None:
    first, again, other = toys.Regression(), toys.Regression(), toys.Regression()
    for objective, seed in ((first, 1), (again, 1), (other, 2)):
        list(train(objective, toys.data(), replace(PLAN, seed=seed)))
    assert toys.same(first, again) and not toys.same(first, other)


def _with_rows(value: float, rows: slice) -> TrainingData:
    found = toys.data(augment=False)
    found.train.columns["number"][rows] = value  # type: ignore[attr-defined]
    return found


def test_a_bad_row_is_left_out_and_named() -> None:
    objective = toys.Regression()
    records = list(train(objective, _with_rows(math.nan, slice(5, 6)), PLAN))
    warned = [r.message for r in records if isinstance(r, Warned)]
    assert len(warned) == 2 and "left out so far: 1; the last because loss part 'absolute' is nan" in warned[0]
    assert isinstance(records[-1], Finished)
    assert all(torch.isfinite(t).all() for t in toys.weights(objective).values())


def test_hopeless_losses_stop_the_run_with_the_last_good_weights_saved(tmp_path: Path) -> None:
    objective = toys.Regression()
    start = toys.weights(objective)
    with pytest.raises(TrainingError, match="stopped after 10 steps in a row"):
        list(train(objective, _with_rows(math.inf, slice(None)), PLAN, tmp_path))
    found, _ = Checkpoints(tmp_path).load()
    assert found is not None and found.values["position"][2] == 10
    for name, tensor in start.items():
        assert torch.equal(found.tensors[f"weight/{name}"], tensor), name
        assert torch.equal(toys.weights(objective)[name], tensor), name


class Interrupting(toys.Regression):
    """Sends its own process a signal in the middle of a step."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.calls = number, 0

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        self.calls += 1
        if self.calls == 9:  # the first of the second epoch, after seven steps and a validation
            os.kill(os.getpid(), self.number)
        return super().losses(batch, phase)


def test_ctrl_c_waits_for_the_step_saves_and_leaves(tmp_path: Path) -> None:
    # A shell's background jobs are begun with Ctrl-C ignored, so the usual handler is put in place here.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(train(Interrupting(signal.SIGINT), toys.data(), PLAN, tmp_path))
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    found, _ = Checkpoints(tmp_path).load()
    assert found is not None and found.values["position"] == [1, 1, 8]
    whole, resumed = toys.Regression(), toys.Regression()
    list(train(whole, toys.data(), PLAN))
    list(train(resumed, toys.data(), PLAN, tmp_path, resume=True))
    assert toys.same(whole, resumed)


def test_sigterm_reaches_its_handler_between_two_steps(tmp_path: Path) -> None:
    seen: list[int] = []

    def note(*_: object) -> None:
        found, _ = Checkpoints(tmp_path).load()
        seen.append(found.values["position"][2] if found else -1)

    before = signal.signal(signal.SIGTERM, note)
    try:
        *_, last = train(Interrupting(signal.SIGTERM), toys.data(), PLAN, tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert isinstance(last, Finished) and seen == [8]


def test_a_time_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of our own: a step takes 10 ms, a validation 50 ms (a load of the machine changes nothing)."""
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    class Timed(toys.Regression):
        def losses(self, batch: Batch, phase: str = "main") -> Loss:
            clock[0] += 0.010 if clock[0] < 3 else 0.020  # the machine gets slower on the way
            return super().losses(batch, phase)

        def metrics(self, batch: Batch) -> dict[str, Tensor]:
            clock[0] += 0.050 / (2 if len(batch["number"]) < 60 else 1)
            return {"loss": torch.ones(len(batch["number"]))}

    records = list(train(Timed(), toys.data(), replace(PLAN, epochs=0, minutes=0.1, form="plain")))
    last = records[-1]
    assert isinstance(last, Finished) and last.reason == "time"
    assert 5.0 < clock[0] <= 6.0
    rates = [r.learning_rate for r in records if isinstance(r, (Step, Epoch))]
    assert rates[-1] < 0.02 * max(rates)  # the schedule came to its end
    falls = [b / a for a, b in pairwise(rates[5:]) if a > 0.5 * max(rates)]
    assert min(falls) > 0.8  # and never jumped


@pytest.mark.parametrize(("alone", "kept"), [(0.010, 1), (0.052, 1), (0.090, 2)])
def test_what_is_faster_is_kept_and_measuring_changes_nothing_else(
    alone: float, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 50 ms on two threads and `alone` seconds on one, by a clock of our own."""
    clock, threads = [0.0], [2]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("torch.get_num_threads", lambda: threads[0])
    monkeypatch.setattr("torch.set_num_threads", lambda count: threads.__setitem__(0, count))

    class Threaded(toys.Regression):
        def losses(self, batch: Batch, phase: str = "main") -> Loss:
            clock[0] += alone if threads[0] == 1 else 0.050
            return super().losses(batch, phase)

    plan = replace(PLAN, epochs=30, threads=0, average=0.9, form="plain", memory="returned")
    measured, plain = Threaded(), Threaded()
    records = list(train(measured, toys.data(), plan))
    assert threads == [2]  # what the process had
    list(train(plain, toys.data(), replace(plan, threads=kept)))
    chosen, summary = (r for r in records if isinstance(r, Chose))
    assert (summary.what, summary.value, summary.gain) == ("settings", chosen.value, chosen.gain)
    assert chosen.what == "threads" and chosen.value == ("1 thread" if kept == 1 else "2 threads")
    assert chosen.gain == pytest.approx(0.050 / alone if kept == 1 else 1.0)
    assert chosen.why == f"2 threads: 50 ms a step; 1 thread: {1e3 * alone:.0f} ms a step"
    assert toys.same(measured, plain)


def test_what_was_chosen_is_kept_by_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(loop, "tune", lambda run: setattr(run.knobs, "precision", "bf16") or run.turn_knobs() or [])
    whole, resumed = toys.Regression(), toys.Regression()
    list(train(whole, toys.data(), PLAN))
    records = train(toys.Regression(), toys.data(), PLAN, tmp_path)
    for _ in range(9):
        next(records)
    records.close()
    monkeypatch.setattr(loop, "tune", lambda run: pytest.fail("a resumed run measures nothing"))
    list(train(resumed, toys.data(), PLAN, tmp_path, resume=True))
    assert toys.same(whole, resumed)
    monkeypatch.undo()
    plain = toys.Regression()
    list(train(plain, toys.data(), PLAN))
    assert not toys.same(plain, resumed)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "adamv"}, "adamw"),
        ({"warmup": 1.5}, "'warmup' was given 1.5; expected a share between 0 and 1"),
        ({"average": 1.0}, "'average' was given 1.0; expected at least 0 and below 1"),
        ({"learning_rate": -1.0}, "'learning_rate' was given -1.0"),
        ({"learning_rate": math.nan}, "'learning_rate' was given nan"),
        ({"accumulate": 0}, "'accumulate' was given 0; expected at least 1"),
        ({"accumulate": 9, "batch_size": 8}, "a batch of 8 rows cannot be cut"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        build(Plan, values)


def test_zeros_stand_for_what_is_usual() -> None:
    plan = Plan(optimizer="sgd").resolved(5000)
    assert (plan.learning_rate, plan.epochs, plan.batch_size) == (0.1, 20, 64)
    assert Plan(minutes=1.0).resolved(10).batch_size == 10
    assert Plan(minutes=1.0, epochs=3).resolved(10**6).epochs == 3


def test_a_machine_without_what_the_plan_asks_for_is_named() -> None:
    with pytest.raises(ConfigError, match="fp16, which needs a GPU"):
        list(train(toys.Regression(), toys.data(), replace(PLAN, device="cpu", precision="fp16")))
    with pytest.raises(ConfigError, match="Device 'quantum' cannot be used here"):
        list(train(toys.Regression(), toys.data(), replace(PLAN, device="quantum")))


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no training rows"):
        list(train(toys.Regression(), toys.data(rows=0), PLAN))


def test_one_row_is_enough_without_batch_normalisation() -> None:
    *_, last = train(toys.Regression(norm=False), toys.data(rows=1), PLAN)
    assert isinstance(last, Finished) and last.steps == 3
