"""Date columns: how their texts are written, and from a moment to its parts, each a number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import polars as pl

from fathom.core.types import Field, Stats
from fathom.data import _forms, _values
from fathom.data._numbers import Scale, flag_field, stats_of, write_flag

DAY = 86_400_000_000  # microseconds
MINUTE = 60_000_000
SPAN = 16_384  # days, about 45 years: calendars are made for whole spans, so that slices of a table share them
MOST_DAYS = 10 * SPAN  # beyond, dates are taken apart one by one
BY_DAY = ("year", "month", "day", "weekday")
PARTS = ("elapsed", *BY_DAY, "hour")
DAYS = ("%B %d, %Y", "%B %d %Y", "%d %B %Y", "%d-%B-%Y")  # "%B" reads September, and Sep
MONTHS = ("%Y-%m", "%Y/%m", "%m/%Y", "%B %Y", "%B, %Y", "%B-%Y")  # of a month its first day
YEAR = r"(^|[^0-9])[12][0-9]{3}([^0-9]|$)"  # in full: 10-02 is no month


def date_format(texts: pl.Series) -> tuple[str, bool] | None:
    """Return (format, whether day and month could be swapped) of texts that are dates or months, else None."""
    if (found := _forms.date_format(texts)) is not None:
        return found
    texts = texts.filter(~texts.is_in(_forms.DASHES)).drop_nulls().unique(maintain_order=True)
    few = _forms.a_few(texts)
    if not len(few) or int(few.str.contains(YEAR).sum()) < _forms.ENOUGH * len(few):
        return None
    forms = [*MONTHS, *(day + clock for day in DAYS for clock in _forms.CLOCKS)]
    best = min(forms, key=lambda form: _forms.dates(few, form).null_count())
    return (best, False) if _forms.dates(texts, best).null_count() <= (1 - _forms.ENOUGH) * len(texts) else None


def _parts(moments: pl.Series, names: Iterable[str], first: int) -> Iterator[np.ndarray]:
    """Yield each named part of the moments [N] as float64 [N]; of a missing moment, those of 1970-01-01."""
    micros, days, low, high = _days(moments)
    calendar = _calendar(low // SPAN * SPAN, -(-(high + 1) // SPAN) * SPAN) if high - low < MOST_DAYS else None
    for name in names:
        if name == "elapsed":
            yield (micros - first) / DAY
        elif name == "hour":
            yield (micros - days * DAY) // MINUTE / 60
        elif calendar is None:
            yield getattr(moments.dt, name)().fill_null(0).cast(pl.Float64).to_numpy()
        else:
            yield calendar[name][days - low // SPAN * SPAN]


def _days(moments: pl.Series) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Return microseconds [N] and days [N] since 1970-01-01 (of a missing moment none), and the first and last day."""
    micros = moments.to_physical().fill_null(0).to_numpy()
    days = micros // DAY
    return (micros, days, int(days.min()), int(days.max())) if len(days) else (micros, days, 0, 0)


@lru_cache(4)
def _calendar(low: int, high: int) -> dict[str, np.ndarray]:
    """Return the parts of the days from `low` to before `high`, counted from 1970-01-01; to look them up is cheap."""
    days = pl.int_range(low, high, dtype=pl.Int32, eager=True).cast(pl.Date)
    return {name: getattr(days.dt, name)().cast(pl.Float64).to_numpy() for name in BY_DAY}


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
    """A date column: a number field for each part that varies (`elapsed` counts days since the first of the sample).

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
        places = [PARTS.index(part.name) for part in self.parts]
        if places != sorted(set(places)):
            raise ValueError("the parts of a date stand in their order, each once")

    @classmethod
    def fit(cls, name: str, series: pl.Series, sample: np.ndarray, format: str) -> DateEncoder:
        moments = _values.moments(series.gather(sample) if len(sample) < len(series) else series, format)
        flag = series.null_count() > 0 or moments.null_count() > 0
        known = moments.drop_nulls()
        first = int(known.to_physical().min() or 0) if len(known) else 0  # type: ignore[arg-type]
        parts = []
        for part, values in zip(PARTS, _parts(known, PARTS, first), strict=True):
            rising = np.sort(values)
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
        gaps = moments.is_null().to_numpy()
        micros, days, low, high = _days(moments)
        places = {part.name: place for place, part in enumerate(self.parts)}
        if high - low < MOST_DAYS:  # the parts that days have stand side by side, and are looked up together
            clock = micros - days * DAY
            of_days = ("elapsed", *BY_DAY) if not clock.any() else BY_DAY
            found = tuple(part for part in self.parts if part.name in of_days)
            low, high = low // SPAN * SPAN, -(-(high + 1) // SPAN) * SPAN
            if found:
                start = places[found[0].name]
                days -= low
                for place, known in enumerate(_scaled_calendar(found, low, high, self.first), start):
                    known.take(days, out=number[:, place], mode="clip")  # all are in it; clipping spares a check
            if "hour" in places:
                number[:, places["hour"]] = _scaled_clock(self.parts[places["hour"]])[clock // MINUTE]
            places = {name: place for name, place in places.items() if name not in (*of_days, "hour")}
        for place, values in zip(places.values(), _parts(moments, places, self.first), strict=True):
            number[:, place] = self.parts[place].scale(values)
        if gaps.any():
            number[gaps] = [float(part.scale(np.array([part.scale.centre]))[0]) for part in self.parts]
        write_flag(category, gaps)
        return moments.null_count() - series.null_count()


@lru_cache(16)
def _scaled_calendar(parts: tuple[DatePart, ...], low: int, high: int, first: int) -> np.ndarray:
    """Return z of these parts of the days from `low` to before `high`, at midnight: [parts, days]."""
    elapsed = {"elapsed": (np.arange(low, high) * DAY - first) / DAY}
    return np.stack([part.scale((_calendar(low, high) | elapsed)[part.name]) for part in parts])


@lru_cache(16)
def _scaled_clock(hour: DatePart) -> np.ndarray:
    """Return z of the hour at each minute of a day [1440]."""
    return hour.scale(np.arange(DAY // MINUTE) / 60)
