"""Baselines on real data, and the verdict that they lead to."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import datasets
from sklearn.ensemble import HistGradientBoostingRegressor

from fathom.core.types import UNKNOWN, DataSpec, Field
from fathom.evaluate import Baseline, baselines, verdict
from fathom.evaluate.compare import verdict as judge

methods = importlib.import_module("fathom.evaluate.baselines")  # the package's own name for it is the function


def numbers(name: str) -> tuple[dict, dict, DataSpec]:
    """A scikit-learn set as batches, a third of it for testing."""
    loaded = getattr(datasets, f"load_{name}")()
    x, y = torch.tensor(loaded.data, dtype=torch.float32), torch.tensor(loaded.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    cut = 2 * len(x) // 3
    if name == "diabetes":
        target, y = Field(name="y", kind="number"), y.float()
    else:
        counts = tuple(torch.bincount(y[order[:cut]]).tolist())
        target = Field(name="y", kind="category", classes=tuple(map(str, loaded.target_names)), counts=counts)
    inputs = tuple(Field(name=f"x{i}", kind="number") for i in range(x.shape[1]))
    spec = DataSpec(inputs=inputs, targets=(target,), rows=cut)
    train, test = ({"number": x[rows], "target:y": y[rows]} for rows in (order[:cut], order[cut:]))
    return train, test, spec


def values(found: list[Baseline]) -> dict[str, float]:
    return {b.name: b.metrics[b.main]["value"] for b in found}


@pytest.mark.parametrize("name", ["wine", "breast_cancer"])
def test_simple_classifiers_beat_the_majority(name):
    reached = values(baselines(*numbers(name), resamples=50))
    assert list(reached) == ["majority class", "logistic regression", "HistGradientBoosting"]
    assert min(reached["logistic regression"], reached["HistGradientBoosting"]) > 0.9 > reached["majority class"]


def test_simple_regressors_beat_the_mean_and_trees_are_scikit_learns_defaults():
    train, test, spec = numbers("diabetes")
    found = baselines(train, test, spec, resamples=50)
    reached = values(found)
    assert reached["ridge regression"] < 0.8 * reached["mean"]
    assert reached["HistGradientBoosting"] < 0.9 * reached["mean"]
    plain = HistGradientBoostingRegressor(random_state=0).fit(train["number"].numpy(), train["target:y"].numpy())
    trees = next(b for b in found if b.name == "HistGradientBoosting")
    np.testing.assert_allclose(trees.output, plain.predict(test["number"].numpy()))
    assert trees.note == ""


def test_words_decide_where_texts_are_given_and_tokens_where_not():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 200)
    words = [["calm sea", "rough sea"][t] + f" {rng.integers(0, 50)}" for t in truth]
    tokens = torch.tensor([[5 + t, 7, 9 + int(rng.integers(0, 50)), 0] for t in truth])
    spec = DataSpec(
        inputs=(Field(name="log", kind="text", shape=(4,), vocabulary=60),),
        targets=(Field(name="y", kind="category", classes=("calm", "rough")),),
    )
    train, test = ({"text:log": tokens[s], "target:y": torch.tensor(truth)[s]} for s in (slice(150), slice(150, None)))
    for texts in ({"log": (words[:150], words[150:])}, None):
        reached = values(baselines(train, test, spec, texts, resamples=20))
        assert reached == {"majority class": pytest.approx(0.5, abs=0.2), "TF-IDF + logistic regression": 1.0}


def test_kinds_are_put_side_by_side_and_large_images_made_small():
    rng = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 2, (120,), generator=rng)
    images = torch.randint(0, 100, (120, 3, 40, 40), generator=rng, dtype=torch.uint8)
    spec = DataSpec(
        inputs=(
            Field(name="size", kind="number"),
            Field(name="colour", kind="category", classes=(UNKNOWN, "red", "blue")),
            Field(name="photo", kind="image", shape=(3, 40, 40)),
            Field(name="log", kind="text", vocabulary=20),
        ),
        targets=(Field(name="y", kind="category", classes=("a", "b")),),
    )
    batch = {
        "number": torch.randn(120, 1, generator=rng),
        "category": 1 + truth[:, None],  # what gives the answer away
        "image:photo": images,
        "text:log": torch.randint(5, 20, (120, 4), generator=rng),
        "target:y": truth,
    }
    train, test = ({k: v[s] for k, v in batch.items()} for s in (slice(80), slice(80, None)))
    found = {b.name: b for b in baselines(train, test, spec, resamples=20)}
    assert found["HistGradientBoosting"].metrics["accuracy"]["value"] == 1.0
    assert "14×14 pixels" in found["HistGradientBoosting"].note
    assert "32×32 pixels" in found["TF-IDF + logistic regression"].note


def test_a_baseline_that_fails_is_listed_with_its_reason():
    train, test, spec = numbers("wine")
    train = train | {"number": torch.full_like(train["number"], float("nan"))}
    found = {b.name: b for b in baselines(train, test, spec, resamples=20)}
    failed = found["logistic regression"].record()
    assert failed["failed"]
    assert "NaN" in failed["note"]
    assert not found["majority class"].record()["failed"]


def test_too_little_time_cuts_rounds_and_says_so():
    train, test, spec = numbers("breast_cancer")
    found = {b.name: b for b in baselines(train, test, spec, seconds=1e-6, resamples=20)}
    assert "rounds instead of 100" in found["HistGradientBoosting"].note
    assert [b.name for b in found.values() if b.cut_short] == ["logistic regression", "HistGradientBoosting"]
    assert found["HistGradientBoosting"].metrics["accuracy"]["value"] > 0.85


@pytest.mark.parametrize(
    ("each", "rounds", "rows"),
    [
        (0.0001, 100, 500_000),  # all of it fits
        (0.0005, 40, 500_000),  # fewer rounds
        (0.01, 31, 32_000),  # fewer rounds and rows
        (0.9, 5, 2000),  # a machine so busy that the fewest rounds do not fit for the fewest rows
        (60.0, 1, 2000),
    ],
)
def test_a_slow_round_costs_rounds_and_then_rows(monkeypatch, each, rounds, rows):
    """On a machine where a round takes `each` seconds for a thousand rows, nothing overruns ten seconds by more than
    one round on the fewest rows, the least that can be tried."""
    spent = []

    def seconds(fit, rounds: int, rows: int) -> float:
        spent.append(each * rounds * rows / 1000)
        return spent[-1]

    monkeypatch.setattr(methods, "_seconds", seconds)
    assert methods._affordable(None, wanted=100, rows=500_000, seconds=10.0) == (rounds, rows)
    assert sum(spent) <= max(10.0, each * 2)
    assert each * rounds * rows / 1000 <= max(10.0, each * 2)


def test_rows_that_are_left_out_are_told_of(monkeypatch):
    """Trees on a fifth of the rows still know every class, and say on how many they were grown."""
    rng = np.random.default_rng(0)
    truth = np.concatenate([rng.integers(0, 2, 9_999), [2]])
    target = Field(name="y", kind="category", classes=("a", "b", "seldom"), counts=(5000, 4999, 1))
    spec = DataSpec(inputs=(Field(name="x", kind="number"),), targets=(target,))
    x = torch.tensor(truth[:, None] + 0.3 * rng.normal(size=(10_000, 1)), dtype=torch.float32)
    batch = {"number": x, "target:y": torch.tensor(truth)}
    monkeypatch.setattr(methods, "_affordable", lambda fit, wanted, rows, seconds: (20, 2000))
    found = {b.name: b for b in baselines(batch, batch, spec, resamples=20)}
    assert found["HistGradientBoosting"].note == "20 rounds instead of 100; 2,000 rows instead of 10,000"
    assert found["HistGradientBoosting"].cut_short
    assert found["HistGradientBoosting"].metrics["accuracy"]["value"] > 0.9
    assert found["HistGradientBoosting"].output[:, 2].max() > 0
    assert "2,000 rows" in found["logistic regression"].note


def test_uneven_classes_keep_their_shares():
    """Among one in ten, a rare class gets as much probability as it has rows, as it does from the model."""
    rng = np.random.default_rng(0)
    truth = (rng.random(3000) < 0.1).astype(int)
    x = truth[:, None] * 1.0 + rng.normal(size=(3000, 1))
    target = Field(name="y", kind="category", classes=("common", "rare"), counts=(2700, 300))
    spec = DataSpec(inputs=(Field(name="x", kind="number"),), targets=(target,))
    batch = {"number": torch.tensor(x, dtype=torch.float32), "target:y": torch.tensor(truth)}
    train, test = ({k: v[s] for k, v in batch.items()} for s in (slice(2000), slice(2000, None)))
    for baseline in baselines(train, test, spec, resamples=20):
        assert baseline.main == "macro_f1"
        assert baseline.output[:, 1].mean() == pytest.approx(truth[:2000].mean(), abs=0.02)


def test_a_class_unseen_in_training_has_no_chance():
    train, test, spec = numbers("wine")
    kept = train["target:y"] != 2
    train = {key: column[kept] for key, column in train.items()}
    for baseline in baselines(train, test, spec, resamples=20):
        assert baseline.output.shape == (len(test["target:y"]), 3)
        assert (baseline.output[:, 2] == 0).all()


TARGET = Field(name="y", kind="category", classes=("a", "b"))


def answers(truth: np.ndarray, right: int) -> np.ndarray:
    """Probabilities that are right on the first rows only."""
    said = np.where(np.arange(len(truth)) < right, truth, 1 - truth)
    return np.eye(2)[said] * 0.8 + 0.1


def rival(output: np.ndarray, truth: np.ndarray, name: str = "logistic regression") -> Baseline:
    share = float((output.argmax(1) == truth).mean())
    return Baseline(name, "y", "accuracy", {"accuracy": {"value": share, "low": None, "high": None}}, output=output)


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome", "words"),
    [
        (950, 900, "better", "worth it here"),
        (900, 950, "worse", "use logistic regression instead"),
        (901, 900, "level", "No clear difference"),
    ],
)
def test_the_verdict_is_honest(ours, theirs, outcome, words):
    truth = np.random.default_rng(0).integers(0, 2, 1000)
    rivals = [rival(answers(truth, theirs), truth), rival(answers(truth, 500), truth, "majority class")]
    found = verdict((TARGET,), {"y": answers(truth, ours)}, {"y": truth}, rivals)["y"]
    assert found["outcome"] == outcome
    assert words in found["sentence"]
    assert found["baseline"] == "logistic regression"
    assert found["difference"] == pytest.approx((ours - theirs) / 1000)
    assert found["low"] <= found["difference"] <= found["high"]


def test_a_rival_that_was_cut_short_is_no_clear_defeat():
    truth = np.random.default_rng(0).integers(0, 2, 1000)
    cut = replace(rival(answers(truth, 900), truth), cut_short=True)
    found = verdict((TARGET,), {"y": answers(truth, 950)}, {"y": truth}, [cut])["y"]
    assert found["sentence"].endswith("With more time logistic regression might do better.")


def test_rows_are_compared_in_pairs():
    """Two models that fail on nearly the same rows differ less than their own intervals suggest."""
    truth = np.zeros(1000, int)
    found = verdict((TARGET,), {"y": answers(truth, 720)}, {"y": truth}, [rival(answers(truth, 700), truth)])["y"]
    paired = found["high"] - found["low"]
    independent = 2 * 1.96 * np.sqrt(0.71 * 0.29 / 1000 * 2)
    assert paired < independent / 3
    assert found["outcome"] == "better"


def test_lower_is_better_for_numbers():
    truth = np.random.default_rng(0).normal(size=500)
    good, bad = truth + 0.1, truth + np.random.default_rng(1).normal(size=500)
    target = Field(name="y", kind="number")
    other = Baseline("mean", "y", "rmse", {"rmse": {"value": 1.0, "low": None, "high": None}}, output=bad)
    assert judge((target,), {"y": good}, {"y": truth}, [other])["y"]["outcome"] == "better"
    other = Baseline("mean", "y", "rmse", {"rmse": {"value": 0.1, "low": None, "high": None}}, output=good)
    assert judge((target,), {"y": bad}, {"y": truth}, [other])["y"]["outcome"] == "worse"


def test_without_baselines_there_is_no_verdict():
    truth = np.zeros(10, int)
    failed = Baseline("HistGradientBoosting", "y", "accuracy", note="failed: no memory")
    for rivals in ([], [failed]):
        assert verdict((TARGET,), {"y": answers(truth, 9)}, {"y": truth}, rivals)["y"]["outcome"] == "unknown"
