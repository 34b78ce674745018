"""Two objectives added, through the public surface: trained, saved, loaded, asked, and gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

import fathom
from fathom.api import fit as fitting
from fathom.engine.records import Epoch, Record

QUICK: dict[str, Any] = {
    "engine": {"epochs": 4, "batch_size": 16, "threads": 1, "precision": "fp32", "learning_rate": 3e-3},
    "model": {"width": 16, "depth": 1, "num_heads": 2},
    "evaluate": {"baselines": False},
}
SUM = {"objective": "supervised+0.5*contrast", "model": "vit"}


@pytest.fixture(scope="module")
def images() -> pl.DataFrame:
    """Dark ones and light ones."""
    draw = np.random.default_rng(0)
    light = np.arange(60) % 2
    held = []
    for number in light:
        file = BytesIO()
        Image.fromarray((draw.integers(0, 60, (8, 8)) + 180 * number).astype(np.uint8)).save(file, "png")
        held.append({"bytes": file.getvalue(), "path": f"{len(held)}.png"})
    return pl.DataFrame({"image": held, "label": np.where(light > 0, "light", "dark")})


def weights(model: fathom.Model) -> dict[str, torch.Tensor]:
    return model.module.state_dict()


def test_it_learns_both_is_kept_and_asked(images: pl.DataFrame, tmp_path: Path) -> None:
    fathom.fit(images, "label", **SUM, out=tmp_path / "a", epochs=15, config=QUICK)
    loaded = fathom.load(tmp_path / "a")
    assert list(loaded.module.parts) == ["supervised", "contrast"]
    told = loaded.predict(images)
    assert (told["prediction"] == images["label"]).mean() > 0.9
    first = {name: value.clone() for name, value in weights(loaded).items()}
    loaded.save(tmp_path / "b")
    again = fathom.load(tmp_path / "b")
    assert first.keys() == weights(again).keys()
    assert all(torch.equal(value, weights(again)[name]) for name, value in first.items())
    assert again.predict(images).equals(told)
    vectors = again.embed(images)
    assert vectors.equals(loaded.embed(images)) and vectors.columns == [f"embedding.{i}" for i in range(16)]


def test_a_stopped_sum_ends_as_one_that_was_not(
    images: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fitting.watch

    def watch(records: Iterator[Record], show: bool) -> Iterator[Record]:
        for record in records:
            yield record
            if isinstance(record, Epoch) and record.epoch == 2:
                raise KeyboardInterrupt

    table = tmp_path / "images.parquet"
    images.write_parquet(table)
    monkeypatch.setattr(fitting, "watch", watch)
    with pytest.raises(KeyboardInterrupt):
        fathom.fit(table, "label", **SUM, out=tmp_path / "a", config=QUICK)
    monkeypatch.setattr(fitting, "watch", plain)
    resumed = fathom.fit(out=tmp_path / "a", resume=True)
    whole, other = (fathom.fit(table, "label", **SUM, config=QUICK, seed=seed) for seed in (0, 1))
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(resumed).items())
    assert any(not torch.equal(value, weights(other)[name]) for name, value in weights(whole).items())
