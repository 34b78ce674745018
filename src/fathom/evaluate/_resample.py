"""The bootstrap: how much a metric would vary had other rows been drawn for the test.

Rows are drawn with replacement as counts: column r of `counts` says how often each row stands in resample r. A metric
that takes such weights is computed for all resamples at once, and its own value is the case where every weight is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

DRAWS = 20_000_000  # rows x resamples at most; more rows need fewer resamples, for their intervals are narrow
CHUNK = 4_000_000  # counts held at a time
FEWEST = 100

Measure = Callable[[np.ndarray], dict[str, np.ndarray]]


def counts(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the counts of all resamples, a few at a time, each [rows, r] float32.

    The same arguments give the same counts, so that two models scored on the same rows are compared in pairs.
    """
    rng = np.random.default_rng(seed)
    left = min(resamples, max(FEWEST, DRAWS // rows))
    while left > 0:
        r = min(left, max(1, CHUNK // rows))
        drawn = rng.integers(0, rows, (r, rows)) + np.arange(r)[:, None] * rows
        yield np.ascontiguousarray(np.bincount(drawn.ravel(), minlength=r * rows).reshape(r, rows).T, dtype=np.float32)
        left -= r


def resampled(measure: Measure, rows: int, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Return each metric's values over all resamples: {name: [R]}."""
    parts = [measure(weights) for weights in counts(rows, resamples, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def interval(values: np.ndarray, confidence: float) -> tuple[float, float] | None:
    """Return the percentile interval of those values that are numbers, or None where hardly any is.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    finite = values[np.isfinite(values)]
    if len(finite) < max(10, len(values) // 2):
        return None
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def wilson(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a proportion; it stays honest at 0 and 1, where resampling sees no variation.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """
    if trials == 0:
        return 0.0, 1.0
    z = normal_quantile((1 + confidence) / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def normal_quantile(probability: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)
