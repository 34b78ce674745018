"""Training that builds on earlier training: teachers, held weights, replayed rows, from the folder to the artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import fathom
from fathom.core.errors import ArtifactError, ConfigError, DataError

FEW = ["evaluate.baselines=false", "engine.threads=1", "engine.precision=fp32", "model.width=16", "model.members=1"]


def table(path: Path, seed: int = 0, classes: tuple[str, str] = ("no", "yes")) -> str:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(120, 3))
    label = np.where(x[:, 0] + 0.3 * x[:, 1] + seed > seed, classes[1], classes[0])
    pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "label": label}).write_csv(path)
    return str(path)


def learned(source: str, out: Path, objective: str = "supervised", sets: tuple[str, ...] = (), **more) -> fathom.Model:
    model = {} if "weights" in more else {"model": "mlp"}
    own = FEW if model else [s for s in FEW if not s.startswith("model.")]
    return fathom.fit(
        source, "label", out=out, objective=objective, sets=[*own, *sets], epochs=more.pop("epochs", 3), **model, **more
    )


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("past")
    learned(table(place / "first.csv"), place / "first")
    return place


def test_a_student_needs_no_teacher_once_it_has_learned(first: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    (first / "first").rename(teacher)
    try:
        sets = (f"objective.teacher={teacher}", "objective.features=0.1")
        student = learned(str(first / "first.csv"), tmp_path / "student", "distill", sets)
    finally:
        teacher.rename(first / "first")
    size = sum(p.numel() for p in student.module.parameters())
    assert size == sum(p.numel() for p in fathom.load(first / "first").module.parameters())
    again = fathom.load(tmp_path / "student")
    assert again.info()["objective"]["name"] == "distill(supervised)"
    rows = str(first / "first.csv")
    assert again.predict(rows).equals(student.predict(rows))


def test_a_teacher_that_reads_rows_otherwise_is_refused(first: Path, tmp_path: Path) -> None:
    other = table(tmp_path / "other.csv", seed=5)
    with pytest.raises(ConfigError, match=r"does not take 'number columns' as it is prepared here"):
        learned(other, tmp_path / "student", "distill", (f"objective.teacher={first / 'first'}",))
    with pytest.raises(ConfigError, match="expected the folder of a trained model"):
        learned(other, tmp_path / "student", "distill", ("objective.teacher=nowhere",))


def test_a_student_goes_on_where_its_teacher_was_finished_again(tmp_path: Path) -> None:
    source, place = table(tmp_path / "rows.csv"), tmp_path / "teacher"
    taught = {"objective": "distill", "sets": (f"objective.teacher={place}",)}
    learned(source, place)
    student = learned(source, tmp_path / "student", **taught)
    before = (place / "manifest.json").read_bytes()
    learned(source, place, resume=True)  # its reports tell another time now
    assert (place / "manifest.json").read_bytes() != before
    again = learned(source, tmp_path / "student", resume=True, **taught)
    assert again.predict(source).equals(student.predict(source))


@pytest.mark.parametrize("objective", ["ewc", "replay", "ewc(replay(supervised))"])
def test_learning_on_holds_what_was_learned(objective: str, first: Path, tmp_path: Path) -> None:
    second = table(tmp_path / "second.csv", seed=1)
    model = learned(second, tmp_path / "on", objective, weights=first / "first")
    found = fathom.load(tmp_path / "on")
    assert found.info()["objective"]["name"].startswith(objective.removesuffix("(replay(supervised))"))
    assert found.predict(second).equals(model.predict(second))


def test_an_earlier_model_of_a_table_in_memory_has_to_be_told_its_rows(tmp_path: Path) -> None:
    source = table(tmp_path / "a.csv")
    fathom.fit(pl.read_csv(source), "label", out=tmp_path / "frame", model="mlp", epochs=1, sets=FEW)
    with pytest.raises(ConfigError, match=r"objective\.ewc\.data=SOURCE"):
        learned(source, tmp_path / "on", "ewc", weights=tmp_path / "frame")
    learned(source, tmp_path / "on", "ewc", (f'objective.data=["{source}"]',), weights=tmp_path / "frame", epochs=1)


def test_rows_of_unknown_classes_are_not_replayed(first: Path, tmp_path: Path) -> None:
    other = table(tmp_path / "other.csv", classes=("cold", "warm"))
    with pytest.raises(DataError, match=r"which 'objective\.replay\.earlier' asks for"):
        learned(other, tmp_path / "on", "replay", weights=first / "first")


def test_a_resumed_run_refuses_another_teacher_in_the_same_place(first: Path, tmp_path: Path) -> None:
    source, teacher = str(first / "first.csv"), tmp_path / "teacher"
    learned(source, teacher)
    sets = (f"objective.teacher={teacher}",)
    learned(source, tmp_path / "student", "distill", sets)
    learned(source, tmp_path / "student", "distill", sets, resume=True)
    learned(source, teacher, epochs=4)
    with pytest.raises((ConfigError, ArtifactError), match="belongs to another run"):
        learned(source, tmp_path / "student", "distill", sets, resume=True)


def test_sums_and_wrappers_are_kept_with_their_options_and_rebuilt(tmp_path: Path) -> None:
    source = table(tmp_path / "a.csv")
    sets = ("objective.mixup.alpha=0.4", "objective.supervised.dropout=0.1")
    model = learned(source, tmp_path / "out", "0.5*mixup(supervised)", sets)
    found = fathom.load(tmp_path / "out")
    config = found.info()["objective"]["config"]
    assert (config["mixup"]["alpha"], config["supervised"]["dropout"]) == (0.4, 0.1)
    assert found.predict(source).equals(model.predict(source))
    assert found.evaluate(source)["targets"] == model.evaluate(source)["targets"]
    with pytest.raises(ConfigError, match=r"its objective\.mixup was"):
        learned(source, tmp_path / "out", "0.5*mixup(supervised)", ("objective.mixup.alpha=0.3",), resume=True)
