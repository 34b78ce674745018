"""Date columns: from a moment to its parts, each a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl

from fathom.core.types import Field, Stats
from fathom.data import _values
from fathom.data._numbers import Scale, finite, flag_field, stats_of, write_flag

DAY = 86_400_000_000  # microseconds
PARTS = ("elapsed", "year", "month", "day", "weekday", "hour")


def _part(moments: pl.Series, part: str, first: int) -> pl.Series:
    if part == "elapsed":
        return (moments.to_physical() - first) / DAY
    if part == "hour":
        return moments.dt.hour() + moments.dt.minute() / 60
    return getattr(moments.dt, part)()


@dataclass(frozen=True, kw_only=True)
class DatePart:
    name: str
    scale: Scale
    stats: Stats

    def __post_init__(self) -> None:
        if self.name not in PARTS:
            raise ValueError(f"the parts of a date are {', '.join(PARTS)}")


@dataclass(frozen=True, kw_only=True)
class DateEncoder:
    """A date column: a number field for each part that varies (`elapsed` counts days since the first training row).

    A missing date stands at the mean of each part; a flag field tells it apart where training rows miss dates.
    """

    blemish: ClassVar[str] = "are no dates, and count as missing"

    column: str
    format: str
    first: int
    parts: tuple[DatePart, ...]
    flag: bool

    def __post_init__(self) -> None:
        if abs(self.first) > 2**61:
            raise ValueError("the first date is none that a calendar has")

    @classmethod
    def fit(cls, name: str, series: pl.Series, sample: np.ndarray, format: str) -> DateEncoder:
        moments = _values.moments(series, format)
        flag = moments.null_count() > 0
        known = moments.drop_nulls()
        first = int(known.to_physical().min() or 0) if len(known) else 0  # type: ignore[arg-type]
        if len(sample) < len(moments):
            known = moments.gather(sample).drop_nulls()
        parts = []
        for part in PARTS:
            rising = np.sort(_part(known, part, first).cast(pl.Float64).to_numpy())
            if len(rising) and rising[0] < rising[-1]:
                scale = Scale.fit("standard", rising)
                parts.append(DatePart(name=part, scale=scale, stats=stats_of(scale(rising))))
        return cls(column=name, format=format, first=first, parts=tuple(parts), flag=flag)

    @property
    def fields(self) -> tuple[Field, ...]:
        numbers = tuple(
            Field(name=f"{self.column}.{part.name}", kind="number", source=self.column, stats=part.stats)
            for part in self.parts
        )
        return (*numbers, flag_field(self.column)) if self.flag else numbers

    def encode(self, series: pl.Series, number: np.ndarray, category: np.ndarray) -> int:
        """Write z of each part to `number` [N, P] and the flag to `category` [N, 0 or 1]; return the unreadable."""
        moments = _values.moments(series, self.format)
        for place, part in enumerate(self.parts):
            values = _part(moments, part.name, self.first).cast(pl.Float64).to_numpy()
            number[:, place] = part.scale(finite(values, part.scale.centre)[0])
        write_flag(category, moments.is_null().to_numpy())
        return moments.null_count() - series.null_count()
