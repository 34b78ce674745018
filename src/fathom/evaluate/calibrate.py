"""How far a model's confidence can be believed, and how a number's predictions lie about the truth."""

from __future__ import annotations

from typing import Any

import numpy as np

from fathom.evaluate._category import ECE_BINS, confidence_bins
from fathom.evaluate._resample import wilson

POINTS = 400  # shown of a number's predictions
BANDS = 12
SIMULATIONS = 200


def calibration(probabilities: np.ndarray, truth: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Return how often the chosen class was right, by how sure the model was of it.

    `ece` is the expected calibration error: the mean distance between confidence and accuracy over bins of equal
    width. A finite test never shows zero, so `expected` is what a perfectly calibrated model of the same confidences
    would show on as many rows, and `expected_high` what it would stay below 19 times in 20.

    Args:
        probabilities: [N, C].
        truth: codes [N].
        seed: of the simulated perfect model.

    Returns:
        {"ece", "expected", "expected_high", "confidence" (the mean), "accuracy", "bins": [{"from", "to", "count",
        "confidence", "accuracy", "low", "high"}]}; empty bins are left out, and intervals are Wilson's.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    confidence = np.asarray(probabilities, dtype=np.float64).max(1)  # [N]
    correct = np.asarray(probabilities).argmax(1) == np.asarray(truth)
    bins = []
    place = confidence_bins(confidence)
    for b in range(ECE_BINS):
        inside = place == b
        count, hits = int(inside.sum()), int(correct[inside].sum())
        if count:
            low, high = wilson(hits, count)
            bins.append(
                {
                    "from": b / ECE_BINS,
                    "to": (b + 1) / ECE_BINS,
                    "count": count,
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": hits / count,
                    "low": low,
                    "high": high,
                }
            )
    rows = len(confidence)
    perfect = np.random.default_rng(seed).random((SIMULATIONS, min(rows, 20_000))) < confidence[:20_000]
    simulated = [_ece(confidence[:20_000], outcome, place[:20_000]) for outcome in perfect] if rows else [0.0]
    return {
        "ece": _ece(confidence, correct, place) if rows else None,
        "expected": float(np.mean(simulated)),
        "expected_high": float(np.quantile(simulated, 0.95)),
        "confidence": float(confidence.mean()) if rows else None,
        "accuracy": float(correct.mean()) if rows else None,
        "bins": bins,
    }


def residuals(predicted: np.ndarray, truth: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Return how a number's predictions lie about the truth.

    Args:
        predicted, truth: [N], in the target's own unit.
        seed: of the choice of points.

    Returns:
        {"points": [[truth, predicted], …] of a random few, "bands": of rows in bands of equal count by prediction,
        {"predicted" (mean), "low", "median", "high" (5th, 50th and 95th percentile of the truth), "count"},
        "bias": mean of predicted − truth, "within": {"50", "90": half-width that holds this share of the errors}}
    """
    predicted, truth = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    finite = np.isfinite(predicted) & np.isfinite(truth)
    predicted, truth = predicted[finite], truth[finite]
    if not len(truth):
        return {"points": [], "bands": [], "bias": None, "within": {}}
    chosen = np.sort(np.random.default_rng(seed).permutation(len(truth))[:POINTS])
    bands = []
    for rows in np.array_split(np.argsort(predicted, kind="stable"), min(BANDS, max(1, len(truth) // 20))):
        low, median, high = np.quantile(truth[rows], [0.05, 0.5, 0.95])
        bands.append(
            {
                "predicted": float(predicted[rows].mean()),
                "low": float(low),
                "median": float(median),
                "high": float(high),
                "count": len(rows),
            }
        )
    error = predicted - truth
    half, most = np.quantile(np.abs(error), [0.5, 0.9])
    return {
        "points": np.stack([truth[chosen], predicted[chosen]], axis=1).tolist(),
        "bands": bands,
        "bias": float(error.mean()),
        "within": {"50": float(half), "90": float(most)},
    }


def _ece(confidence: np.ndarray, correct: np.ndarray, place: np.ndarray) -> float:
    gaps = np.bincount(place, confidence - correct, ECE_BINS)
    return float(np.abs(gaps).sum() / len(confidence))
