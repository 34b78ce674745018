"""Every kind of source trains a model and is predicted from again: tables, folders by class, mixed columns."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import fathom

QUICK = {"engine": {"epochs": 1, "threads": 1, "precision": "fp32"}, "evaluate": {"baselines": False}}


@pytest.fixture(scope="module")
def clothes() -> pl.DataFrame:
    """Sixty images of two classes from the bundled sample."""
    path = Path(fathom.__file__).parent / "samples" / "fashion.parquet"
    frame = pl.read_parquet(path).filter(pl.col("label").is_in(["Bag", "Trouser"]))
    return pl.concat([frame.filter(pl.col("label") == name).head(30) for name in ("Bag", "Trouser")])


@pytest.fixture(scope="module")
def verses() -> pl.DataFrame:
    path = Path(fathom.__file__).parent / "samples" / "verses.parquet"
    frame = pl.read_parquet(path).filter(pl.col("genre").is_in(["law", "gospel"]))
    return pl.concat([frame.filter(pl.col("genre") == name).head(60) for name in ("law", "gospel")])


def test_a_folder_of_images_by_class(clothes: pl.DataFrame, tmp_path: Path) -> None:
    for index, row in enumerate(clothes.iter_rows(named=True)):
        place = tmp_path / "clothes" / row["label"]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index}.png").write_bytes(row["image"]["bytes"])
    (tmp_path / "clothes" / "Bag" / "broken.png").write_bytes(b"\x89PNG not really")
    model = fathom.fit(tmp_path / "clothes", out=tmp_path / "out", config=QUICK)
    assert [f.name for f in model.artifact.spec.targets] == ["label"]
    assert model.artifact.config["model"]["name"] == "resnet"
    found = fathom.load(tmp_path / "out").predict(tmp_path / "clothes")
    assert len(found) == 61 and found["prediction"].is_null().sum() == 1
    assert found["problem"].drop_nulls().len() == 1
    np.testing.assert_allclose(
        model.predict(tmp_path / "clothes")["probability"].drop_nulls(), found["probability"].drop_nulls(), atol=1e-6
    )


def test_a_folder_of_texts_by_class(verses: pl.DataFrame, tmp_path: Path) -> None:
    for index, row in enumerate(verses.iter_rows(named=True)):
        place = tmp_path / "verses" / row["genre"]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index}.txt").write_text(row["text"], encoding="utf-8")
    model = fathom.fit(tmp_path / "verses", config=QUICK)
    found = model.predict([{"text": "In the beginning, God created the heavens and the earth."}])
    assert found["prediction"][0] in ("law", "gospel")


def test_a_table_with_paths_of_images(clothes: pl.DataFrame, tmp_path: Path) -> None:
    names = []
    for index, row in enumerate(clothes.iter_rows(named=True)):
        names.append(f"pictures/{index}.png")
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / names[-1]).write_bytes(row["image"]["bytes"])
    table = pl.DataFrame({"picture": names, "kind": clothes["label"]})
    table.write_csv(tmp_path / "table.csv")
    model = fathom.fit(tmp_path / "table.csv", "kind", config=QUICK)
    assert [(f.name, f.kind) for f in model.artifact.spec.inputs] == [("picture", "image")]
    assert len(model.predict(tmp_path / "table.csv")) == 60


def test_numbers_categories_dates_text_and_images_in_one_table(
    clothes: pl.DataFrame, verses: pl.DataFrame, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    table = pl.DataFrame(
        {
            "size": draw.normal(size=60),
            "colour": draw.choice(["red", "green", "blue"], 60),
            "sold": [date(2024, 1, 1) + timedelta(days=int(day)) for day in draw.integers(0, 700, 60)],
            "note": verses["text"].head(60),
            "image": clothes["image"],
            "price": draw.uniform(1, 90, 60),
            "label": clothes["label"],
        }
    )
    table.write_parquet(tmp_path / "table.parquet")
    model = fathom.fit(tmp_path / "table.parquet", ["label", "price"], out=tmp_path / "out", config=QUICK)
    assert model.artifact.spec.kinds == {"number", "category", "text", "image"}
    assert model.artifact.config["model"]["name"] == "mixed"
    found = fathom.load(tmp_path / "out").predict(table)
    np.testing.assert_allclose(found["prediction.price"], model.predict(table)["prediction.price"], rtol=1e-6)
    missing = table.with_columns(pl.lit(None, pl.Float64).alias("size"), pl.lit("purple").alias("colour"))
    assert model.predict(missing)["prediction.label"].null_count() == 0


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "jsonl"])
def test_every_format_of_table_gives_the_same_model(ending: str, tmp_path: Path) -> None:
    rows = pl.read_csv(Path(__file__).parent.parent / "my.csv")
    path = tmp_path / f"wine.{ending}"
    if ending in ("csv", "tsv"):
        rows.write_csv(path, separator="," if ending == "csv" else "\t")
    elif ending == "parquet":
        rows.write_parquet(path)
    else:
        rows.write_ndjson(path)
    expected = fathom.fit(rows, "cultivar", config=QUICK).predict(rows)
    assert fathom.fit(path, "cultivar", config=QUICK).predict(path).equals(expected)
