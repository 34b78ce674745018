"""The bundled sample `fashion` is what its description says."""

import io

import polars as pl
import pytest
from PIL import Image

from fathom.data import _samples

CLASSES = {"T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"}


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return pl.read_parquet(_samples.find("fashion").path)


def test_rows_and_columns(frame: pl.DataFrame) -> None:
    sample = _samples.find("fashion")
    assert frame.schema == {
        "image": pl.Struct({"bytes": pl.Binary, "path": pl.String}),
        "label": pl.String,
        "split": pl.String,
    }
    assert len(frame) == sample.rows == 12_000
    assert sample.target == ("label",)
    assert sample.split == "split"
    assert sample.path.stat().st_size < 6e6


def test_classes_are_even_in_both_parts(frame: pl.DataFrame) -> None:
    counts = frame.group_by("split", "label").len()
    assert set(counts["label"]) == CLASSES
    assert set(counts.filter(split="train")["len"]) == {1_000}
    assert set(counts.filter(split="test")["len"]) == {200}
    assert len(counts) == 20


def test_every_image_opens(frame: pl.DataFrame) -> None:
    total = 0.0
    for image in frame["image"].gather_every(20):
        with Image.open(io.BytesIO(image["bytes"])) as opened:
            assert (opened.format, opened.mode, opened.size) == ("PNG", "L", (28, 28))
            total += sum(value * count for value, count in enumerate(opened.histogram())) / 28 / 28 / 600
    assert total == pytest.approx(73, abs=3)  # the mean grey of Fashion-MNIST


def test_no_image_stands_twice_nor_in_both_parts(frame: pl.DataFrame) -> None:
    unnested = frame.unnest("image")
    assert unnested["path"].n_unique() == len(frame)
    test = set(unnested.filter(split="test")["bytes"])
    assert not test & set(unnested.filter(split="train")["bytes"])
    assert (unnested["path"].str.split("/").list.first() == unnested["split"]).all()


def test_the_licence_comes_with_it() -> None:
    notice = _samples.find("fashion").notice.read_text(encoding="utf-8")
    assert "2017 Zalando SE" in notice
    assert "Permission is hereby granted, free of charge" in notice
    assert _samples.find("fashion").licence == "MIT"
