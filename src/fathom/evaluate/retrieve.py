"""What vectors find to be alike.

neighbours   vectors, and others -> which of the others point most nearly the same way
recall       vectors and labels -> how often a row's nearest neighbours are of its class
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fathom.evaluate._resample import interval, resampled

ROWS_AT_ONCE = 1024


def neighbours(
    vectors: np.ndarray, others: np.ndarray, count: int, apart: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each vector the places of the nearest others, nearest first, and their cosines, [N, K] each.

    Args:
        vectors: [N, D], all finite. others: [M, D], all finite; K is the lesser of `count` and how many there are.
        apart: the others are the vectors themselves, and none counts as its own neighbour.
    """
    x, y = (_directions(each) for each in (vectors, others))
    count = min(count, len(y) - apart)
    places, cosines = np.empty((len(x), count), dtype=np.int64), np.empty((len(x), count))
    for start in range(0, len(x), ROWS_AT_ONCE):
        cosine = x[start : start + ROWS_AT_ONCE] @ y.T  # [R, M]
        if apart:
            rows = np.arange(len(cosine))
            cosine[rows, start + rows] = -np.inf
        found = np.argpartition(-cosine, count - 1, axis=1)[:, :count] if count else np.empty((len(cosine), 0), int)
        near = np.take_along_axis(cosine, found, 1)
        order = np.lexsort((found, -near), axis=1)
        places[start : start + len(cosine)] = np.take_along_axis(found, order, 1)
        cosines[start : start + len(cosine)] = np.take_along_axis(near, order, 1)
    return places, cosines


def _directions(vectors: np.ndarray) -> np.ndarray:
    """Return vectors of length one; a vector of zeros stays one."""
    wide = vectors.astype(np.float64)
    found: np.ndarray = wide / np.linalg.norm(wide, axis=1, keepdims=True).clip(1e-300)
    return found


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
