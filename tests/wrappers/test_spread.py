"""What is known of few rows, spread to those near them: by the formula, along what hangs together, to a student."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.datasets import make_moons

import fathom
from fathom.core.errors import ConfigError
from fathom.core.objective import embedding
from fathom.core.types import TrainingData
from fathom.data import TensorStore
from fathom.engine.plan import Plan
from fathom.wrappers._spread import ALPHA, Spread, graph, spread
from tests.conformance.samples import batch_of
from tests.objectives.stopping import whole_and_resumed
from tests.wrappers.earlier import KIND, NUMBERS, PRICE, built, trained

SPEC = replace(NUMBERS, targets=(KIND, PRICE))


def known(rows: int, first: int) -> torch.Tensor:
    """Return codes of which the first few are known."""
    codes = torch.full((rows,), -1)
    codes[:first] = torch.arange(first) % 2
    return codes


def test_it_is_where_the_formula_ends() -> None:
    """F = (1 - α) (I - α S)⁻¹ Y, S = D^-½ W D^-½, each row brought to a sum of one."""
    draw = np.random.default_rng(0)
    weights = (draw.random((12, 12)) < 0.4).astype(float)
    weights = np.triu(weights, 1) + np.triu(weights, 1).T
    shares = weights / np.sqrt(np.outer(weights.sum(0), weights.sum(1)))
    codes = known(12, 4)
    first = np.zeros((12, 3))
    first[np.arange(4), codes[:4]] = 1
    expected = np.linalg.solve(np.eye(12) - ALPHA * shares, first)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(spread(csr_array(weights), codes, 3).numpy(), expected, atol=2e-3)


def test_a_class_is_followed_through_rows_in_between() -> None:
    rows, truth = make_moons(400, noise=0.06, random_state=0)
    first = np.r_[np.flatnonzero(truth == 0)[:1], np.flatnonzero(truth == 1)[:1]]
    codes = torch.full((400,), -1)
    codes[first] = torch.from_numpy(truth[first])
    by_distance = truth[first][((rows[:, None] - rows[first]) ** 2).sum(2).argmin(1)]
    found = spread(graph(torch.from_numpy(rows), 10), codes, 2).argmax(1).numpy()
    assert (found == truth).all() and (by_distance == truth).mean() < 0.9


def test_what_nothing_known_is_connected_with_may_be_of_any_class() -> None:
    apart = torch.cat([torch.randn(10, 2), torch.randn(10, 2) + 100.0])
    found = spread(graph(apart, 3), known(20, 2), 4)
    torch.testing.assert_close(found[10:], torch.full((10, 4), 0.25))
    assert (found[:10, 2:] == 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(20))


def test_each_of_the_rows_is_what_it_was_found_to_be_and_others_what_is_nearest() -> None:
    teacher = trained(SPEC).objective
    batch = batch_of(SPEC, 30, seed=3)
    batch[KIND.target_key][6:] = -1
    found = Spread(teacher, TensorStore(batch), [KIND], 4)
    torch.testing.assert_close(found(teacher, batch)["kind"], found.said["kind"])
    others = batch_of(SPEC, 8, seed=5)
    with torch.no_grad():
        ours, theirs = embedding(teacher, others), embedding(teacher, batch)
    nearest = torch.cosine_similarity(ours[:, None], theirs[None], dim=2).argmax(1)
    torch.testing.assert_close(found(teacher, others)["kind"], found.said["kind"][nearest])


def test_a_student_hears_of_classes_from_neighbours_and_of_numbers_from_its_teacher() -> None:
    task = built("noisy_student", SPEC, noisy_student__neighbours=4, noisy_student__balance=0)
    batch = batch_of(SPEC, 12)
    (kind, price), teacher = task._told(batch), task._teachers[0]
    torch.testing.assert_close(kind, task._spreads[0](teacher, batch)["kind"])
    torch.testing.assert_close(price, teacher.predict(batch)["price"])
    assert not any("said" in name or "places" in name for name in task.state_dict())


def test_a_run_stopped_and_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    plan = Plan(epochs=4, batch_size=8, threads=1, precision="fp32", accumulate=2)
    data = TrainingData(train=TensorStore(batch_of(SPEC, 24)), valid=TensorStore(batch_of(SPEC, 8, seed=1)))
    make = partial(built, "noisy_student", SPEC, noisy_student__neighbours=4)
    ends = whole_and_resumed(make, data, plan, tmp_path, after=2)
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []


def test_fewer_neighbours_than_none_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.noisy_student\.neighbours.*-1"):
        built("noisy_student", SPEC, noisy_student__neighbours=-1)


def test_a_student_sees_as_its_teacher_does_but_need_not_believe_it(tmp_path) -> None:
    """Three of five labels that the teacher was shown are alike, and the eight that the student is shown are right."""
    rows, truth = make_moons(300, noise=0.08, random_state=1)
    frame = pl.DataFrame({"a": rows[:, 0], "b": rows[:, 1], "label": np.where(truth, "low", "high")})
    wrong = frame.with_columns(label=pl.when(pl.int_range(300) % 5 < 3).then(pl.lit("low")).otherwise("label"))
    few = frame.with_columns(label=pl.when(pl.int_range(300) < 8).then("label"))
    sets = ["evaluate.baselines=false", "split.test=0.0", "split.valid=0.0", "engine.threads=1", "model.width=16"]
    common = {"model": "mlp", "target": "label", "seed": 0, "epochs": 40}
    teacher = fathom.fit(wrong, out=tmp_path / "teacher", sets=sets, **common)
    told = f'objective.noisy_student.teachers=["{tmp_path / "teacher"}"]'
    sets += [told, "objective.noisy_student.neighbours=8"]
    student = fathom.fit(few, objective="noisy_student", sets=sets, **common)
    right = [(model.predict(frame)["prediction"] == frame["label"]).mean() for model in (teacher, student)]
    assert right[0] < 0.7 and right[1] > 0.8
