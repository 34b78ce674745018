"""Metrics of a number's predictions, for any weighting of the rows at once."""

from __future__ import annotations

import numpy as np


class NumberMeasure:
    """Holds what each row contributes; called with weights [N, R] it returns every metric [R].

    Each equals scikit-learn's `root_mean_squared_error`, `mean_absolute_error`, `median_absolute_error` (of whole
    weights), `r2_score` and `mean_absolute_percentage_error`. The last is given only where every true value is well
    away from zero, for elsewhere it says more about the divisor than about the model.

    Args:
        predicted: [N], in the target's own unit.
        truth: [N].
    """

    def __init__(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        self.predicted = np.asarray(predicted, dtype=np.float64).reshape(-1)
        self.truth = np.asarray(truth, dtype=np.float64)
        error = np.abs(self.predicted - self.truth)
        self.order = np.argsort(error, kind="stable")
        self.sorted_error = error[self.order]
        self.unit = float(self.truth.std()) or 1.0  # keeps squares within float32's range
        centred = (self.truth - self.truth.mean()) / self.unit
        terms = [error / self.unit, (error / self.unit) ** 2, centred, centred**2]
        if has_percentages(self.truth):
            terms.append(error / np.abs(self.truth))
        self.terms = np.stack(terms, axis=1)  # [N, M]

    def __call__(self, weights: np.ndarray, ranked: bool = True) -> dict[str, np.ndarray]:
        """Return every metric [R] under weights [N, R]; without `ranked`, not the one that is slow (the median)."""
        total = weights.sum(0)  # [R]
        means = self.terms.T.astype(weights.dtype) @ weights / total  # [M, R]
        absolute, squared, centred, centred_squared = means[:4]
        variance = centred_squared - centred**2
        with np.errstate(divide="ignore", invalid="ignore"):
            r2 = np.where(variance > 1e-12, 1 - squared / variance, np.nan)
        metrics = {
            "rmse": np.sqrt(squared) * self.unit,
            "mae": absolute * self.unit,
            **({"median_ae": self._median(weights, total)} if ranked else {}),
            "r2": r2,
        }
        if len(means) > 4:
            metrics["mape"] = means[4]
        return metrics

    def _median(self, weights: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Return the median absolute error [R] of rows repeated `weights` times."""
        below = np.cumsum(weights[self.order], axis=0)  # [N, R]
        last = len(self.order) - 1
        lower = np.minimum((below < np.floor((total + 1) / 2)).sum(0), last)
        upper = np.minimum((below < np.floor(total / 2) + 1).sum(0), last)
        return (self.sorted_error[lower] + self.sorted_error[upper]) / 2


def has_percentages(truth: np.ndarray) -> bool:
    """Whether errors as shares of the true value make sense: all of one sign, none tiny beside the rest."""
    size = np.abs(truth)
    one_sign = bool((truth > 0).all() or (truth < 0).all())
    return len(truth) > 0 and one_sign and float(size.min()) > 1e-3 * float(np.median(size))
