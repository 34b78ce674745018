"""Embeddings of any artifact, captions that were never a class, and pretraining that chains into fine-tuning."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

import fathom
from fathom.cli import app
from fathom.core.errors import ConfigError, DataError

FAST = ["evaluate.baselines=false", "engine.threads=1", "engine.precision=fp32", "engine.channels_last=no"]
VIT = ["model.width=16", "model.depth=1", "model.num_heads=2"]


def png(light: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    held = io.BytesIO()
    Image.fromarray((rng.integers(0, 60, (12, 12)) + light).astype(np.uint8)).save(held, "png")
    return held.getvalue()


@pytest.fixture(scope="module")
def images() -> pl.DataFrame:
    bright = [i % 2 for i in range(80)]
    return pl.DataFrame(
        {
            "image": [{"bytes": png(180 * b, i), "path": f"{i}.png"} for i, b in enumerate(bright)],
            "caption": [("a very dark picture", "a bright picture")[b] for b in bright],
            "label": [("night", "day")[b] for b in bright],
        }
    )


@pytest.fixture(scope="module")
def masked(images: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked") / "pre"
    sets = [*FAST, *VIT, "engine.batch_size=16"]
    fathom.fit(images.select("image"), model="vit", objective="mae", out=folder, epochs=3, sets=sets)
    return folder


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_masked_images_pass_into_fine_tuning(masked: Path, images: pl.DataFrame):
    loaded = fathom.load(masked)
    assert loaded.info()["targets"] == []
    assert loaded.metrics["measures"]["loss"]["value"] > 0
    sets = [*FAST, "engine.learning_rate=0.003", "engine.batch_size=16"]
    begun = fathom.fit(images.drop("caption"), "label", weights=masked, epochs=15, sets=sets)
    told = json.loads(begun.files["evidence.json"])
    assert told["run"]["model"] == "vit" and told["run"]["objective"] == "supervised"
    assert begun.module.model.width == 16
    score = begun.metrics["test"]["label"]["metrics"]["accuracy"]["value"]
    assert score > 0.8


def test_embeddings_come_as_a_table_or_an_array(masked: Path, images: pl.DataFrame, tmp_path: Path):
    source = tmp_path / "rows.parquet"
    images.write_parquet(source)
    found = fathom.load(masked).embed(images)
    assert found.columns == [f"embedding.{i}" for i in range(16)] and len(found) == 80
    run("embed", str(masked), str(source), "--out", str(tmp_path / "v.npy"))
    array = np.load(tmp_path / "v.npy")
    assert array.shape == (80, 16) and array.dtype == np.float32
    np.testing.assert_allclose(array, found.to_numpy(), rtol=1e-5)
    rows = json.loads(run("embed", str(masked), str(source), "--json"))
    assert rows[3]["embedding.2"] == pytest.approx(float(array[3, 2]), rel=1e-5)
    recall = json.loads(run("embed", str(masked), str(source), "--recall", "label", "--json"))
    assert recall["recall_at_1"]["value"] > 0.8 and recall["recall_at_1"]["rows"] == 80
    with pytest.raises(DataError, match=r"no column 'lable'.*'label'"):
        from fathom.api.embed import recalled

        recalled(fathom.load(masked), images, "lable")


def test_a_row_that_cannot_be_read_has_no_vector(masked: Path, images: pl.DataFrame, tmp_path: Path):
    broken = images.head(3).with_columns(
        image=pl.Series([{"bytes": png(9, 1), "path": "a"}, {"bytes": b"no image", "path": "b"}, None])
    )
    found = fathom.load(masked).embed(broken)
    assert found["embedding.0"].is_null().to_list() == [False, True, True]
    assert found["problem"].is_null().to_list() == [True, False, False]


def test_captions_tell_images_apart_that_have_none(images: pl.DataFrame, tmp_path: Path):
    sets = [*FAST, "model.image=vit", "model.width=16", "engine.batch_size=16", "engine.learning_rate=0.005"]
    sets += ["split.test=0.0", "split.valid=0.0"]
    with pytest.raises(ConfigError, match=r"set data\.kinds\.caption=text"):
        fathom.fit(images.drop("label"), objective="clip", epochs=1, sets=sets)
    sets.append("data.kinds.caption=text")  # two texts that repeat look like classes
    model = fathom.fit(images.drop("label"), objective="clip", epochs=15, out=tmp_path / "clip", sets=sets)
    captions = ["a bright picture", "a very dark picture"]
    found = fathom.load(tmp_path / "clip").match(images.select("image"), captions)
    right = (found["prediction"] == images["caption"]).mean()
    assert right > 0.9
    assert found.columns == ["prediction", "probability", *(f"probability.{each}" for each in captions)]
    assert len(model.embed(images.select("image")).columns) == 128
    with pytest.raises(ConfigError, match="expected two or more"):
        model.match(images, ["one"])


def test_other_models_match_no_captions(masked: Path, images: pl.DataFrame):
    with pytest.raises(ConfigError, match="cannot tell which caption"):
        fathom.load(masked).match(images, ["a", "b"])


def test_few_labels_and_many_images(images: pl.DataFrame):
    """Rows without a label are learned from, and the model is judged on rows with one."""
    labels = [label if i < 30 else None for i, label in enumerate(images["label"])]
    sets = [*FAST, *VIT, "engine.batch_size=16", "engine.learning_rate=0.003"]
    frame = images.select("image").with_columns(label=pl.Series(labels))
    model = fathom.fit(frame, "label", model="vit", objective="fixmatch", epochs=15, sets=sets)
    told = json.loads(model.files["evidence.json"])
    assert told["data"]["set_aside_count"] == 0
    assert any("have no 'label'" in note for note in told["data"]["notes"])
    assert model.metrics["test"]["label"]["metrics"]["accuracy"]["value"] > 0.9
    assert model.predict(images.select("image")).height == 80


def test_the_nearest_rows_of_another_source_are_told(masked: Path, images: pl.DataFrame, tmp_path: Path):
    model = fathom.load(masked)
    asked, others = images[:3], images[20:70]
    for name, rows in (("asked", asked), ("others", others)):
        for each in rows["image"]:
            (tmp_path / each["path"]).write_bytes(each["bytes"])
        rows.select(image=pl.col("image").struct.field("path")).write_csv(tmp_path / f"{name}.csv")
    found = model.neighbours(tmp_path / "asked.csv", tmp_path / "others.csv", 4)
    x, y = (model.embed(each).to_numpy().astype(float) for each in (asked, others))
    cosine = x @ y.T / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(y, axis=1)
    best = np.argsort(-cosine, axis=1)[:, :4]
    assert found["row"].to_list() == [1] * 4 + [2] * 4 + [3] * 4
    assert found["nearest"].to_list() == (best.ravel() + 1).tolist()
    assert found["nearest_name"].to_list() == [f"{20 + place}.png" for place in best.ravel()]
    np.testing.assert_allclose(found["cosine"], np.take_along_axis(cosine, best, 1).ravel(), atol=1e-6)
    assert model.neighbours(asked.row(1, named=True), others, 4)["nearest"].to_list() == found["nearest"][4:8].to_list()
    alone = model.neighbours(others, others, 1)
    assert (alone["row"] != alone["nearest"]).all()
    assert alone.columns == ["row", "nearest", "cosine"]  # images within a table have no path
    given = ["nearest", str(masked), str(tmp_path / "asked.csv"), "--among", str(tmp_path / "others.csv")]
    assert json.loads(run(*given, "--count", "4", "--json")) == found.to_dicts()
    lines = run(*given, "--count", "1").splitlines()
    assert lines[0] == "0.png" and lines[1] == f"  {cosine.max(1)[0]:.3f}  {20 + best[0, 0]}.png" and len(lines) == 6


def test_rows_of_plain_tables_are_told_by_number(tmp_path: Path):
    table = pl.DataFrame({"x": [0.1 * i for i in range(40)], "y": ["a", "b"] * 20})
    quick = {"model": {"name": "mlp"}, "engine": {"epochs": 1, "threads": 1}}
    fathom.fit(table, "y", config=quick, out=tmp_path / "out")
    table.drop("y").write_csv(tmp_path / "rows.csv")
    told = run("nearest", str(tmp_path / "out"), str(tmp_path / "rows.csv"), "--among", str(tmp_path / "rows.csv"))
    assert told.splitlines()[0] == "row 1" and len(told.splitlines()) == 40 * 6
    assert not [line for line in told.splitlines()[1:6] if line.endswith(" row 1")]  # no row is its own neighbour


def test_what_has_no_neighbours_is_said(masked: Path, images: pl.DataFrame):
    model = fathom.load(masked)
    broken = pl.DataFrame({"image": [{"bytes": b"no image", "path": "b"}]})
    with pytest.raises(DataError, match="has a vector to compare: "):
        model.neighbours(broken, images)
    assert len(model.neighbours(pl.concat([images[:2].select("image"), broken]), images, 1)) == 2
    with pytest.raises(ConfigError, match="given as 0; expected 1 or more"):
        model.neighbours(images, images, 0)
    with pytest.raises(ConfigError, match="with --among those to look among"):
        model.nearest("cat")
    for more, told in ((["other"], "a second source cannot"), (["--minus", "a"], "--minus cannot")):
        refused = CliRunner().invoke(app, ["nearest", str(masked), "fashion", *more, "--among", "fashion"])
        assert isinstance(refused.exception, ConfigError) and told in str(refused.exception)
