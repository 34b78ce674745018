"""Metrics of a category's probabilities, for any weighting of the rows at once."""

from __future__ import annotations

import numpy as np

ECE_BINS = 15
AUROC_CELLS = 300_000  # rows x classes; with more, its interval would cost more than it tells


class CategoryMeasure:
    """Holds what each row contributes; called with weights [N, R] it returns every metric [R].

    Each equals scikit-learn's `accuracy_score`, `balanced_accuracy_score`, `f1_score(average="macro")`, `log_loss`,
    `roc_auc_score` (one class against the rest, mean over the classes that occur) and `brier_score_loss`, with
    `sample_weight`. A metric that is not defined for the rows is not-a-number.

    Args:
        probabilities: [N, C].
        truth: codes [N]; a code below zero is a class never seen in training. Such a row is an error in the accuracy;
            the other metrics, which have no place for a class without a probability, are of the M rows left.
    """

    def __init__(self, probabilities: np.ndarray, truth: np.ndarray) -> None:
        self.seen = np.asarray(truth) >= 0  # [N]
        self.probabilities = p = np.asarray(probabilities, dtype=np.float64)[self.seen]  # [M, C]
        self.truth = np.asarray(truth, dtype=np.int64)[self.seen]  # [M]
        self.predicted = p.argmax(1)  # [M]
        self.correct = self.predicted == self.truth
        rows, classes = p.shape
        own = p[np.arange(rows), self.truth]
        epsilon = np.finfo(p.dtype).eps
        surprise = -np.log(np.clip(own, epsilon, 1 - epsilon))
        squares = (p * p).sum(1) - 2 * own + 1  # sum over classes of (p - 1[class is true])²
        self.terms = np.stack([surprise, squares / 2 if classes == 2 else squares], axis=1)  # [M, 2]
        confidence = p.max(1)
        self.bins = confidence_bins(confidence)  # [M]
        self.gap = confidence - self.correct
        self.by_truth = _Groups(self.truth, classes)
        self.by_guess = _Groups(self.predicted, classes)
        self.by_bin = _Groups(self.bins, ECE_BINS)

    def __call__(self, weights: np.ndarray, ranked: bool = True) -> dict[str, np.ndarray]:
        """Return every metric [R] under weights [N, R]; without `ranked`, not the one that is slow (AUROC)."""
        everyone = weights.sum(0)  # [R]
        weights = weights if self.seen.all() else weights[self.seen]  # [M, R]
        total = weights.sum(0)  # [R]
        support, guessed, hits = self.tables(weights)  # each [C, R]
        with np.errstate(divide="ignore", invalid="ignore"):
            surprise, squares = (self.terms.T.astype(weights.dtype) @ weights) / total
            gaps = np.abs(self.by_bin.sums(weights * self.gap[:, None].astype(weights.dtype))).sum(0) / total
            recall = hits / support
            f1 = 2 * hits / (support + guessed)
        metrics = {
            "accuracy": hits.sum(0) / everyone,
            "balanced_accuracy": _mean_where(recall, support > 0),
            "macro_f1": _mean_where(f1, support + guessed > 0),
            "log_loss": surprise,
            "brier": squares,
            "ece": gaps,
        }
        if ranked and (weights.shape[1] == 1 or self.probabilities.size <= AUROC_CELLS):
            metrics["auroc"] = self.auroc(weights)
        return metrics

    def tables(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return, for each class, the weight [M, R] of the rows that are it, are taken for it, and both: [C, R]."""
        right = weights * self.correct[:, None]
        return self.by_truth.sums(weights), self.by_guess.sums(weights), self.by_truth.sums(right)

    def auroc(self, weights: np.ndarray) -> np.ndarray:
        """Return the area under the receiver operating characteristic [R] under weights [M, R]: of the second class
        of two, or the mean over all classes of one against the rest.

        Source: Hanley and McNeil, The Meaning and Use of the Area under a ROC Curve, 1982.
        """
        classes = self.probabilities.shape[1]
        picked = [1] if classes == 2 else range(classes)
        areas = np.stack([self._area(c, weights) for c in picked])  # [C, R]
        return _mean_where(areas, np.isfinite(areas))

    def _area(self, code: int, weights: np.ndarray) -> np.ndarray:
        scores, positive = self.probabilities[:, code], self.truth == code
        if positive.all() or not positive.any():
            return np.full(weights.shape[1], np.nan)
        negatives = np.flatnonzero(~positive)
        negatives = negatives[np.argsort(scores[negatives], kind="stable")]
        below = np.zeros((len(negatives) + 1, weights.shape[1]), dtype=weights.dtype)
        np.cumsum(weights[negatives], axis=0, out=below[1:])  # [k]: weight of the k lowest negatives
        lower = np.searchsorted(scores[negatives], scores[positive], "left")
        upper = np.searchsorted(scores[negatives], scores[positive], "right")
        beaten = below[lower] if (lower == upper).all() else (below[lower] + below[upper]) / 2  # a tie counts half
        mine = weights[positive]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.einsum("nr,nr->r", mine, beaten) / (mine.sum(0) * below[-1])


class _Groups:
    """Sums rows by a code, for many columns at once."""

    def __init__(self, codes: np.ndarray, groups: int) -> None:
        self.groups = groups
        self.order = np.argsort(codes, kind="stable")
        self.present, self.starts = np.unique(codes[self.order], return_index=True)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """[M, R] -> [groups, R]."""
        found = np.zeros((self.groups, values.shape[1]), dtype=values.dtype)
        if len(self.present):
            found[self.present] = np.add.reduceat(values[self.order], self.starts, axis=0)
        return found


def confidence_bins(confidence: np.ndarray) -> np.ndarray:
    """Return which of `ECE_BINS` bins of equal width each confidence falls into (a bin holds its upper edge)."""
    filled = np.nan_to_num(confidence, nan=0.0)
    return np.clip(np.ceil(filled * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)


def _mean_where(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis of the values that count."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(counted, values, 0).sum(0) / counted.sum(0)
