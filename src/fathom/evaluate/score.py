"""How good: every metric of every target, with an interval for how far other test rows might have moved it.

score      {target: {"kind", "n", "main", "metrics": {name: {"value", "low", "high"}}, …}}
METRICS    what each metric is called, and which way is better
measure    a target's metrics as a function of the rows' weights
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fathom.core.errors import DataError
from fathom.core.types import IMBALANCE, Field
from fathom.evaluate._category import CategoryMeasure
from fathom.evaluate._number import NumberMeasure
from fathom.evaluate._resample import interval, resampled, wilson

WHOLE_CONFUSION = 100  # classes; of more, only the most confused are kept
MOST_CONFUSED = 20


@dataclass(frozen=True)
class Metric:
    """How a metric is named and read.

    Attributes:
        label: for people.
        better: "higher" or "lower".
        share: of one, shown in percent.
        unit: in the target's own unit.
    """

    label: str
    better: str
    share: bool = False
    unit: bool = False


METRICS = {
    "accuracy": Metric("accuracy", "higher", share=True),
    "balanced_accuracy": Metric("balanced accuracy", "higher", share=True),
    "macro_f1": Metric("macro F1", "higher", share=True),
    "auroc": Metric("AUROC", "higher"),
    "log_loss": Metric("log-loss", "lower"),
    "brier": Metric("Brier score", "lower"),
    "ece": Metric("calibration error", "lower", share=True),
    "rmse": Metric("RMSE", "lower", unit=True),
    "mae": Metric("mean absolute error", "lower", unit=True),
    "median_ae": Metric("median absolute error", "lower", unit=True),
    "r2": Metric("R²", "higher"),
    "mape": Metric("mean absolute percentage error", "lower", share=True),
}


def score(
    targets: Sequence[Field],
    outputs: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """Return every metric of every target, with bootstrap intervals, as plain values that JSON can hold.

    A metric that the rows leave undefined (AUROC with one class, R² without variation) has the value None. The
    calibration error has no interval, for resampling only ever adds to it: see `calibration`. Rows
    of a class never seen in training (a code below zero) are counted as `unseen`: each is an error in the accuracy,
    and the other metrics are of the rows without them. Numbers whose true value is missing are left out and counted
    as `left_out`.

    Args:
        targets: the target fields.
        outputs: by target name: probabilities [N, C] of a category, values [N] of a number.
        truth: by target name: codes [N], or values [N].
        seed: of the resampling.
        resamples: at most; fewer where there are very many rows.
        confidence: of the intervals.

    Raises:
        DataError: a target is missing from `outputs` or `truth`, or their shapes disagree.
    """
    found = {}
    for target in targets:
        output, true = judged_rows(target, outputs, truth)
        left_out = len(np.asarray(truth[target.name])) - len(true)
        found[target.name] = _score_one(target, output, true, seed, resamples, confidence, left_out)
    return found


def measure(target: Field, output: np.ndarray, truth: np.ndarray) -> CategoryMeasure | NumberMeasure:
    """Return the target's metrics as a function of row weights [N, R]."""
    return CategoryMeasure(output, truth) if target.kind == "category" else NumberMeasure(output, truth)


def main_metric(target: Field, truth: np.ndarray) -> str:
    """Return the metric by which models of this target are compared: RMSE, accuracy, or macro F1 where accuracy
    flatters, because the classes' counts (of training, where known) are uneven."""
    if target.kind != "category":
        return "rmse"
    counts = np.asarray(target.counts) if target.counts else np.bincount(truth[truth >= 0])
    counts = counts[counts > 0]
    return "macro_f1" if len(counts) > 1 and counts.max() > IMBALANCE * counts.min() else "accuracy"


def judged_rows(
    target: Field, outputs: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the target's outputs and truth on the rows that can be judged: a category's all, with the code -1 for
    classes never seen in training; of a number those whose true value is known.

    Raises:
        DataError: missing, or of shapes that disagree.
    """
    if target.name not in outputs or target.name not in truth:
        raise DataError(f"Target '{target.name}' has no {'output' if target.name not in outputs else 'true values'}.")
    output, true = np.asarray(outputs[target.name]), np.asarray(truth[target.name]).reshape(-1)
    if target.kind == "category":
        expected = f"[{len(true)}, {len(target.classes)}]"
        fits = output.shape == (len(true), len(target.classes))
        true = np.where((true >= 0) & (true < len(target.classes)), true, -1).astype(np.int64)
        known = np.ones(len(true), bool)
    else:
        expected = f"[{len(true)}]"
        fits = output.shape in ((len(true),), (len(true), 1))
        true = true.astype(np.float64)
        known = np.isfinite(true)
    if not fits:
        raise DataError(f"Target '{target.name}' was given outputs {list(output.shape)}; expected {expected}.")
    return (output if target.kind == "category" else output.reshape(-1))[known], true[known]


def _score_one(
    target: Field,
    output: np.ndarray,
    truth: np.ndarray,
    seed: int,
    resamples: int,
    confidence: float,
    left_out: int,
) -> dict[str, Any]:
    rows = len(truth)
    unseen = int((truth < 0).sum()) if target.kind == "category" else 0
    result: dict[str, Any] = {"kind": target.kind, "n": rows, "unseen": unseen, "left_out": left_out}
    result["confidence"] = confidence
    if rows == 0:
        return {**result, "main": main_metric(target, truth), "metrics": {}}
    of = measure(target, output, truth)
    values = of(np.ones((rows, 1)))
    samples = resampled(of, rows, resamples, seed) if rows > 1 else {}
    samples.pop("ece", None)
    metrics = {
        name: _entry(float(value[0]), samples.get(name), confidence)
        for name, value in values.items()
        if name in METRICS
    }
    result |= {
        "main": main_metric(target, truth),
        "metrics": {name: metrics[name] for name in METRICS if name in metrics},
    }
    if isinstance(of, CategoryMeasure):
        right = int(of.correct.sum())
        if right in (0, rows):  # resampling would see no error at all
            low, high = wilson(right, rows, confidence)
            metrics["accuracy"] |= {"low": low, "high": high}
        result |= {"classes": list(target.classes), "per_class": _per_class(target, of, confidence)}
        result |= {"confusion": _confusion(target, of)}
    return result


def _entry(value: float, samples: np.ndarray | None, confidence: float) -> dict[str, float | None]:
    if not math.isfinite(value):
        return {"value": None, "low": None, "high": None}
    bounds = interval(samples, confidence) if samples is not None else None
    if bounds is None:
        return {"value": value, "low": None, "high": None}
    return {"value": value, "low": min(bounds[0], value), "high": max(bounds[1], value)}


def _per_class(target: Field, of: CategoryMeasure, confidence: float) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of each class; recall with Wilson's interval."""
    support, guessed, hits = (t[:, 0] for t in of.tables(np.ones((len(of.truth), 1))))
    table = []
    for code, name in enumerate(target.classes):
        s, g, h = int(support[code]), int(guessed[code]), int(hits[code])
        low, high = wilson(h, s, confidence) if s else (None, None)
        table.append(
            {
                "class": name,
                "precision": h / g if g else None,
                "recall": h / s if s else None,
                "recall_low": low,
                "recall_high": high,
                "f1": 2 * h / (s + g) if s + g else None,
                "support": s,
            }
        )
    return table


def _confusion(target: Field, of: CategoryMeasure) -> dict[str, Any]:
    """Counts of (true, predicted): {"classes": names, "counts": [[…]] by truth then prediction, "of": C, "pairs"}.

    Of very many classes only the most confused are in the matrix; `pairs` are the worst confusions of all.
    """
    classes = len(target.classes)
    codes, counts = np.unique(of.truth * classes + of.predicted, return_counts=True)
    true, predicted = codes // classes, codes % classes
    wrong = np.flatnonzero(true != predicted)
    worst = wrong[np.argsort(-counts[wrong], kind="stable")][:MOST_CONFUSED]
    pairs = [
        {"truth": target.classes[true[i]], "predicted": target.classes[predicted[i]], "count": int(counts[i])}
        for i in worst
    ]
    kept = np.arange(classes)
    if classes > WHOLE_CONFUSION:
        errors = np.bincount(true[wrong], counts[wrong], classes) + np.bincount(
            predicted[wrong], counts[wrong], classes
        )
        kept = np.sort(np.argsort(-errors, kind="stable")[:MOST_CONFUSED])
    place = np.full(classes, -1)
    place[kept] = np.arange(len(kept))
    matrix = np.zeros((len(kept), len(kept)), dtype=np.int64)
    inside = (place[true] >= 0) & (place[predicted] >= 0)
    matrix[place[true[inside]], place[predicted[inside]]] = counts[inside]
    return {
        "classes": [target.classes[i] for i in kept],
        "counts": matrix.tolist(),
        "of": classes,
        "pairs": pairs,
    }
