"""Resume is exact: whatever stops a run, and wherever, the weights end equal to the bit."""

from __future__ import annotations

import multiprocessing
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.types import TrainingData
from fathom.engine import loop
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.records import Finished, Saved, Started, Warned
from tests.engine import toys

PLAN = Plan(epochs=4, batch_size=32, threads=1)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look up after every step, so that a run can be left after any."""
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0.0)


def _whole(objective: Objective, plan: Plan, folder: Path | None = None, data: TrainingData | None = None) -> Finished:
    *_, last = train(objective, data or toys.data(), plan, folder)
    assert isinstance(last, Finished)
    return last


def _in_pieces(make: type[Objective], plan: Plan, folder: Path, every: int) -> tuple[Objective, Finished, int]:
    """Leave the run after each `every`-th record and go on in a new objective, until it is done."""
    pieces = 0
    while True:
        objective = make()
        pieces += 1
        torch.manual_seed(pieces)  # the process is another one
        random.seed(pieces)
        records = train(objective, toys.data(), plan, folder, resume=True)
        for count, record in enumerate(records):
            if isinstance(record, Finished):
                return objective, record, pieces
            if count >= every + 1:
                records.close()
                break


@pytest.mark.parametrize("make", [toys.Regression, toys.Adversarial])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"average": 0.9},
        {"accumulate": 3, "clip": 0.1},
        {"optimizer": "sgd", "learning_rate": 0.05, "schedule": "linear"},
        {"optimizer": "rmsprop"},
        {"optimizer": "lion"},
        {"optimizer": "muon", "average": 0.8},
        {"optimizer": "adam", "evaluate_every": 2, "keep": "last"},
        {"precision": "bf16"},
    ],
    ids=lambda change: "-".join(map(str, change.values())) or "plain",
)
def test_a_run_in_pieces_equals_a_whole_one(
    make: type[Objective], change: dict[str, object], tmp_path: Path, eager: None
) -> None:
    plan = replace(PLAN, **change)  # type: ignore[arg-type]
    whole = make()
    expected = _whole(whole, plan)
    pieced, found, pieces = _in_pieces(make, plan, tmp_path, every=7)
    assert pieces > 3
    assert toys.same(whole, pieced)
    assert [(e.epoch, e.step, e.train, e.valid, e.best) for e in found.history] == [
        (e.epoch, e.step, e.train, e.valid, e.best) for e in expected.history
    ]
    assert (found.best, found.best_epoch, found.steps) == (expected.best, expected.best_epoch, expected.steps)


def test_channels_last_resumes_exactly(tmp_path: Path, eager: None) -> None:
    plan = replace(PLAN, channels_last="yes", average=0.9)

    class Convolution(toys.Regression):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.model = torch.nn.Sequential(
                torch.nn.Unflatten(1, (1, 2, 3)),
                torch.nn.Conv2d(1, 4, 3, padding=1),
                torch.nn.BatchNorm2d(4),
                torch.nn.Conv2d(4, 3, 2),
                torch.nn.Flatten(),
                torch.nn.Linear(6, 1),
            )

    whole = Convolution()
    _whole(whole, plan)
    pieced, _, _ = _in_pieces(Convolution, plan, tmp_path, every=5)
    assert toys.same(whole, pieced)
    assert all(p.is_contiguous() for p in pieced.parameters())


def test_random_draws_of_whoever_watches_change_nothing(eager: None) -> None:
    quiet, noisy = toys.Regression(), toys.Regression()
    _whole(quiet, PLAN)
    random.seed(3)
    torch.manual_seed(3)
    for _ in train(noisy, toys.data(), PLAN):
        random.random()
        torch.rand(2)
    after = (random.random(), torch.rand(2))
    assert toys.same(quiet, noisy)

    count = sum(1 for _ in train(toys.Regression(), toys.data(), PLAN))
    random.seed(3)
    torch.manual_seed(3)
    for _ in range(count):
        random.random()
        torch.rand(2)
    assert after[0] == random.random() and torch.equal(after[1], torch.rand(2))


def test_a_finished_run_ends_at_once(tmp_path: Path) -> None:
    first, second = toys.Regression(), toys.Regression()
    done = _whole(first, PLAN, tmp_path)
    records = list(train(second, toys.data(), PLAN, tmp_path, resume=True))
    assert [type(r) for r in records] == [Started, Finished]
    assert toys.same(first, second)
    assert records[-1].history == done.history  # type: ignore[attr-defined]


def test_resuming_where_nothing_is_starts_afresh_and_says_so(tmp_path: Path) -> None:
    first, second = toys.Regression(), toys.Regression()
    _whole(first, PLAN)
    records = list(train(second, toys.data(), PLAN, tmp_path, resume=True))
    assert any(isinstance(r, Warned) and "starts afresh" in r.message for r in records)
    assert toys.same(first, second)


def test_starting_afresh_removes_an_earlier_run_only_after_the_first_save(tmp_path: Path) -> None:
    _whole(toys.Regression(), PLAN, tmp_path)
    old = {p.name for p in tmp_path.iterdir()}
    records = train(toys.Regression(), toys.data(), replace(PLAN, seed=1), tmp_path)
    assert isinstance(next(records), Started)
    assert {p.name for p in tmp_path.iterdir()} == old
    assert isinstance(next(records), Saved)
    assert not old & {p.name for p in tmp_path.iterdir()}
    records.close()


def test_leaving_before_the_run_has_its_state_back_saves_nothing(tmp_path: Path) -> None:
    _whole(toys.Regression(), PLAN, tmp_path)
    newest = sorted(tmp_path.glob("checkpoint-*"))[-1]
    newest.write_bytes(b"damaged" + newest.read_bytes())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    records = train(toys.Regression(), toys.data(), PLAN, tmp_path, resume=True)
    assert isinstance(next(records), Warned)
    records.close()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed was 0, now it is 1"),
        ({"learning_rate": 0.5}, "learning_rate was 0.001"),
        ({"epochs": 9}, "epochs was 4, now it is 9"),
    ],
)
def test_another_plan_is_refused(change: dict[str, object], named: str, tmp_path: Path) -> None:
    _whole(toys.Regression(), PLAN, tmp_path)
    with pytest.raises(ConfigError, match=named):
        list(train(toys.Regression(), toys.data(), replace(PLAN, **change), tmp_path, resume=True))  # type: ignore[arg-type]


def test_other_data_are_refused(tmp_path: Path) -> None:
    _whole(toys.Regression(), PLAN, tmp_path)
    with pytest.raises(ConfigError, match="training rows were 203, now 204"):
        list(train(toys.Regression(), toys.data(rows=204), PLAN, tmp_path, resume=True))
    changed = toys.data()
    changed.train.columns["number"] += 1  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="values of its training rows differ"):
        list(train(toys.Regression(), changed, PLAN, tmp_path, resume=True))
    with pytest.raises(ConfigError, match="validation rows were 60, now None"):
        list(train(toys.Regression(), replace(toys.data(), valid=None), PLAN, tmp_path, resume=True))


def test_another_model_is_refused(tmp_path: Path) -> None:
    _whole(toys.Regression(), PLAN, tmp_path)
    with pytest.raises(ConfigError, match=r"weight 'model.1.bias' was \(16,\), now it is missing"):
        list(train(toys.Regression(norm=False), toys.data(), PLAN, tmp_path, resume=True))


def test_checkpoint_seconds_may_change(tmp_path: Path) -> None:
    _whole(toys.Regression(), PLAN, tmp_path)
    plan = replace(PLAN, checkpoint_seconds=1.0)
    assert [type(r) for r in train(toys.Regression(), toys.data(), plan, tmp_path, resume=True)] == [Started, Finished]


@pytest.mark.parametrize("kind", ["regression", "adversarial"])
def test_sigkill_at_any_moment(kind: str, tmp_path: Path) -> None:
    whole = toys.make(kind)
    _whole(whole, toys.plan_to_kill())
    context = multiprocessing.get_context("forkserver")  # children need not import anything again
    context.set_forkserver_preload(["tests.engine.toys", "torch._dynamo"])  # optimisers import the latter
    chance = random.Random(kind)
    result, kills = tmp_path / "result.safetensors", 0
    while not result.exists():
        child = context.Process(target=toys.run_slowly, args=(str(tmp_path), kind, 0.005))
        seen = set(tmp_path.iterdir())
        child.start()
        if kills < 4:
            while child.is_alive() and set(tmp_path.iterdir()) == seen:
                time.sleep(0.001)  # until it saves
            time.sleep(chance.uniform(0.0, 0.2))
            child.kill()
            kills += 1
        child.join()
    left, expected = load_file(result), toys.weights(whole)
    assert left.keys() == expected.keys()
    assert all(torch.equal(left[name], expected[name]) for name in left)
