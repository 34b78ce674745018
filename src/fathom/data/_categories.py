"""Category and boolean columns: from labels to codes, 0 standing for missing and for labels not seen in training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import polars as pl

from fathom.core.types import UNKNOWN, Field
from fathom.data._values import canonical, counts, labels, truths

BOOLEAN = (UNKNOWN, "false", "true")
FEW = 1000  # rows


def codes(series: pl.Series, classes: pl.Enum) -> np.ndarray:
    """Return the position of each value's label in `classes` [N] (int32), -1 of those not among them.

    A label that is no class as it is written is one if it means the same: "1.0" and "1", "True" and "true".
    """
    if series.dtype.is_integer() and len(series) > FEW and not series.null_count():
        low, high = int(series.min()), int(series.max())  # type: ignore[arg-type]
        if high - low < len(series):  # each number that there may be is written out once
            return codes(labels(pl.int_range(low, high + 1, eager=True)), classes)[series.to_numpy() - low]
    text = labels(series)
    found = text.cast(classes, strict=False).to_physical().cast(pl.Int32)
    if found.null_count() > text.null_count():
        lost = text.filter(found.is_null()).unique().drop_nulls()
        same = _same(lost, classes)
        if same:
            found = found.fill_null(text.replace_strict(same, default=None, return_dtype=pl.Int32))
    return (found if found.null_count() == 0 else found.fill_null(-1)).to_numpy()


def _same(lost: pl.Series, classes: pl.Enum) -> dict[str, int]:
    """Return the position of the first class that means the same, of those labels that have one."""
    known = canonical(classes.categories)
    place = dict(zip(reversed(known), range(len(known) - 1, -1, -1), strict=True))
    return {label: place[form] for label, form in zip(lost, canonical(lost), strict=True) if form in place}


def check_classes(classes: Iterable[str]) -> None:
    classes = tuple(classes)
    if len(set(classes)) != len(classes):
        raise ValueError("classes are distinct")


@dataclass(frozen=True, kw_only=True)
class CategoryEncoder:
    """A category or boolean column: one category field.

    Attributes:
        classes: the first is `UNKNOWN`; a category's others stand most frequent first, a boolean's are "false", "true".
        boolean: labels are read as truth values.
    """

    blemish: ClassVar[str] = "are none of the classes learned, and count as unknown"

    column: str
    classes: tuple[str, ...]
    boolean: bool = False

    def __post_init__(self) -> None:
        check_classes(self.classes)
        if self.classes[:1] != (UNKNOWN,) or (self.boolean and self.classes != BOOLEAN):
            raise ValueError(f"the first class of an input is {UNKNOWN}")

    @classmethod
    def fit(cls, name: str, series: pl.Series, boolean: bool, max_classes: int) -> CategoryEncoder:
        """Learn the classes from all training rows. A boolean column in words of its own becomes a category."""
        found = [label for label in counts(series) if label != UNKNOWN]
        if boolean and truths(pl.Series(found, dtype=pl.String)).null_count() == 0:
            return cls(column=name, classes=BOOLEAN, boolean=True)
        return cls(column=name, classes=(UNKNOWN, *found[:max_classes]))

    @property
    def fields(self) -> tuple[Field, ...]:
        return (Field(name=self.column, kind="category", source=self.column, classes=self.classes),)

    @cached_property
    def _known(self) -> pl.Enum:
        return pl.Enum(self.classes[1:])

    def encode(self, series: pl.Series, number: np.ndarray, category: np.ndarray) -> int:
        """Write codes to `category` [N, 1]; return how many labels were not seen in training."""
        truth = self.boolean
        found = truths(series).cast(pl.Int32).fill_null(-1).to_numpy() if truth else codes(series, self._known)
        category[:, 0] = found + 1
        return int((found < 0).sum()) - series.null_count()
