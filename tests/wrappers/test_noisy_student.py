"""Noisy student: which targets it learns from, what it looks at, and whom it may ask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import fathom
from fathom.core import compose
from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec
from tests.conformance.samples import batch_of
from tests.wrappers.earlier import IMAGES, KIND, NUMBERS, PRICE, Earlier, Small, built, trained

PRICED = replace(NUMBERS, targets=(KIND, PRICE))


def gaps(spec: DataSpec, rows: int = 12, known: int = 4) -> dict[str, torch.Tensor]:
    batch = batch_of(spec, rows)
    for target in spec.targets:
        batch[target.target_key][known:] = -1 if target.kind == "category" else torch.nan
    return batch


def shown(task: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what the wrapped objective is given."""
    found = []
    inner = task.inner.losses
    task.inner.losses = lambda given, phase="main": (found.append(given), inner(given, phase))[1]
    task.losses(batch)
    return found[0]


def test_truths_stay_and_teachers_fill_in_what_is_missing() -> None:
    task, batch = built("noisy_student", PRICED), gaps(PRICED)
    given = shown(task, batch)
    said = task._teachers[0].predict(batch)
    kind, price = given[KIND.target_key], given[PRICE.target_key]
    assert torch.equal(kind[:4], torch.eye(3)[batch[KIND.target_key][:4]])
    assert torch.equal(price[:4], batch[PRICE.target_key][:4])
    torch.testing.assert_close(kind[4:], said["kind"][4:])
    torch.testing.assert_close(price[4:], said["price"][4:])
    assert torch.equal(given["number"], batch["number"])


def test_its_loss_is_the_papers() -> None:
    """Of rows with a label the cross-entropy, of others that from the teacher's probabilities; a mean over both."""
    spec = replace(NUMBERS, targets=(KIND,))
    task, batch = built("noisy_student", spec), gaps(spec)
    found = task.losses(batch).total.item()
    p = task.inner.predict(batch)["kind"].detach().double().numpy()
    q = task._teachers[0].predict(batch)["kind"].double().numpy()
    labelled = -np.log(p[np.arange(4), batch[KIND.target_key][:4]]).sum()
    assert found == pytest.approx((labelled - (q * np.log(p))[4:].sum()) / 12, rel=1e-5)


def test_classes_that_teachers_say_too_often_are_brought_to_their_shares_of_the_truths() -> None:
    """q ∝ p · wanted / said, of categories alone."""
    task, batch = built("noisy_student", PRICED, noisy_student__balance=1), gaps(PRICED)
    (kind, _), own = task.balances, task.averages()
    kind.said[0].value.copy_(torch.tensor([0.2, 0.6, 0.2]))
    assert [(each.source, each.target) for each in own] == [(kind.now[0], kind.said[0])]
    said = task._teachers[0].predict(batch)
    expected = said["kind"] / torch.tensor([0.2, 0.6, 0.2])
    given = shown(task.train(), batch)
    torch.testing.assert_close(given[KIND.target_key][4:], (expected / expected.sum(1, keepdim=True))[4:])
    torch.testing.assert_close(given[PRICE.target_key][4:], said["price"][4:])
    torch.testing.assert_close(kind.now[0].value, said["kind"].mean(0))
    assert built("noisy_student", PRICED, noisy_student__balance=0).averages() == ()


def test_images_without_a_target_are_changed_but_for_some() -> None:
    task, batch = built("noisy_student", IMAGES, noisy_student__plain=0.25), gaps(IMAGES, rows=400, known=40)
    given = shown(task, batch)["image:photo"]
    same = (given == batch["image:photo"]).flatten(1).all(1)
    assert same[:40].all() and 0.15 < same[40:].float().mean() < 0.35


def test_teachers_are_asked_for_their_mean_about_rows_as_they_are() -> None:
    class Several(Earlier):
        def model(self, folder, option, alike=False):
            self.asked.append(folder)
            return trained(IMAGES, seed=int(folder))

    past = Several()
    entry = compose.chosen({"name": "noisy_student", "teachers": ["1", "2"]})
    task = compose.build(entry, IMAGES, Small(IMAGES), past)
    batch = gaps(IMAGES)
    expected = sum(trained(IMAGES, seed=seed).objective.predict(batch)["kind"] for seed in (1, 2)) / 2
    assert past.asked == ["1", "2"]
    torch.testing.assert_close(shown(task, batch)[KIND.target_key][4:], expected[4:])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"teachers": ()}, "set objective.noisy_student.teachers to the folders"),
        ({"crop": 0.0}, r"objective\.noisy_student\.crop"),
        ({"balance": -1}, r"objective\.noisy_student\.balance"),
        ({"plain": 1.5}, r"objective\.noisy_student\.plain.*share up to 1"),
        ({"erase": 1.0}, r"objective\.noisy_student\.erase"),
    ],
)
def test_bad_options_are_a_sentence(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        built("noisy_student", IMAGES, **{f"noisy_student__{key}": value for key, value in options.items()})


def test_it_stands_around_what_learns_from_probabilities() -> None:
    with pytest.raises(ConfigError, match=r"cannot stand around 'consistency'.*'supervised' does"):
        built("noisy_student(consistency)", replace(IMAGES, rows=60))


def test_only_what_it_stands_around_meets_rows_without_a_target() -> None:
    spec = replace(NUMBERS, targets=(KIND,), rows=60)  # 30 of which have a target
    for name, refused in (("noisy_student(mixup(supervised))", ""), ("noisy_student(supervised)+metric", "metric")):
        problem = compose.find(name).module.accepts(spec)
        assert ("" if problem is None else problem) == "" if not refused else f"of '{refused}'" in problem


def test_a_student_learns_from_rows_that_only_its_teacher_knows(tmp_path) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 3))
    label = np.where(x[:, 0] + x[:, 1] > 0, "yes", "no")
    frame = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "label": label})
    common = {"model": "mlp", "target": "label", "seed": 0, "epochs": 30}
    sets = ["evaluate.baselines=false", "split.test=0.0", "split.valid=0.0", "engine.threads=1", "model.width=16"]
    fathom.fit(frame, out=tmp_path / "teacher", sets=sets, **common)
    few = frame.with_columns(label=pl.when(pl.int_range(300) < 20).then("label"))
    student = fathom.fit(
        few,
        objective="noisy_student",
        sets=[*sets, f'objective.noisy_student.teachers=["{tmp_path / "teacher"}"]'],
        out=tmp_path / "student",
        **common,
    )
    assert (student.predict(frame)["prediction"] == frame["label"]).mean() > 0.9
    assert fathom.load(tmp_path / "student").info()["objective"]["name"] == "noisy_student(supervised)"
