"""Calibration, mistakes and slices."""

import base64
import io
from datetime import date, timedelta

import numpy as np
import pytest
from PIL import Image

from fathom.core.types import Field
from fathom.evaluate import appraise, calibration, mistakes, residuals, slices
from fathom.evaluate.mistakes import data_uri, show

CATEGORY = Field(name="y", kind="category", classes=("cat", "dog"))
NUMBER = Field(name="y", kind="number")


def coin(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of that confidence in class 0, and a truth that agrees where `right`."""
    return np.stack([confidence, 1 - confidence], axis=1), np.where(right, 0, 1)


def test_calibration_error_by_hand():
    p, truth = coin(np.array([0.9, 0.9, 0.9, 0.9, 0.6, 0.6]), np.array([1, 1, 1, 0, 1, 0], bool))
    found = calibration(p, truth)
    assert found["ece"] == pytest.approx((4 * abs(0.9 - 0.75) + 2 * abs(0.6 - 0.5)) / 6)
    assert [b["count"] for b in found["bins"]] == [2, 4]
    assert [b["accuracy"] for b in found["bins"]] == [0.5, 0.75]
    assert sum(b["count"] for b in found["bins"]) == 6


@pytest.mark.parametrize(("lean", "calibrated"), [(0.0, True), (0.15, False)])
def test_a_calibrated_model_is_told_from_one_that_is_too_sure(lean, calibrated):
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.6, 1.0, 4000)
    found = calibration(*coin(confidence, rng.random(4000) < confidence - lean))
    assert (found["ece"] <= found["expected_high"]) is calibrated
    assert found["confidence"] - found["accuracy"] == pytest.approx(lean, abs=0.02)


def test_calibration_of_no_rows_and_of_certainty():
    assert calibration(np.zeros((0, 2)), np.zeros(0, int))["bins"] == []
    certain = calibration(np.tile([1.0, 0.0], (5, 1)), np.zeros(5, int))
    assert (certain["ece"], certain["bins"][0]["to"]) == (0.0, 1.0)


def test_residuals_hold_what_they_say():
    rng = np.random.default_rng(0)
    predicted = rng.uniform(0, 100, 5000)
    truth = predicted + rng.normal(size=5000) - 2
    found = residuals(predicted, truth)
    assert found["bias"] == pytest.approx(2, abs=0.1)
    assert np.mean(np.abs(predicted - truth) <= found["within"]["90"]) == pytest.approx(0.9, abs=0.002)
    assert sum(band["count"] for band in found["bands"]) == 5000
    for band in found["bands"]:
        assert band["low"] < band["median"] < band["high"]
    assert len(found["points"]) == 400
    assert residuals(np.array([np.nan]), np.array([1.0]))["points"] == []


def test_confident_mistakes_come_first_and_right_rows_never():
    p = np.array([[0.6, 0.4], [0.1, 0.9], [0.99, 0.01], [0.3, 0.7], [0.2, 0.8]])
    found = mistakes(CATEGORY, p, np.array([1, 0, 0, 0, -1]))
    assert [m["row"] for m in found] == [1, 3, 0]
    assert found[0] == {"row": 1, "truth": "cat", "predicted": "dog", "probability": 0.9, "truth_probability": 0.1}
    assert [m["row"] for m in mistakes(CATEGORY, p, np.array([1, 0, 0, 0, -1]), limit=1)] == [1]


def test_largest_misses_come_first():
    found = mistakes(NUMBER, np.array([1.0, 5.0, 2.0, np.nan, 7.0]), np.array([1.5, 1.0, 2.0, 1.0, np.nan]))
    assert [(m["row"], m["error"]) for m in found] == [(1, 4.0), (0, -0.5)]


def test_images_are_shown_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 20, 30), dtype=np.uint8)
    uri = show(1, images={"photo": pixels})["images"]["photo"]
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), pixels[1])
    large = Image.open(io.BytesIO(base64.b64decode(data_uri(np.zeros((1, 300, 600), np.uint8)).partition(",")[2])))
    assert large.size == (96, 48)


def test_texts_and_values_are_shown_short():
    shown = show(0, texts={"log": ["word " * 1000]}, columns={"a": [None], "b": [0.1 + 0.2], "c": ["x" * 200]})
    assert len(shown["texts"]["log"]) <= 600
    assert shown["columns"]["a"] == "–"
    assert shown["columns"]["b"] == "0.3"
    assert len(shown["columns"]["c"]) == 80


def test_the_slice_that_does_worse_is_found_and_no_other():
    rng = np.random.default_rng(0)
    town = rng.choice(["north", "south", "east"], 3000)
    age = rng.uniform(0, 90, 3000)
    wrong = rng.random(3000) < np.where(town == "south", 0.3, 0.1)
    p = np.where(wrong[:, None], [[0.1, 0.9]], [[0.9, 0.1]])
    found = slices(CATEGORY, p, np.zeros(3000, int), {"town": town.tolist(), "age": age, "vip": (age > 45).tolist()})
    assert [(part["column"], part["value"]) for part in found if part["worse"]] == [("town", "south")]
    assert found[0]["value"] == "south"
    assert found[0]["low"] < 0.3 < found[0]["high"]
    assert {part["column"] for part in found} == {"town", "age", "vip"}
    assert sum(part["count"] for part in found if part["column"] == "age") == 3000


def test_chance_alone_is_hardly_ever_flagged():
    flagged = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        columns = {f"c{i}": rng.choice(list("abcd"), 400).tolist() for i in range(4)}
        flagged += any(part["worse"] for part in slices(NUMBER, rng.normal(size=400), np.zeros(400), columns))
    assert flagged <= 8


def test_missing_values_are_a_part_of_their_own_and_small_parts_are_passed_over():
    truth = np.zeros(100)
    error = np.where(np.arange(100) < 30, 5.0, 0.1) + np.random.default_rng(0).normal(size=100) * 0.05
    columns = {"income": [None] * 30 + [1.0] * 70, "rare": ["x"] * 5 + ["y"] * 95}
    found = slices(NUMBER, error, truth, columns)
    assert {(part["column"], part["value"]) for part in found} == {("income", "missing"), ("income", "1.0")}
    assert [part["value"] for part in found if part["worse"]] == ["missing"]


def test_dates_are_looked_at_in_quarters():
    days = [date(2024, 1, 1) + timedelta(days=i) for i in range(200)]
    error = np.where(np.arange(200) >= 150, 3.0, 0.1) + np.random.default_rng(0).normal(size=200) * 0.05
    found = slices(NUMBER, error, np.zeros(200), {"when": days})
    assert len(found) == 4
    assert found[0]["worse"]
    assert found[0]["value"].endswith("2024-07-18")


def test_mistakes_are_named_by_the_rows_of_the_source():
    p = np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    columns = {"name": ["ann", "bob", "cid"]}
    judged = appraise((CATEGORY,), {"y": p}, {"y": np.zeros(3, int)}, columns=columns, rows=[70, 71, 72], resamples=20)
    assert [(m["row"], m["columns"]) for m in judged[0].mistakes] == [(71, {"name": "bob"})]
