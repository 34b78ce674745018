"""How well vectors find what is alike: of each row, whether its nearest neighbours are of its class."""

from __future__ import annotations

from typing import Any

import numpy as np

from fathom.evaluate._resample import interval, resampled

ROWS_AT_ONCE = 1024


def recall(
    vectors: np.ndarray, labels: np.ndarray, nearest: int = 1, seed: int = 0, resamples: int = 1000
) -> dict[str, Any]:
    """Return the share of rows that have a row of their own class among the `nearest`, with a 95 % bootstrap interval.

    Args:
        vectors: [N, D], compared by their Euclidean distance; rows that are not finite are left out.
        labels: [N], whatever can be compared. Rows that are alone of their class cannot be found, and do not count.

    Returns:
        value, low, high, rows (how many count).
    """
    known = np.isfinite(vectors).all(1)
    x = vectors[known].astype(np.float64)
    _, codes, counts = np.unique(labels[known], return_inverse=True, return_counts=True)
    asked = np.flatnonzero(counts[codes] > 1)
    hits = np.zeros(len(asked), dtype=bool)
    squares = (x**2).sum(1)
    for start in range(0, len(asked), ROWS_AT_ONCE):
        rows = asked[start : start + ROWS_AT_ONCE]
        distance = squares - 2 * x[rows] @ x.T  # [R, N], less the row's own square, which changes no order
        distance[np.arange(len(rows)), rows] = np.inf
        count = min(nearest, len(x) - 1)
        places = np.argpartition(distance, count - 1, axis=1)[:, :count]
        hits[start : start + len(rows)] = (codes[places] == codes[rows][:, None]).any(1)
    if not len(asked):
        return {"value": None, "low": None, "high": None, "rows": 0}
    drawn = resampled(lambda weights: {"recall": hits @ weights / weights.sum(0)}, len(hits), resamples, seed)
    low, high = interval(drawn["recall"], 0.95) or (None, None)
    return {"value": float(hits.mean()), "low": low, "high": high, "rows": len(hits)}
