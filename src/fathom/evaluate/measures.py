"""What an objective without targets reaches: the mean of each of its own measures over rows that it never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fathom.evaluate._resample import interval, resampled


def measures(
    values: Mapping[str, np.ndarray],
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
    summary: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
) -> dict[str, dict[str, Any]]:
    """Return what is told of the rows, each figure with a bootstrap interval: {name: {"value", "low", "high", "n"}}.

    Args:
        values: by name, one value for each row [N]. Values that are not finite are left out, and `n` tells how many
            were not.
        seed, resamples, confidence: of the interval.
        summary: makes the figures of the means of values; by default they are these.
    """
    columns = {name: np.asarray(each, dtype=np.float64) for name, each in values.items()}
    known = {name: np.isfinite(each) for name, each in columns.items()}
    rows = len(next(iter(columns.values()), ()))
    if not rows:
        return {}

    def means(weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures of resamples, in which row i stands `weights[i]` [N, R] times."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found = {n: (np.where(known[n], x, 0.0) @ weights) / (known[n] @ weights) for n, x in columns.items()}
            return summary(found)

    whole = means(np.ones((rows, 1)))
    drawn = resampled(means, rows, resamples, seed) if rows > 1 else {}
    told = {}
    for name, value in whole.items():
        low, high = (interval(drawn[name], confidence) if drawn else None) or (None, None)
        count = int(known[name].sum()) if name in known else rows
        told[name] = {"value": float(value[0]) if np.isfinite(value[0]) else None, "low": low, "high": high, "n": count}
    return told
