"""For whom it does worse: the error on parts of the test rows, against the error on all the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import pairwise
from typing import Any

import numpy as np

from fathom.core.types import Field
from fathom.evaluate._resample import normal_quantile, wilson

SMALLEST = 20  # rows; of fewer little can be said
MOST_VALUES = 20  # of one column; the rarer ones are not looked at
BANDS = 4  # of a number, of equal count
SIGNIFICANT = 0.05  # over all slices together


def slices(
    target: Field, output: np.ndarray, truth: np.ndarray, columns: Mapping[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """Return how well the model does on each part of the test rows, the worst first.

    A part is one value of a category or boolean column, or a quarter of a number column's rows. Its error (share of
    wrong rows, or mean absolute error) is compared with that of all other rows by a two-sided test, corrected for
    the number of parts looked at (Bonferroni), so that what is flagged is unlikely to be chance.

    Args:
        target: a category or a number.
        output: probabilities [N, C], or values [N].
        truth: codes [N], or values [N].
        columns: by name, N values each: numbers, booleans, dates, texts; None is missing.

    Returns:
        {"column", "value", "count", "error", "low", "high" (95 %), "others" (their error), "p" (corrected),
        "worse": flagged} for each part.
    """
    cost, counted = _costs(target, np.asarray(output), np.asarray(truth))
    found = []
    for name, values in columns.items():
        for label, rows in _parts(values):
            inside = rows & counted
            if SMALLEST <= inside.sum() <= counted.sum() - SMALLEST:
                found.append({"column": name, "value": label} | _compare(cost, inside, counted & ~inside, target.kind))
    for part in found:
        part["p"] = min(1.0, part["p"] * len(found))
        part["worse"] = part["p"] < SIGNIFICANT and part["error"] > part["others"]
    return sorted(found, key=lambda part: (not part["worse"], -(part["error"] - part["others"])))


def _costs(target: Field, output: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what each row's mistake costs, and which rows count."""
    if target.kind == "category":
        return (output.argmax(1) != truth).astype(np.float64), (truth >= 0) & (truth < len(target.classes))
    cost = np.abs(output.reshape(-1).astype(np.float64) - truth.astype(np.float64))
    return np.nan_to_num(cost), np.isfinite(cost)


def _parts(values: Sequence[Any]) -> list[tuple[str, np.ndarray]]:
    """Return (label, rows) of each part of a column."""
    missing = np.array([v is None or (isinstance(v, float) and not math.isfinite(v)) for v in values], dtype=bool)
    given = [v for v, absent in zip(values, missing, strict=True) if not absent]
    rows = np.flatnonzero(~missing)
    parts = _bands(given) if _is_measured(given) else _commonest([str(v) for v in given])
    found = []
    for label, inside in parts:
        part = np.zeros(len(missing), dtype=bool)
        part[rows[inside]] = True
        found.append((label, part))
    return found + ([("missing", missing)] if missing.any() else [])


def _is_measured(given: Sequence[Any]) -> bool:
    """Whether values are numbers or dates, and too many different ones to be looked at one by one."""
    numbers = all(isinstance(v, (int, float, np.integer, np.floating)) and not isinstance(v, bool) for v in given)
    return (numbers or all(isinstance(v, date) for v in given)) and len(set(given)) > MOST_VALUES


def _commonest(names: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    distinct, codes, counts = np.unique(np.array(names, dtype=str), return_inverse=True, return_counts=True)
    return [(str(distinct[i]), codes == i) for i in np.argsort(-counts, kind="stable")[:MOST_VALUES]]


def _bands(given: Sequence[Any]) -> list[tuple[str, np.ndarray]]:
    """Return bands of about equal count, by numbers or by days."""
    dates = isinstance(given[0], date)
    values = np.array([v.isoformat()[:10] for v in given], dtype="datetime64[D]") if dates else np.array(given, float)
    ordered = np.sort(values)
    edges = np.unique(ordered[np.linspace(0, len(ordered) - 1, BANDS + 1).astype(int)])
    bands = []
    for low, high in pairwise(edges):
        label = f"{low} to {high}" if dates else f"{low:.4g} to {high:.4g}"
        bands.append((label, (values >= low) & ((values <= high) if high == edges[-1] else (values < high))))
    return bands


def _compare(cost: np.ndarray, inside: np.ndarray, outside: np.ndarray, kind: str) -> dict[str, Any]:
    """Return one part's error with its interval, and how likely so large a difference is by chance.

    Sources: of shares, the pooled two-proportion test; of means, Welch, The Generalization of Student's Problem
    when Several Different Population Variances are Involved, 1947 (by its normal limit).
    """
    a, b = cost[inside], cost[outside]
    error, others = float(a.mean()), float(b.mean())
    if kind == "category":
        pooled = (a.sum() + b.sum()) / (len(a) + len(b))
        spread = math.sqrt(pooled * (1 - pooled) * (1 / len(a) + 1 / len(b)))
        low, high = wilson(float(a.sum()), len(a))
    else:
        spread = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
        half = normal_quantile(0.975) * float(a.std(ddof=1)) / math.sqrt(len(a))
        low, high = max(0.0, error - half), error + half
    p = math.erfc(abs(error - others) / spread / math.sqrt(2)) if spread > 0 else 1.0
    return {"count": len(a), "error": error, "low": low, "high": high, "others": others, "p": p}
