"""A model in a person's hands: which rows its answers are for, and what it says of those that it left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.datasets import load_wine

import fathom
from fathom import artifact
from fathom.api.look import write_table
from fathom.core.errors import ArtifactError, ConfigError, DataError
from fathom.data import Table

QUICK = {"engine": {"epochs": 2, "threads": 1, "precision": "fp32"}, "evaluate": {"baselines": False}}


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frame = pl.from_pandas(load_wine(as_frame=True).frame[["alcohol", "ash", "hue", "proline", "target"]])
    names = ["barolo", "grignolino", "barbera"]
    path = tmp_path_factory.mktemp("wine") / "wine.csv"
    frame.with_columns(pl.col("target").replace_strict(range(3), names, return_dtype=pl.String)).write_csv(path)
    return path


@pytest.fixture(scope="module")
def frame(wine: Path) -> pl.DataFrame:
    return pl.read_csv(wine)


@pytest.fixture(scope="module")
def model(wine: Path) -> fathom.Model:
    return fathom.fit(wine, "target", config=QUICK)


def test_a_pandas_frame_keeps_its_index(model: fathom.Model, frame: pl.DataFrame) -> None:
    rows = frame.to_pandas().set_index(pd.Index([f"bottle {i}" for i in range(len(frame))], name="bottle"))
    shuffled = rows.sample(frac=1.0, random_state=1)
    found = model.predict(shuffled)
    assert found.index.equals(shuffled.index) and found.index.name == "bottle"
    expected = pd.Series(model.predict(frame)["probability"].to_numpy(), rows.index)
    np.testing.assert_allclose(found["probability"], expected[found.index], atol=1e-6)
    joined = shuffled.join(found)
    np.testing.assert_allclose(joined["probability"], expected[joined.index], atol=1e-6)


def test_lines_that_were_set_aside_leave_no_doubt_which_are_left(
    model: fathom.Model, frame: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [",".join(map(str, row)) for row in frame.head(6).drop("target").iter_rows()]
    lines = ["alcohol,ash,hue,proline,note", f"{rows[0]},a", f"{rows[1]},b,too,many", "", f'{rows[2]},"two', 'lines"',
             f"{rows[3]},c", "7", f"{rows[4]},d", f"{rows[5]},e"]  # fmt: skip
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    found = model.predict(tmp_path / "rows.csv")
    assert found["row"].to_list() == [2, 5, 7, 9, 10]
    expected = model.predict(frame.head(6))["probability"].to_numpy()[[0, 2, 3, 4, 5]]
    np.testing.assert_allclose(found["probability"], expected, atol=1e-6)
    told = capsys.readouterr().err
    assert "line 3: it has 7 fields instead of 5" in told and "line 8: it has 1 field" in told
    assert "1 blank line" in told


def test_so_do_lines_of_json(model: fathom.Model, frame: pl.DataFrame, tmp_path: Path) -> None:
    rows = [json.dumps(row) for row in frame.head(4).to_dicts()]
    (tmp_path / "rows.jsonl").write_text("\n".join([rows[0], "", rows[1], '{"alcohol": ', rows[2], "[]", rows[3]]))
    assert model.predict(tmp_path / "rows.jsonl")["row"].to_list() == [1, 3, 5, 7]


def test_without_a_line_set_aside_no_row_is_told(model: fathom.Model, wine: Path) -> None:
    assert model.predict(wine).columns[:2] == ["prediction", "probability"]
    assert "row" not in model.predict(wine).columns


@pytest.mark.parametrize("form", [np.array, pl.Series, pd.Series, tuple])
def test_a_dict_of_columns_is_a_table(model: fathom.Model, frame: pl.DataFrame, form: Callable) -> None:
    columns = {name: form(frame[name].head(5).to_list()) for name in model.artifact.preprocess.inputs}
    assert len(model.predict(columns)) == 5


def test_values_that_were_not_understood_are_said(
    model: fathom.Model, frame: pl.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = frame.with_columns(pl.Series("hue", ["pink", *map(str, frame["hue"][1:])]))
    model.predict(odd)
    assert "Column 'hue': 1 values" in capsys.readouterr().err
    notes = model.evaluate(odd)["notes"]
    assert any("Column 'hue': 1 values" in note for note in notes)
    assert "Column 'hue': 1 values" in capsys.readouterr().err


def test_evaluation_lists_the_rows_that_it_set_aside(
    model: fathom.Model, frame: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new.csv"
    lines = frame.write_csv().splitlines()
    lines[4] = lines[4].rsplit(",", 1)[0] + ","
    lines[9] += ",more"
    path.write_text("\n".join(lines) + "\n")
    scores = model.evaluate(path)
    assert scores["rows"] == 176 and scores["set_aside_count"] == 2
    broken, unlabelled = scores["set_aside"]
    assert (broken["where"], broken["row"], broken["column"]) == (str(path), 10, None)
    assert (unlabelled["where"], unlabelled["row"], unlabelled["column"]) == (str(path), 4, "target")
    assert broken["reason"] and unlabelled["reason"]
    told = capsys.readouterr().err
    assert "2 rows were set aside" in told and "it has 6 fields instead of 5" in told
    assert json.dumps(scores)


def test_a_table_without_a_row_to_score_is_refused(model: fathom.Model, frame: pl.DataFrame) -> None:
    with pytest.raises(DataError, match="can be scored"):
        model.evaluate(frame.with_columns(target=pl.lit(None, pl.String)))


def test_of_a_source_with_parts_the_test_rows_are_scored(
    model: fathom.Model, frame: pl.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    marked = frame.with_columns(part=pl.Series(["train", " Test", "holdout"] * 60).head(len(frame)))
    scores = model.evaluate(Table(marked, "wine by parts", split="part"))
    alone = model.evaluate(marked.filter(pl.col("part") != "train"))
    assert scores["rows"] == alone["rows"] == 118
    assert scores["targets"] == alone["targets"]
    assert "Only the 118 rows" in scores["notes"][0] and "Only the 118 rows" in capsys.readouterr().err


def test_the_source_of_the_training_rows_is_warned_of(
    model: fathom.Model, wine: Path, frame: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save(tmp_path / "out")
    for one in (model, fathom.load(tmp_path / "out")):
        assert "was trained on" in one.evaluate(wine)["notes"][0]
        assert "warning: the model was trained on" in capsys.readouterr().err
    (tmp_path / "wine.csv").write_bytes(wine.read_bytes())
    for other in (tmp_path / "wine.csv", frame):
        model.evaluate(other)
        assert "trained on" not in capsys.readouterr().err


def test_frames_are_not_taken_for_one_another(frame: pl.DataFrame) -> None:
    model = fathom.fit(frame.head(150), "target", config=QUICK)
    assert not model.evaluate(frame.tail(28))["notes"]


@pytest.mark.parametrize("name", ["config.toml", "evidence.json", "report.html"])
def test_only_files_of_the_manifest_are_read(model: fathom.Model, tmp_path: Path, name: str) -> None:
    fathom.Model(model.artifact, model.entries).save(tmp_path / "out")
    (tmp_path / "secret").write_text("somebody's")
    (tmp_path / "out" / name).symlink_to(tmp_path / "secret")
    found = fathom.load(tmp_path / "out")
    assert found.files == {}
    assert not (found.save(tmp_path / "copy") / name).exists()


def test_odd_evidence_is_refused_in_a_sentence(model: fathom.Model, tmp_path: Path) -> None:
    model.save(tmp_path / "out")
    path = tmp_path / "out" / "evidence.json"
    evidence = json.loads(path.read_text())
    for change in ({"main": "nothing"}, {"metrics": 3}, {}):
        score = {**evidence["targets"][0]["score"], **change} if change else {}
        path.write_text(json.dumps({**evidence, "targets": [{**evidence["targets"][0], "score": score}]}))
        artifact.seal(tmp_path / "out", "evidence.json")
        with pytest.raises(ArtifactError, match=r"evidence\.json"):
            fathom.load(tmp_path / "out").report()


@pytest.mark.parametrize("name", ["there", "there/below"])
def test_a_folder_in_use_is_refused_before_training(
    frame: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("fathom.api.fit.prepare", lambda *_: pytest.fail("the data were read"))
    if name == "there":
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "notes.txt").write_text("mine")
    else:
        (tmp_path / "there").write_text("a file")
    with pytest.raises(ArtifactError, match=r"not empty|is a file"):
        fathom.fit(frame, "target", out=tmp_path / name, config=QUICK)
    assert {p.name for p in tmp_path.rglob("*")} <= {"there", "notes.txt"}


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_a_table_that_cannot_be_written_is_one_sentence(frame: pl.DataFrame, tmp_path: Path, ending: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / f"folder{ending}").mkdir()
    for path in (tmp_path / "file" / f"x{ending}", tmp_path / f"folder{ending}", tmp_path / f"{'x' * 300}{ending}"):
        with pytest.raises(ConfigError, match="cannot be written") as caught:
            write_table(frame, path)
        assert "\n" not in str(caught.value)
