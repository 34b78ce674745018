"""What a simple method reaches on the same rows: the yardstick of every model.

majority or mean            knows nothing of the inputs
logistic or ridge           one weight for each number, class, pixel, word and word pair
gradient boosted trees      scikit-learn's HistGradientBoosting with its defaults

None weighs classes: what the model predicts is put back to the classes' shares, so that all are judged alike.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fathom.core.types import Batch, DataSpec, Field
from fathom.evaluate import _features
from fathom.evaluate.score import score

ROUNDS = 100  # of boosting: scikit-learn's default
LINEAR_STEPS = 200
PROBE = 3  # rounds whose time foretells the rest
FEWEST = 10  # rounds worth having: where they do not fit into the time, rows are left out
FIRST_ROWS, GROWTH = 2_000, 4  # rows of the first probe, and how many times more the next has


@dataclass(frozen=True)
class Baseline:
    """One simple method on one target.

    Attributes:
        output: its probabilities [N, C] or values [N] on the test rows; None where it failed.
        metrics: as in `score`.
        seconds: to fit and predict.
        note: what was done to keep it cheap, or why it failed.
        cut_short: whether it had to stop before it was done, and might do better.
    """

    name: str
    target: str
    main: str
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    seconds: float = 0.0
    note: str = ""
    output: np.ndarray | None = field(default=None, repr=False, compare=False)
    cut_short: bool = False

    def record(self) -> dict[str, Any]:
        """Return what JSON can hold of it."""
        return {
            "name": self.name,
            "target": self.target,
            "main": self.main,
            "metrics": self.metrics,
            "seconds": round(self.seconds, 3),
            "note": self.note,
            "failed": self.output is None,
        }


def baselines(
    train: Batch,
    test: Batch,
    spec: DataSpec,
    texts: Mapping[str, tuple[Sequence[str], Sequence[str]]] | None = None,
    seed: int = 0,
    seconds: float = 60.0,
    resamples: int = 1000,
) -> list[Baseline]:
    """Train simple methods on the same rows that the model learned from, and score them on the same test rows.

    One that fails is listed with its reason.

    Args:
        train, test: batches of all rows, with their targets.
        spec: of the batches.
        texts: by text field, the original texts of the training and of the test rows; without them token numbers
            stand for words.
        seed: of every random choice.
        seconds: about how long all of them together may take. Trees and logistic regression keep to it by fewer
            rounds and, where that is not enough, fewer rows, and say so in their note; ridge regression takes what it
            takes.
        resamples: for the intervals.
    """
    from threadpoolctl import threadpool_limits

    batch = _Rows(train, test, spec, texts or {}, seed)
    found = []
    share = seconds / max(1, len(spec.targets))
    for target in spec.targets:
        with threadpool_limits(_threads()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, method in _methods(target, spec):
                found.append(_run(name, method, target, batch, share, resamples))
    return found


class _Rows:
    """The rows, and the matrices made from them: made once for all targets, when first wanted."""

    def __init__(self, train: Batch, test: Batch, spec: DataSpec, texts: _features.Texts, seed: int) -> None:
        self.train, self.test, self.spec, self.texts, self.seed = train, test, spec, texts, seed
        self._made: dict[str, _features.Matrices] = {}

    def truth(self, target: Field) -> tuple[np.ndarray, np.ndarray]:
        return self.train[target.target_key].numpy(), self.test[target.target_key].numpy()

    def linear(self) -> _features.Matrices:
        if "linear" not in self._made:
            self._made["linear"] = _features.linear(self.train, self.test, self.spec, self.texts)
        return self._made["linear"]

    def trees(self) -> _features.Matrices:
        if "trees" not in self._made:
            self._made["trees"] = _features.trees(self.train, self.test, self.spec, self.texts, self.seed)
        return self._made["trees"]


Fitted = tuple[np.ndarray, str, bool]  # output, note, cut short
Method = Callable[[Field, _Rows, float], Fitted]  # of target, rows and seconds


def _methods(target: Field, spec: DataSpec) -> list[tuple[str, Method]]:
    """Name the methods that suit the data: the trees of a text alone would only see it blurred."""
    category = target.kind == "category"
    words = bool(spec.texts)
    alone = spec.kinds == {"text"}
    linear = "logistic regression" if category else "ridge regression"
    methods: list[tuple[str, Method]] = [("majority class" if category else "mean", _constant)]
    if spec.inputs:
        methods.append((f"TF-IDF + {linear}" if words else linear, _linear))
        methods += [] if alone else [("HistGradientBoosting", _trees)]
    return methods


def _run(name: str, method: Method, target: Field, rows: _Rows, seconds: float, resamples: int) -> Baseline:
    truth = rows.truth(target)[1]
    main = "rmse" if target.kind == "number" else "accuracy"
    started = time.monotonic()
    try:
        output, note, cut = method(target, rows, seconds)
        taken = time.monotonic() - started
        scored = score((target,), {target.name: output}, {target.name: truth}, rows.seed, resamples)[target.name]
    except Exception as error:  # a yardstick that breaks must not break the run
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return Baseline(name, target.name, main, seconds=time.monotonic() - started, note=f"failed: {reason}")
    return Baseline(name, target.name, scored["main"], scored["metrics"], taken, note, output, cut)


def _constant(target: Field, rows: _Rows, seconds: float) -> Fitted:
    """Predict the classes' shares, or the mean, whatever the inputs."""
    train, test = rows.truth(target)
    if target.kind == "number":
        return np.full(len(test), float(train.mean())), "", False
    shares = np.bincount(train, minlength=len(target.classes)) / max(1, len(train))
    return np.tile(shares, (len(test), 1)), "", False


def _linear(target: Field, rows: _Rows, seconds: float) -> Fitted:
    from sklearn.linear_model import LogisticRegression, Ridge

    matrices, (truth, _) = rows.linear(), rows.truth(target)
    if target.kind == "number":
        ridge = Ridge(random_state=rows.seed).fit(matrices.train, truth)
        return ridge.predict(matrices.test), "; ".join(matrices.notes), False
    penalty, order = _penalty(rows.spec), _order(truth, target, rows.seed)

    def fit(steps: int, count: int) -> Any:
        some: Any = slice(None) if count == len(truth) else order[:count]
        model = LogisticRegression(C=1 / penalty, max_iter=steps, random_state=rows.seed)
        return model.fit(matrices.train[some], truth[some])

    steps, count = _affordable(fit, LINEAR_STEPS, len(truth), seconds / 2)
    cut = _cuts("steps", steps, LINEAR_STEPS, count, len(truth))
    return _all_classes(fit(steps, count), matrices.test, target), "; ".join([*matrices.notes, *cut]), bool(cut)


def _trees(target: Field, rows: _Rows, seconds: float) -> Fitted:
    """Fit the defaults, or fewer rounds of longer steps, on fewer rows, where the defaults would take too long."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    matrices, (truth, _) = rows.trees(), rows.truth(target)
    kind = HistGradientBoostingClassifier if target.kind == "category" else HistGradientBoostingRegressor
    order = _order(truth, target, rows.seed)

    def fit(rounds: int, count: int) -> Any:
        some: Any = slice(None) if count == len(truth) else order[:count]
        model = kind(
            max_iter=rounds,
            learning_rate=min(0.1 * ROUNDS / rounds, 0.3),
            categorical_features=list(matrices.categorical) or None,
            early_stopping="auto" if count == len(truth) else False,
            random_state=rows.seed,
        )
        return model.fit(matrices.train[some], truth[some])

    rounds, count = _affordable(fit, ROUNDS, len(truth), seconds / 2)
    cut = _cuts("rounds", rounds, ROUNDS, count, len(truth))
    fitted, note = fit(rounds, count), "; ".join([*matrices.notes, *cut])
    if target.kind == "number":
        return fitted.predict(matrices.test), note, bool(cut)
    return _all_classes(fitted, matrices.test, target), note, bool(cut)


Fit = Callable[[int, int], Any]  # of rounds and rows


def _affordable(fit: Fit, wanted: int, rows: int, seconds: float) -> tuple[int, int]:
    """Return how many rounds, on how many rows, fit into the time, judged by the time that one round takes.

    A few rows are tried first, then ever more, as long as so many leave time for the fewest rounds worth having and
    trying more does not itself take too long.
    """
    count, one = min(rows, FIRST_ROWS), 0.0
    tried = count
    while True:
        taken = _seconds(fit, 1, tried)
        if taken * FEWEST > seconds and tried > FIRST_ROWS:
            break
        count, one = tried, taken
        if count == rows or one * GROWTH > seconds / 4:
            break
        tried = min(rows, count * GROWTH)
    if one * wanted < seconds:
        return wanted, count
    each = one
    if one * (1 + PROBE) < seconds / 2:  # what one round takes beyond preparing the rows
        each = max((_seconds(fit, 1 + PROBE, count) - one) / PROBE, one / 50)
    return int(min(wanted, max(1, seconds / each))), count


def _seconds(fit: Fit, rounds: int, rows: int) -> float:
    started = time.monotonic()
    fit(rounds, rows)
    return time.monotonic() - started


def _order(truth: np.ndarray, target: Field, seed: int) -> np.ndarray:
    """Return the rows in the order in which they are taken where not all are: one of each class, then at random."""
    drawn = np.random.default_rng(seed).permutation(len(truth))
    if target.kind == "number":
        return drawn
    first = np.unique(truth[drawn], return_index=True)[1]
    return np.concatenate([drawn[first], np.delete(drawn, first)])


def _cuts(word: str, rounds: int, wanted: int, count: int, rows: int) -> list[str]:
    """Return what was cut short, in words."""
    cut = [f"{rounds} {word} instead of {wanted}"] if rounds < wanted else []
    return [*cut, f"{count:,} rows instead of {rows:,}"] if count < rows else cut


def _penalty(spec: DataSpec) -> float:
    """Return the weight of the squared coefficients: scikit-learn's default, but less for words, which are many and
    small, and more for pixels, which are many and alike."""
    return 0.1 if spec.texts else 100.0 if spec.images else 1.0


def _all_classes(model: Any, x: Any, target: Field) -> np.ndarray:
    """Return probabilities [N, C]; a class that no training row has gets zero."""
    found = np.zeros((x.shape[0], len(target.classes)))
    found[:, model.classes_.astype(int)] = model.predict_proba(x)
    return found


def _threads() -> int:
    """Return the number of threads that is fastest now: beside a busy neighbour, one."""
    import torch
    from threadpoolctl import threadpool_limits

    most = torch.get_num_threads()
    square = np.ones((768, 768), dtype=np.float32)

    def seconds(threads: int) -> float:
        taken = []
        with threadpool_limits(threads):
            for _ in range(5):
                started = time.perf_counter()
                square @ square
                taken.append(time.perf_counter() - started)
        return max(taken[1:])

    return most if most > 1 and seconds(most) < 0.9 * seconds(1) else 1
