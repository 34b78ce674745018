"""Is deep learning worth it here? The model against the best simple method, row for row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fathom.core.types import Field
from fathom.evaluate import _format
from fathom.evaluate._resample import interval, resampled
from fathom.evaluate.baselines import Baseline
from fathom.evaluate.score import METRICS, judged_rows, main_metric, measure


def verdict(
    targets: Sequence[Field],
    outputs: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    baselines: Sequence[Baseline],
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """Return, for each target, whether the model beats the best baseline on the main metric.

    Both are scored on the same resampled rows, so that what is hard for both does not blur the difference.

    Args:
        targets, outputs, truth: as in `score`.
        baselines: as `baselines` returns them.

    Returns:
        {target: {"metric", "baseline" (the best one's name), "outcome": "better" | "level" | "worse" | "unknown",
        "difference" (positive is better), "low", "high", "sentence"}}

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    found = {}
    for target in targets:
        output, true = judged_rows(target, outputs, truth)
        metric = main_metric(target, true)
        rivals = [b for b in baselines if b.target == target.name and b.output is not None]
        best = _best(rivals, metric)
        if best is None or len(true) < 2:
            found[target.name] = _unknown(metric)
            continue
        theirs, _ = judged_rows(target, {target.name: np.asarray(best.output)}, truth)
        ours = _values(target, output, true, metric, resamples, seed)
        rival = _values(target, theirs, true, metric, resamples, seed)
        cut = [b.name for b in rivals if b.cut_short]
        sign = 1.0 if METRICS[metric].better == "higher" else -1.0
        difference = sign * (ours - rival)
        bounds = interval(difference[1:], confidence)
        if bounds is None:
            found[target.name] = _unknown(metric)
            continue
        found[target.name] = _record(metric, best.name, float(difference[0]), bounds, cut)
    return found


def _values(target: Field, output: np.ndarray, truth: np.ndarray, metric: str, resamples: int, seed: int) -> np.ndarray:
    """Return the metric on the rows themselves, and then on every resample: [1 + R]."""
    of = measure(target, output, truth)
    samples = resampled(lambda weights: {metric: of(weights, ranked=False)[metric]}, len(truth), resamples, seed)
    return np.concatenate([of(np.ones((len(truth), 1)), ranked=False)[metric], samples[metric]])


def _best(rivals: Sequence[Baseline], metric: str) -> Baseline | None:
    scored = [(b.metrics[metric]["value"], b) for b in rivals if b.metrics.get(metric, {}).get("value") is not None]
    if not scored:
        return None
    choose = max if METRICS[metric].better == "higher" else min
    return choose(scored, key=lambda pair: pair[0])[1]  # type: ignore[type-var,return-value,arg-type]


def _record(
    metric: str, baseline: str, difference: float, bounds: tuple[float, float], cut: Sequence[str]
) -> dict[str, Any]:
    low, high = min(bounds[0], difference), max(bounds[1], difference)
    outcome = "better" if low > 0 else "worse" if high < 0 else "level"
    sentence = _sentence(metric, baseline, outcome, difference, low, high)
    if cut and outcome != "worse":
        sentence += f" With more time {' and '.join(cut)} might do better."
    record = {"metric": metric, "baseline": baseline, "outcome": outcome, "difference": difference}
    return {**record, "low": low, "high": high, "sentence": sentence}


def _sentence(metric: str, baseline: str, outcome: str, difference: float, low: float, high: float) -> str:
    label = METRICS[metric].label

    def amount(value: float) -> str:
        return (f"{100 * value:.1f}" if METRICS[metric].share else _format.number(value)).replace("-", "−")

    unit = " points" if METRICS[metric].share else ""
    if outcome == "better":
        return (
            f"Deep learning is worth it here: {label} is better than that of {baseline}, the best simple method, "
            f"by {amount(difference)}{unit} [{amount(low)} to {amount(high)}]."
        )
    if outcome == "worse":
        return (
            f"Deep learning is not worth it here: use {baseline} instead, whose {label} is better "
            f"by {amount(-difference)}{unit} [{amount(-high)} to {amount(-low)}]."
        )
    return (
        f"No clear difference from {baseline}: {label} differs by {amount(difference)}{unit} "
        f"[{amount(low)} to {amount(high)}], within chance; the simpler method may do."
    )


def _unknown(metric: str) -> dict[str, Any]:
    return {
        "metric": metric,
        "baseline": None,
        "outcome": "unknown",
        "difference": None,
        "low": None,
        "high": None,
        "sentence": "There is no simple method to compare with on these rows.",
    }
