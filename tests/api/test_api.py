"""The Python surface from end to end, on small real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch import nn

import fathom
from fathom.core.errors import ArtifactError, ConfigError, DataError
from fathom.core.types import DataSpec, Features

QUICK = {"engine": {"epochs": 2, "threads": 1, "precision": "fp32"}, "evaluate": {"baselines": False}}


@pytest.fixture(scope="module")
def cancer() -> pl.DataFrame:
    from sklearn.datasets import load_breast_cancer

    frame = pl.from_pandas(load_breast_cancer(as_frame=True).frame)
    return frame.with_columns(
        pl.when(pl.col("target") == 1).then(pl.lit("benign")).otherwise(pl.lit("malignant")).alias("target")
    )


@pytest.fixture(scope="module")
def model(cancer: pl.DataFrame) -> fathom.Model:
    return fathom.fit(cancer, "target", config=QUICK)


def test_predictions_have_a_row_for_each_row(model: fathom.Model, cancer: pl.DataFrame) -> None:
    found = model.predict(cancer)
    assert found.columns == ["prediction", "probability", "probability.benign", "probability.malignant"]
    assert len(found) == len(cancer)
    total = found["probability.benign"] + found["probability.malignant"]
    np.testing.assert_allclose(total.to_numpy(), 1, atol=1e-5)


def test_every_form_of_rows_predicts_the_same(model: fathom.Model, cancer: pl.DataFrame, tmp_path: Path) -> None:
    rows = cancer.head(5)
    rows.write_csv(tmp_path / "rows.csv")
    expected = model.predict(rows)["probability"].to_numpy()
    for form in (rows.to_dicts(), rows.to_dict(as_series=False), tmp_path / "rows.csv", str(tmp_path / "rows.csv")):
        np.testing.assert_allclose(model.predict(form)["probability"].to_numpy(), expected, atol=1e-6)
    one = model.predict(rows.to_dicts()[0])
    assert len(one) == 1
    from_pandas = model.predict(rows.to_pandas())
    assert isinstance(from_pandas, pd.DataFrame)
    np.testing.assert_allclose(from_pandas["probability"], expected, atol=1e-6)


def test_saved_and_loaded_it_predicts_the_same(model: fathom.Model, cancer: pl.DataFrame, tmp_path: Path) -> None:
    expected = model.predict(cancer)["probability"].to_numpy()
    model.save(tmp_path / "out")
    loaded = fathom.load(tmp_path / "out")
    np.testing.assert_allclose(loaded.predict(cancer)["probability"].to_numpy(), expected, rtol=0, atol=1e-6)
    assert loaded.metrics == model.metrics
    loaded.save(tmp_path / "copy")
    assert fathom.load(tmp_path / "copy").report() == tmp_path / "copy" / "report.html"


def test_evaluate_agrees_with_scikit_learn(model: fathom.Model, cancer: pl.DataFrame) -> None:
    from sklearn.metrics import accuracy_score, roc_auc_score

    scores = model.evaluate(cancer)["targets"]["target"]["metrics"]
    found = model.predict(cancer)
    assert scores["accuracy"]["value"] == pytest.approx(accuracy_score(cancer["target"], found["prediction"]))
    truth = (cancer["target"] == "malignant").to_numpy()
    assert scores["auroc"]["value"] == pytest.approx(roc_auc_score(truth, found["probability.malignant"]), abs=1e-6)


@pytest.mark.parametrize("part", ["test", "valid"])
def test_the_preprocessing_is_fitted_on_training_rows_only(cancer: pl.DataFrame, part: str) -> None:
    """What rows that are kept back hold changes nothing that is learned of the columns; of test rows, no weight."""
    draw = np.random.default_rng(0)
    parts = draw.permutation(["train"] * 300 + ["valid"] * 120 + ["test"] * 149)
    table = cancer.with_columns(
        part=pl.Series(parts), colour=pl.Series(draw.choice(["red", "green", "blue"], len(cancer)))
    )
    kept_back = pl.col("part") == part
    odd = table.with_columns(
        pl.when(kept_back).then(pl.col("mean radius") * 1000).otherwise(pl.col("mean radius")).alias("mean radius"),
        pl.when(kept_back & (pl.col("mean area") > 500)).then(None).otherwise(pl.col("mean area")).alias("mean area"),
        pl.when(kept_back).then(pl.lit("violet")).otherwise(pl.col("colour")).alias("colour"),
    )
    config = QUICK | {"split": {"column": "part"}}
    one, other = (fathom.fit(frame, "target", config=config) for frame in (table, odd))
    assert one.artifact.spec == other.artifact.spec
    assert one.artifact.spec.rows == 300
    mine, theirs = one.artifact.preprocess, other.artifact.preprocess
    assert mine.numbers and mine.categories
    for learned in ("numbers", "categories", "dates", "texts", "images", "outcomes", "rows"):
        assert getattr(mine, learned) == getattr(theirs, learned), learned
    if part == "test":
        for name, value in one.module.state_dict().items():
            assert torch.equal(value, other.module.state_dict()[name]), name


def test_the_same_seed_gives_the_same_weights_and_another_does_not(cancer: pl.DataFrame) -> None:
    runs = [fathom.fit(cancer, "target", seed=seed, config=QUICK).module.state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_several_targets_of_different_kinds(cancer: pl.DataFrame) -> None:
    model = fathom.fit(cancer, ["target", "mean radius"], config=QUICK)
    found = model.predict(cancer.head(3))
    assert {"prediction.target", "prediction.mean radius"} <= set(found.columns)
    assert set(model.metrics["test"]) == {"target", "mean radius"}


def test_rows_in_both_training_and_test_are_counted(cancer: pl.DataFrame) -> None:
    import json

    model = fathom.fit(cancer.head(400), "target", test=cancer.slice(350, 200), config=QUICK)
    overlaps = json.loads(model.files["evidence.json"])["data"]["overlaps"]
    assert 30 <= overlaps <= 50  # of the fifty, those that were not kept to validate by


class Linear(nn.Module):
    """The user's own architecture."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.width = 7
        self.layer = nn.Linear(len(spec.numbers), 7)

    def forward(self, batch: dict[str, torch.Tensor]) -> Features:
        return Features(pooled=self.layer(batch["number"]).relu())


def test_a_model_of_the_users_own(cancer: pl.DataFrame, tmp_path: Path) -> None:
    model = fathom.fit(cancer, "target", model=Linear, out=tmp_path / "own", config=QUICK)
    expected = model.predict(cancer)["probability"].to_numpy()
    with pytest.raises(ArtifactError, match="Linear"):
        fathom.load(tmp_path / "own")
    loaded = fathom.load(tmp_path / "own", model=Linear(model.artifact.spec))
    np.testing.assert_allclose(loaded.predict(cancer)["probability"].to_numpy(), expected, atol=1e-6)


def test_a_model_without_a_width_is_refused(cancer: pl.DataFrame) -> None:
    with pytest.raises(ConfigError, match="width"):
        fathom.fit(cancer, "target", model=nn.Linear(2, 2), config=QUICK)


def test_missing_columns_are_named(model: fathom.Model, cancer: pl.DataFrame) -> None:
    with pytest.raises(DataError, match="mean area"):
        model.predict(cancer.drop("mean area"))


def test_inspect_names_every_column(cancer: pl.DataFrame) -> None:
    found = fathom.inspect(cancer, "target")
    assert [c["name"] for c in found["columns"]] == cancer.columns
    assert found["rows"] == len(cancer)


def test_a_folder_with_odd_metrics_is_refused_in_a_sentence(model: fathom.Model, tmp_path: Path) -> None:
    from fathom import artifact

    model.save(tmp_path / "out")
    for odd in ("{}", '{"rows": "many", "judged_on": 3, "test": {"target": []}}', '{"rows": 1, "test": 7}'):
        (tmp_path / "out" / "metrics.json").write_text(odd)
        artifact.seal(tmp_path / "out", "metrics.json")
        with pytest.raises(ArtifactError, match=r"metrics\.json"):
            fathom.load(tmp_path / "out").summary()


def test_without_evidence_there_is_no_report(model: fathom.Model, tmp_path: Path) -> None:
    bare = fathom.Model(model.artifact, model.entries)
    with pytest.raises(ArtifactError, match=r"evidence\.json"):
        bare.report()
