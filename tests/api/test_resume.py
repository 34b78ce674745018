"""Going on with a run through `fit`: the same end for every kind of model, and nothing taken on that would differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import fathom
from fathom.api import fit as fitting
from fathom.core.errors import ArtifactError, ConfigError
from fathom.core.types import DataSpec, Features
from fathom.engine.records import Epoch, Record

TABLE = Path(__file__).parent.parent / "my.csv"
QUICK = {"engine": {"epochs": 4, "threads": 1, "precision": "fp32"}, "evaluate": {"baselines": False}}


class Own(nn.Module):
    """A user's model, without a recipe."""

    width = 8

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.layer = nn.Linear(len(spec.numbers), 8)

    def forward(self, batch: dict[str, torch.Tensor]) -> Features:
        return Features(pooled=torch.dropout(self.layer(batch["number"]).relu(), 0.2, self.training))


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run is stopped, as by Ctrl-C, after its second epoch."""

    def watch(records: Iterator[Record], show: bool) -> Iterator[Record]:
        for record in records:
            yield record
            if isinstance(record, Epoch) and record.epoch == 2:
                monkeypatch.undo()
                raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "watch", watch)


def weights(model: fathom.Model) -> dict[str, torch.Tensor]:
    return model.module.state_dict()


@pytest.mark.parametrize("model", ["mlp", "mixed", Own], ids=str)
def test_a_stopped_run_ends_as_one_that_was_not(model: object, tmp_path: Path, interrupted: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        fathom.fit(TABLE, "cultivar", model=model, out=tmp_path / "a", config=QUICK)
    chosen = model if isinstance(model, type) else None  # a model of the catalog is named in the run's config
    resumed = fathom.fit(model=chosen, out=tmp_path / "a", resume=True)
    whole = fathom.fit(TABLE, "cultivar", model=model, config=QUICK)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(resumed).items())


@pytest.mark.parametrize("model", ["mlp", "mixed"])
def test_the_config_is_complete_and_repeats_the_run(model: str, tmp_path: Path) -> None:
    first = fathom.fit(TABLE, "cultivar", model=model, out=tmp_path / "a", config=QUICK)
    again = fathom.fit(config=tmp_path / "a" / "config.toml", out=tmp_path / "b")
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(first).items())
    told = (tmp_path / "a" / "config.toml").read_text()
    assert (tmp_path / "b" / "config.toml").read_text() == told
    for line in ("[data]", "[split]", "[prepare]", "[augment]", "[model]", "[objective]", "[engine]", "[evaluate]"):
        assert line in told


@pytest.mark.parametrize("change", ["objective.label_smoothing=0.3", "model.dropout=0.5", "engine.epochs=9"])
def test_a_resumption_with_other_options_is_refused_and_spoils_nothing(
    change: str, tmp_path: Path, interrupted: None
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fathom.fit(TABLE, "cultivar", out=tmp_path / "a", config=QUICK)
    with pytest.raises(ConfigError, match=change.split(".")[1].split("=")[0]):
        fathom.fit(out=tmp_path / "a", resume=True, sets=[change])
    fathom.fit(out=tmp_path / "a", resume=True)
    assert fathom.load(tmp_path / "a").metrics["rows"] > 0


def test_an_optimiser_of_ones_own_does_not_get_the_rate_of_another(tmp_path: Path) -> None:
    model = fathom.fit(TABLE, "cultivar", config=QUICK, sets=["engine.optimizer=sgd"], out=tmp_path / "a")
    assert 'optimizer = "sgd"' in model.files["config.toml"]
    assert "learning_rate = 0.0\n" in model.files["config.toml"]  # the optimiser's usual one


@pytest.mark.parametrize(
    ("option", "named"),
    [("engine.seed=-1", "seed"), ("engine.seed=abc", "seed"), ("engine.minutes=inf", "minutes")],
)
def test_odd_values_are_refused_by_name(option: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        fathom.fit(TABLE, "cultivar", config=QUICK, sets=[option])


def test_a_place_that_is_taken_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(ArtifactError, match=name):
            fathom.fit(TABLE, "cultivar", out=tmp_path / name, config={"engine": {"epochs": 100_000}})
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["thesis.txt"]
