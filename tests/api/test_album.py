"""Pictures in the report of what a generator makes while it is trained: all of them, and at no cost to the weights."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import fathom
from fathom.api import fit as fitting
from fathom.engine.records import Epoch, Record
from fathom.objectives.autoencode import Autoencode
from tests.api.test_embed import png

QUICK = {"epochs": 6, "threads": 1, "precision": "fp32", "channels_last": "no", "average": 0.9, "batch_size": 16}
CONFIG = {"model": {"name": "vae", "code": 4}, "engine": QUICK, "split": {"test": 0.2, "valid": 0.2}}


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return pl.DataFrame({"image": [{"bytes": png(180 * (i % 2), i), "path": f"{i}.png"} for i in range(60)]})


@pytest.fixture(scope="module")
def whole(rows: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> fathom.Model:
    out = tmp_path_factory.mktemp("whole") / "out"
    return fathom.fit(rows, objective="autoencode", config=CONFIG, out=out)


def during(model: fathom.Model) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(model.files["evidence.json"])["during"]
    return found


def same_weights(one: fathom.Model, other: fathom.Model) -> bool:
    theirs = other.module.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.module.state_dict().items())


def test_the_report_shows_what_was_made_after_several_passes(whole: fathom.Model) -> None:
    told = during(whole)
    titles = dict.fromkeys(each["title"] for each in told)
    assert {"made up", "rows above their reconstructions"} <= set(titles)
    assert [(each["epoch"], each["title"]) for each in told] == [(n, t) for n in (1, 2, 4, 6) for t in titles]
    assert len({each["image"] for each in told if each["title"] == "made up"}) == 4  # it learned something each time
    page = whole.files["report.html"]
    places = [page.index(f"made up, after pass {epoch}") for epoch in (1, 2, 4, 6)]
    assert places == sorted(places) and "after pass 3" not in page


def test_training_is_the_same_where_nothing_is_shown(
    whole: fathom.Model, rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Autoencode, "show", lambda self, batch: {})
    without = fathom.fit(rows, objective="autoencode", config=CONFIG)
    assert during(without) == []
    assert same_weights(whole, without)


def test_random_numbers_of_the_pictures_are_not_those_of_training(
    whole: fathom.Model, rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's and NumPy's generators, which a user's augmentation may draw from, go on as if nothing was shown."""
    losses, drawn = Autoencode.losses, []

    def greedy(self: Autoencode, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert not torch.is_grad_enabled() and not self.training
        light = random.random() * np.random.random() * torch.rand(1).item()
        return {"chance": torch.full((2, 1, 8, 8), light)}

    def noting(self: Autoencode, batch: dict[str, torch.Tensor], phase: str = "main") -> object:
        drawn.append((random.random(), np.random.random()))
        return losses(self, batch, phase)

    monkeypatch.setattr(Autoencode, "losses", noting)
    found = []
    for show in (greedy, lambda self, batch: {}):
        monkeypatch.setattr(Autoencode, "show", show)
        drawn.clear()
        model = fathom.fit(rows, objective="autoencode", config=CONFIG)
        assert same_weights(whole, model)
        found.append(list(drawn))
    assert found[0] == found[1] and len(set(found[0])) == len(found[0])


def test_a_resumed_run_has_the_pictures_of_before(
    whole: fathom.Model, rows: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watch(records: Iterator[Record], show: bool) -> Iterator[Record]:
        for record in records:
            yield record
            if isinstance(record, Epoch) and record.epoch == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(fitting, "watch", watch)
        fathom.fit(rows, objective="autoencode", config=CONFIG, out=tmp_path / "a")
    kept = sorted(path.name for path in (tmp_path / "a" / "checkpoints").glob("shown-*"))
    assert kept == ["shown-000001.json", "shown-000002.json"]
    (tmp_path / "a" / "checkpoints" / "shown-000005.json").write_text("[]")  # of an earlier run in the same folder
    resumed = fathom.fit(rows, objective="autoencode", out=tmp_path / "a", resume=True)
    assert during(resumed) == during(whole)
    assert same_weights(whole, resumed)
    kept = sorted(path.name for path in (tmp_path / "a" / "checkpoints").glob("shown-*"))
    assert kept == [f"shown-00000{epoch}.json" for epoch in (1, 2, 4, 6)]


def test_what_was_lost_or_changed_by_hand_is_left_out(whole: fathom.Model, tmp_path: Path) -> None:
    from fathom.api.album import Album

    album = Album(tmp_path)
    for epoch, light in enumerate((0.1, 0.5, 0.9), 1):
        album.keep(epoch, {"made": torch.full((1, 1, 8, 8), light), "rows": torch.zeros(1, 1, 8, 8)})
    (tmp_path / "shown-000002.json").write_text('[{"title": 1}')
    told = Album(tmp_path).told((1, 2, 3))
    assert [(each["epoch"], each["title"]) for each in told] == [(1, "made"), (3, "made")]  # rows never change
