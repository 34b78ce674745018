"""An objective that learns without targets goes the same way: trained, measured, kept, loaded, asked."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import fathom
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.types import Loss
from fathom.data import read
from fathom.evaluate.measures import measures


class Compress(Objective):
    """Learns to tell a row's mean brightness from its features: enough to see every room."""

    TARGET = "unused"

    def __init__(self, spec, model):
        super().__init__()
        assert not spec.targets
        assert [f.name for f in spec.inputs] == ["image"]
        self.model, self.head, self.predicts = model, nn.Linear(model.width, 1), ()

    def _each(self, batch):
        wanted = batch["image:image"].float().mean((1, 2, 3)) / 255
        return (self.head(self.model(batch).pooled).squeeze(1) - wanted).square()

    def losses(self, batch, phase="main"):
        return Loss(self._each(batch).mean(), weight=float(len(batch["image:image"])))

    def metrics(self, batch):
        return {"loss": self._each(batch), "noise": torch.rand(len(batch["image:image"]))}

    def predict(self, batch):
        features = self.model(batch).pooled
        return {"embedding": features[:, :3], "odd": self._each(batch)}

    def show(self, batch):
        return {"what it saw": batch["image:image"].float() / 255}


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return read("fashion").frame.head(120).select("image", "label")


@pytest.fixture(scope="module")
def trained(rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("without") / "model"
    return fathom.fit(rows, target="label", objective=Compress, model="lenet5", epochs=2, out=out)


def test_a_target_that_is_not_used_is_no_input_either(trained):
    assert [f.name for f in trained.artifact.spec.inputs] == ["image"]
    assert trained.artifact.spec.targets == ()
    assert trained.metrics["test"] == {}


def test_its_own_measures_are_means_with_intervals_and_the_same_each_time(trained, rows):
    found = trained.metrics["measures"]
    assert set(found) == {"loss", "noise"}
    assert all(entry["low"] < entry["value"] < entry["high"] and entry["n"] == 24 for entry in found.values())
    again, more = trained.evaluate(rows), trained.evaluate(rows)
    assert again["measures"] == more["measures"]
    assert again["targets"] == {}


def test_it_predicts_columns_of_its_own_before_and_after_loading(trained, rows):
    found = trained.predict(rows.head(5).drop("label"))
    assert found.columns == ["embedding.0", "embedding.1", "embedding.2", "odd"]
    loaded = fathom.load(trained.folder, objective=trained.module)
    assert loaded.predict(rows.head(5)).equals(found)


def test_the_report_the_card_and_the_terminal_show_measures_and_pictures(trained):
    page, card = trained.report().read_text(), (trained.folder / "README.md").read_text()
    assert "How well it does its task" in page
    assert "What it saw" in page
    assert page.count("data:image/png;base64,") == 1
    assert "| loss |" in card
    assert "Compress" in trained.summary()
    assert "noise" in trained.summary()


def test_means_are_numpys_and_what_is_not_finite_is_left_out():
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    found = measures({"a": np.append(values, np.nan)})["a"]
    assert found["value"] == pytest.approx(values.mean())
    assert found["n"] == 400
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    assert measures({"a": np.array([np.nan])})["a"] == {"value": None, "low": None, "high": None, "n": 0}


def test_an_objective_may_refuse_a_model(rows, monkeypatch):
    from fathom.objectives import supervised

    monkeypatch.setattr(supervised, "needs", lambda model: "it needs something else", raising=False)
    with pytest.raises(ConfigError, match="Objective 'supervised' cannot train the model 'lenet5': it needs something"):
        fathom.fit(rows, target="label", model="lenet5", epochs=1)
