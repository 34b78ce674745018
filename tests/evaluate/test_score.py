"""Each metric against scikit-learn's, and the intervals against what is known of them."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from fathom.core.errors import DataError
from fathom.core.types import Field
from fathom.evaluate import score
from fathom.evaluate._resample import counts, wilson
from fathom.evaluate.score import measure


def category(classes: int, counts: tuple[int, ...] = ()) -> Field:
    return Field(name="y", kind="category", classes=tuple(f"class {i}" for i in range(classes)), counts=counts)


NUMBER = Field(name="y", kind="number")


def draw(seed: int, rows: int, classes: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that know something of the truth; with ties, on a coarse grid."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, rows)
    truth[:classes] = np.arange(classes)  # every class occurs, as scikit-learn's AUROC demands
    logits = rng.normal(size=(rows, classes))
    logits[np.arange(rows), truth] += 1.0
    if ties:
        logits = np.round(logits)
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True), truth


def values(scored: dict) -> dict[str, float]:
    return {name: entry["value"] for name, entry in scored["y"]["metrics"].items()}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.integers(8, 120), st.booleans())
def test_category_metrics_equal_scikit_learns(seed, classes, rows, ties):
    p, truth = draw(seed, rows, classes, ties)
    found = values(score((category(classes),), {"y": p}, {"y": truth}, resamples=0))
    predicted = p.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "accuracy": reference.accuracy_score(truth, predicted),
            "balanced_accuracy": reference.balanced_accuracy_score(truth, predicted),
            "macro_f1": reference.f1_score(truth, predicted, average="macro"),
            "log_loss": reference.log_loss(truth, p, labels=range(classes)),
            "auroc": reference.roc_auc_score(truth, p[:, 1])
            if classes == 2
            else reference.roc_auc_score(truth, p, multi_class="ovr"),
        }
    onehot = np.eye(classes)[truth]
    expected["brier"] = ((p - onehot) ** 2).sum(1).mean() / (2 if classes == 2 else 1)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_brier_of_two_classes_equals_scikit_learns():
    p, truth = draw(3, 200, 2, ties=False)
    found = values(score((category(2),), {"y": p}, {"y": truth}, resamples=0))
    assert found["brier"] == pytest.approx(reference.brier_score_loss(truth, p[:, 1]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 90), st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_number_metrics_equal_scikit_learns(seed, rows, mean, scale):
    rng = np.random.default_rng(seed)
    truth = mean + scale * rng.normal(size=rows)
    predicted = truth + 0.3 * scale * rng.normal(size=rows)
    found = values(score((NUMBER,), {"y": predicted}, {"y": truth}, resamples=0))
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(truth, predicted))
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(truth, predicted))
    assert found["median_ae"] == pytest.approx(reference.median_absolute_error(truth, predicted))
    assert found["r2"] == pytest.approx(reference.r2_score(truth, predicted), abs=1e-6)
    if "mape" in found:
        assert found["mape"] == pytest.approx(reference.mean_absolute_percentage_error(truth, predicted))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(10, 60))
def test_weighted_metrics_equal_those_of_repeated_rows(seed, classes, rows):
    p, truth = draw(seed, rows, classes, ties=True)
    drawn = next(counts(rows, 3, seed))
    weighted = measure(category(classes), p, truth)(drawn)
    for r in range(3):
        again = np.repeat(np.arange(rows), drawn[:, r].astype(int))
        repeated = measure(category(classes), p[again], truth[again])(np.ones((rows, 1)))
        for name, expected in repeated.items():
            np.testing.assert_allclose(weighted[name][r], expected[0], rtol=2e-5, atol=1e-6, err_msg=name)


def test_weighted_number_metrics_equal_those_of_repeated_rows():
    rng = np.random.default_rng(0)
    truth = 100 + rng.normal(size=41)
    predicted = truth + rng.normal(size=41)
    drawn = next(counts(41, 5, 0))
    weighted = measure(NUMBER, predicted, truth)(drawn)
    for r in range(5):
        again = np.repeat(np.arange(41), drawn[:, r].astype(int))
        repeated = measure(NUMBER, predicted[again], truth[again])(np.ones((41, 1)))
        for name, expected in repeated.items():
            np.testing.assert_allclose(weighted[name][r], expected[0], rtol=1e-4, err_msg=name)


def test_per_class_and_confusion_equal_scikit_learns():
    p, truth = draw(5, 150, 4, ties=False)
    scored = score((category(4),), {"y": p}, {"y": truth}, resamples=0)["y"]
    precision, recall, f1, support = reference.precision_recall_fscore_support(truth, p.argmax(1), labels=range(4))
    for row, expected in zip(scored["per_class"], zip(precision, recall, f1, support, strict=True), strict=True):
        assert (row["precision"], row["recall"], row["f1"], row["support"]) == pytest.approx(expected)
        assert row["recall_low"] <= row["recall"] <= row["recall_high"]
    assert scored["confusion"]["counts"] == reference.confusion_matrix(truth, p.argmax(1)).tolist()
    pairs = scored["confusion"]["pairs"]
    assert sum(pair["count"] for pair in pairs) == (truth != p.argmax(1)).sum()
    assert pairs == sorted(pairs, key=lambda pair: -pair["count"])


def test_accuracy_interval_agrees_with_the_binomial():
    rows, hits = 2000, 1700
    p = np.full((rows, 2), 0.5)
    p[:hits, 0], p[hits:, 1] = 0.9, 0.9
    entry = score((category(2),), {"y": p}, {"y": np.zeros(rows, int)})["y"]["metrics"]["accuracy"]
    half = 1.96 * math.sqrt(0.85 * 0.15 / rows)
    assert entry["low"] == pytest.approx(0.85 - half, abs=0.003)
    assert entry["high"] == pytest.approx(0.85 + half, abs=0.003)


def test_rmse_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        error = rng.normal(size=150)
        entry = score((NUMBER,), {"y": error}, {"y": np.zeros(150)}, seed=trial, resamples=200)["y"]["metrics"]["rmse"]
        covered += entry["low"] <= 1.0 <= entry["high"]
    assert 0.88 <= covered / 200 <= 0.99


def test_a_perfect_score_still_has_an_interval():
    p = np.tile([1.0, 0.0], (30, 1))
    scored = score((category(2),), {"y": p}, {"y": np.zeros(30, int)})["y"]["metrics"]
    low, high = wilson(30, 30)
    assert scored["accuracy"] == {"value": 1.0, "low": low, "high": high}
    assert 0.85 < low < 0.95
    assert high == 1.0


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_one_class_leaves_auroc_open_and_the_rest_stands(rows):
    p = np.tile([0.2, 0.8], (rows, 1))
    scored = score((category(2),), {"y": p}, {"y": np.ones(rows, int)})["y"]
    assert scored["metrics"]["auroc"] == {"value": None, "low": None, "high": None}
    assert scored["metrics"]["accuracy"]["value"] == 1.0
    assert scored["metrics"]["log_loss"]["value"] == pytest.approx(-math.log(0.8))


def test_numbers_without_variation_leave_r2_open():
    scored = score((NUMBER,), {"y": np.array([1.0, 3.0, 2.0])}, {"y": np.full(3, 2.0)})["y"]["metrics"]
    assert scored["r2"]["value"] is None
    assert scored["mae"]["value"] == pytest.approx(2 / 3)


def test_no_rows_at_all():
    scored = score((NUMBER,), {"y": np.zeros(0)}, {"y": np.zeros(0)})["y"]
    assert (scored["n"], scored["metrics"]) == (0, {})


def test_outputs_that_are_not_numbers_give_no_value():
    scored = score((NUMBER,), {"y": np.array([1.0, np.nan])}, {"y": np.array([1.0, 2.0])})["y"]["metrics"]
    assert scored["rmse"] == {"value": None, "low": None, "high": None}


def test_a_class_never_seen_in_training_is_an_error_of_the_accuracy_alone():
    p, truth = draw(1, 90, 3, ties=False)
    unseen = np.where(np.arange(90) % 3 == 0, -1, truth)
    unseen[3] = 7  # beyond the classes: unknown as well
    known = np.arange(90) % 3 != 0
    scored = score((category(3),), {"y": p}, {"y": unseen})["y"]
    rest = score((category(3),), {"y": p[known]}, {"y": truth[known]})["y"]
    assert (scored["n"], scored["unseen"], scored["left_out"]) == (90, 30, 0)
    assert (rest["n"], rest["unseen"]) == (60, 0)
    accuracy, of_rest = scored["metrics"]["accuracy"], rest["metrics"]["accuracy"]["value"]
    assert accuracy["value"] == pytest.approx(of_rest * 60 / 90)
    assert accuracy["low"] < accuracy["value"] < accuracy["high"] < of_rest + 0.1
    for name in set(scored["metrics"]) - {"accuracy"}:
        assert scored["metrics"][name]["value"] == pytest.approx(rest["metrics"][name]["value"]), name
    assert scored["per_class"] == rest["per_class"]
    assert scored["confusion"] == rest["confusion"]


def test_where_no_class_was_seen_in_training_all_is_wrong():
    scored = score((category(2),), {"y": np.tile([0.9, 0.1], (30, 1))}, {"y": np.full(30, -1)})["y"]
    assert (scored["n"], scored["unseen"], scored["main"]) == (30, 30, "accuracy")
    accuracy = scored["metrics"]["accuracy"]
    assert (accuracy["value"], accuracy["low"]) == (0.0, 0.0)
    assert 0 < accuracy["high"] < 0.2
    assert all(entry["value"] is None for name, entry in scored["metrics"].items() if name != "accuracy")


def test_numbers_of_unknown_truth_are_left_out_and_counted():
    numbers = score((NUMBER,), {"y": np.zeros(3)}, {"y": np.array([1.0, np.nan, 1.0])})["y"]
    assert (numbers["n"], numbers["left_out"], numbers["metrics"]["rmse"]["value"]) == (2, 1, 1.0)


def test_uneven_classes_are_judged_by_macro_f1():
    p, truth = draw(0, 60, 2, ties=False)
    assert score((category(2, (900, 100)),), {"y": p}, {"y": truth}, resamples=0)["y"]["main"] == "macro_f1"
    assert score((category(2, (500, 400)),), {"y": p}, {"y": truth}, resamples=0)["y"]["main"] == "accuracy"


def test_percentage_errors_are_given_only_where_they_make_sense():
    near_zero = np.array([0.0, 1.0, 2.0, 3.0])
    assert "mape" not in score((NUMBER,), {"y": near_zero}, {"y": near_zero})["y"]["metrics"]
    assert "mape" in score((NUMBER,), {"y": near_zero + 5}, {"y": near_zero + 5})["y"]["metrics"]


def test_a_thousand_classes_keep_a_small_matrix():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 1000, 3000)
    p = rng.random((3000, 1000))
    truth[:40], p[:40] = 7, np.eye(1000)[9]
    scored = score((category(1000),), {"y": p}, {"y": truth}, resamples=20)["y"]
    confusion = scored["confusion"]
    assert confusion["of"] == 1000
    assert len(confusion["counts"]) == len(confusion["classes"]) == 20
    assert confusion["pairs"][0] == {"truth": "class 7", "predicted": "class 9", "count": 40}
    assert {"class 7", "class 9"} <= set(confusion["classes"])


def test_very_many_rows_are_resampled_less_often_but_as_truly():
    rows = 160_000
    rng = np.random.default_rng(0)
    p = np.stack([np.full(rows, 0.6), np.full(rows, 0.4)], axis=1)
    scored = score((category(2),), {"y": p}, {"y": (rng.random(rows) < 0.4).astype(int)})["y"]["metrics"]
    width = scored["accuracy"]["high"] - scored["accuracy"]["low"]
    assert width == pytest.approx(2 * 1.96 * math.sqrt(0.6 * 0.4 / rows), rel=0.3)
    assert scored["auroc"] == {"value": 0.5, "low": None, "high": None}
    assert sum(part.shape[1] for part in counts(rows, 1000, 0)) == 125


def test_the_same_seed_gives_the_same_intervals():
    p, truth = draw(0, 80, 3, ties=False)
    first, second, other = (score((category(3),), {"y": p}, {"y": truth}, seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first != other


@pytest.mark.parametrize("outputs", [{}, {"y": np.zeros((3, 5))}, {"y": np.zeros(3)}])
def test_outputs_that_do_not_fit_are_named(outputs):
    with pytest.raises(DataError, match="Target 'y'"):
        score((category(2),), outputs, {"y": np.zeros(3, int)})
