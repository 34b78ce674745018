"""Target columns: classes to codes, numbers as they are; a row whose target cannot be learned from is set aside."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import polars as pl

from fathom.core.errors import DataError
from fathom.core.types import Field, Stats
from fathom.data._categories import check_classes, codes
from fathom.data._values import counts, labels, numbers, truths

MOST_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True)
class TargetEncoder:
    """A target column.

    Attributes:
        kind: "number" (float32 in its own unit; NaN where missing) or "category" (int64 codes; -1 where missing or
            of no class).
        classes, counts: of a category, the classes in order and the training rows of each.
        stats: of a number, in its own unit.
    """

    column: str
    kind: Literal["number", "category"]
    format: str = "."
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    stats: Stats | None = None

    def __post_init__(self) -> None:
        check_classes(self.classes)
        if (self.kind == "category") != bool(self.classes) or len(self.counts) != len(self.classes):
            raise ValueError("a category target has classes and as many counts, a number none")
        if (self.kind == "number") != (self.stats is not None):
            raise ValueError("a number target has statistics, a category none")
        if self.stats and not all(map(math.isfinite, (*self.stats.mean, *self.stats.std))):
            raise ValueError("statistics are finite numbers")

    @classmethod
    def fit(cls, name: str, kind: str, series: pl.Series, format: str) -> TargetEncoder:
        """Learn the classes from all training rows; `measured` then counts those that were kept.

        Raises:
            DataError: nothing can be learned of such a target.
        """
        if kind == "number":
            encoder = cls(column=name, kind="number", format=format, stats=Stats())
            values = encoder._numbers(series)
            values = values[np.isfinite(values)]
            if len(values) == 0 or values.min() == values.max():
                raise DataError(f"Target '{name}' holds {_holding(values)}; at least two different ones are needed.")
            return encoder
        if kind not in ("category", "boolean"):
            raise DataError(
                f"Target '{name}' is of kind {kind}, which cannot be predicted; choose a number, category or boolean "
                "column, or set its kind."
            )
        rows = counts(series)
        if not 2 <= len(rows) <= MOST_CLASSES:
            raise DataError(
                f"Target '{name}' has {len(rows)} different values; a category to predict has 2 to {MOST_CLASSES:,}."
            )
        classes = tuple(sorted(rows, key=_natural))
        return cls(column=name, kind="category", classes=classes, counts=tuple(rows[c] for c in classes))

    @property
    def output(self) -> Field:
        return Field(
            name=self.column,
            kind=self.kind,
            source=self.column,
            classes=self.classes,
            counts=self.counts,
            stats=self.stats,
        )

    def encode(self, series: pl.Series, unseen: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return the values [N] and the mask [N] of rows that have none; with `unseen`, another class is one."""
        if self.kind == "number":
            values = self._numbers(series)
            return values, ~np.isfinite(values)
        found = codes(series, self._known)
        if self._truths is not None and (found < 0).any():
            # The same truth in other words: "yes" for a class that training rows called "true".
            said = truths(series).cast(pl.Int32).fill_null(2).to_numpy()
            found = np.where(found < 0, np.array([*self._truths, -1])[said], found)
        gaps = found < 0
        if unseen:
            text = labels(series)
            gaps &= (text.is_null() | (text == "")).to_numpy()
        return found.astype(np.int64), gaps

    def measured(self, values: np.ndarray) -> TargetEncoder:
        """Return this encoder with the counts or statistics of the training rows kept, of which `values` [N] are; rows
        that are kept without a target do not count."""
        if self.kind == "category":
            known = values[values >= 0]
            return replace(self, counts=tuple(np.bincount(known, minlength=len(self.classes)).tolist()))
        exact = values[np.isfinite(values)].astype(np.float64)
        mean, std, low, high = float(exact.mean()), float(exact.std()) or 1.0, float(exact.min()), float(exact.max())
        return replace(self, stats=Stats(mean=(mean,), std=(std,), minimum=(low,), maximum=(high,)))

    def reason(self, value: object) -> str:
        """Return why a row with such a target is set aside."""
        if value is None or value == "" or value != value:
            return f"target '{self.column}' is missing"
        if self.kind == "number":
            return f"target '{self.column}' is {value!r}, which is not a number"
        return f"target '{self.column}' is {value!r}, a class that no training row has"

    def _numbers(self, series: pl.Series) -> np.ndarray:
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and set aside
            return numbers(series, self.format).to_numpy().astype(np.float32)

    @cached_property
    def _known(self) -> pl.Enum:
        return pl.Enum(self.classes)

    @cached_property
    def _truths(self) -> tuple[int, int] | None:
        """The codes of false and of true, where the two classes say just that."""
        found = truths(pl.Series(self.classes, dtype=pl.String)).to_list()
        return (found.index(False), found.index(True)) if sorted(map(str, found)) == ["False", "True"] else None


def _natural(label: str) -> tuple[int, float, str]:
    """Numbers by value, then words by letter."""
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    return (0, value, label) if math.isfinite(value) else (1, 0.0, label)


def _holding(values: np.ndarray) -> str:
    return "no number" if len(values) == 0 else f"one number only, {values[0]:g}"
