"""Number columns: from whatever holds them to float32 on a scale that networks learn from.

Scale           what was learned of a column's distribution, and the map to z that follows from it
NumberEncoder   a number column: one number field, and a flag field where training rows miss values
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from fathom.core.types import UNKNOWN, Field, Stats
from fathom.data import _values

LARGEST = 1e100  # greater magnitudes are taken as this, so that no arithmetic on them overflows
SMALLEST = 1e-100  # a spread below this is no spread
CURVE = 3.0  # the robust scale's values stay within ±3, as in RealMLP
QUANTILES = 65  # handed to models for numeric embeddings
KNOTS = 513  # of the quantile scale
FLAG = (UNKNOWN, "no", "yes")  # classes of a flag that says whether a value was missing


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A map from a column's values to z, learned from training rows.

    robust      z = s / √(1 + (s/3)²) with s = (x − median) / (quartile range): the smooth clipping of
                Holzmüller, Grinsztajn and Steinwart, "Better by default", 2024
    quantile    z = the normal score of the value's rank, linear between the knots
    standard    z = (x − mean) / standard deviation

    Attributes:
        centre, factor: s = (x − centre) · factor; the factor is 0 of a column with one value.
        knots, scores: of the quantile scale, rising values and their normal scores.
    """

    how: Literal["robust", "quantile", "standard"]
    centre: float = 0.0
    factor: float = 0.0
    knots: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        values = (self.centre, self.factor, *self.knots, *self.scores)
        if not all(map(math.isfinite, values)) or len(self.knots) != len(self.scores) or len(values) > 10_000:
            raise ValueError("a scale needs finite numbers and as many scores as knots")
        if any(b <= a for a, b in zip(self.knots, self.knots[1:], strict=False)) or (
            self.how == "quantile" and not self.knots
        ):
            raise ValueError("the knots of a scale rise")

    @classmethod
    def fit(cls, how: Literal["robust", "quantile", "standard"], rising: np.ndarray) -> Scale:
        """Learn from finite values in rising order."""
        if len(rising) == 0 or rising[0] == rising[-1]:
            return cls(how="standard", centre=float(rising[0]) if len(rising) else 0.0)
        if how == "quantile":
            knots, scores = _normal_scores(rising)
            return cls(how=how, knots=knots, scores=scores)
        if how == "standard":
            centre, spread = float(rising.mean()), float(rising.std())
        else:
            low, centre, high = quantiles_of(rising, np.array([0.25, 0.5, 0.75])).tolist()
            # Half of all values may be one and the same (zeros, say): then the range stands in for the quartiles.
            spread = high - low if high - low > SMALLEST else float(rising[-1] - rising[0]) / 2
        return cls(how=how, centre=centre, factor=1 / spread if spread > SMALLEST else 0.0)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return z (float32) of finite float64 values [N]."""
        if self.how == "quantile":
            knots, scores = self._table
            return np.interp(x, knots, scores).astype(np.float32)
        z = x - self.centre
        z *= self.factor
        # Far outside of the training rows a number says no more than "far": float32 arithmetic stays finite.
        np.clip(z, -1e6, 1e6, out=z)
        s = z.astype(np.float32)
        if self.how == "standard":
            return s
        root = s * np.float32(1 / CURVE)
        root *= root
        root += np.float32(1)
        np.sqrt(root, out=root)
        s /= root
        return s

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.knots), np.array(self.scores)


def _normal_scores(rising: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots at evenly spaced ranks, each at the mean rank of the values equal to it."""
    count = min(KNOTS, len(rising))
    knots = np.unique(rising[np.linspace(0, len(rising) - 1, count).round().astype(np.int64)])
    first, last = np.searchsorted(rising, knots, "left"), np.searchsorted(rising, knots, "right") - 1
    ranks = ((first + last) / 2 + 0.5) / len(rising)
    return tuple(knots.tolist()), tuple(NormalDist().inv_cdf(rank) for rank in ranks.tolist())


def quantiles_of(rising: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the values below which these shares of others lie; those between two are in proportion."""
    places = shares * (len(rising) - 1)
    low = np.floor(places).astype(np.int64)
    high = np.minimum(low + 1, len(rising) - 1)
    return rising[low] + (places - low) * (rising[high].astype(np.float64) - rising[low])


def stats_of(z: np.ndarray) -> Stats:
    """Return the statistics of transformed training values in rising order (of none: a standard normal's).

    Where all are one and the same, the deviation is told as 1, for others divide by it.
    """
    if len(z) == 0:
        return Stats(minimum=(0.0,), maximum=(0.0,), quantiles=(0.0,))
    quantiles = np.unique(quantiles_of(z, np.linspace(0, 1, QUANTILES)).astype(np.float32))
    return Stats(
        mean=(float(z.mean(dtype=np.float64)),),
        std=(float(z.std(dtype=np.float64)) or 1.0,),
        minimum=(float(z[0]),),
        maximum=(float(z[-1]),),
        quantiles=tuple(quantiles.tolist()),
    )


def finite(values: np.ndarray, otherwise: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Return float64 values with every gap filled and none beyond ±`LARGEST`, and the mask of gaps if there are any."""
    gaps = ~np.isfinite(values)
    if gaps.any():
        return np.clip(np.where(gaps, otherwise, values), -LARGEST, LARGEST), gaps
    return np.clip(values, -LARGEST, LARGEST), None


@dataclass(frozen=True, kw_only=True)
class NumberEncoder:
    """A number column.

    Missing values, infinities and whatever is not a number take the median's place; where training rows have such
    gaps, a flag field tells them apart.
    """

    blemish: ClassVar[str] = "are no numbers, and count as missing"

    column: str
    format: str
    scale: Scale
    median: float
    flag: bool
    stats: Stats

    def __post_init__(self) -> None:
        if not math.isfinite(self.median):
            raise ValueError("a median is a finite number")

    @classmethod
    def fit(
        cls,
        name: str,
        series: pl.Series,
        sample: np.ndarray,
        how: Literal["robust", "quantile", "standard"],
        format: str,
    ) -> NumberEncoder:
        """Learn from training rows: gaps from all of them, the distribution from those at `sample`."""
        values = _values.numbers(series, format)
        flag = values.null_count() > 0 or not values.is_finite().all()
        drawn = values.gather(sample).to_numpy() if len(sample) < len(values) else values.to_numpy()
        rising = np.sort(np.clip(drawn[np.isfinite(drawn)], -LARGEST, LARGEST))
        scale = Scale.fit(how, rising)
        median = float(quantiles_of(rising, np.array([0.5]))[0]) if len(rising) else 0.0
        return cls(column=name, format=format, scale=scale, median=median, flag=flag, stats=stats_of(scale(rising)))

    @property
    def fields(self) -> tuple[Field, ...]:
        number = Field(name=self.column, kind="number", source=self.column, stats=self.stats)
        return (number, flag_field(self.column)) if self.flag else (number,)

    def encode(self, series: pl.Series, number: np.ndarray, category: np.ndarray) -> int:
        """Write z to `number` [N, 1] and the flag to `category` [N, 0 or 1]; return how many values were unreadable."""
        values = _values.numbers(series, self.format)
        x, gaps = finite(values.to_numpy(), self.median)
        number[:, 0] = self.scale(x)
        write_flag(category, gaps)
        return values.null_count() - series.null_count()


def flag_field(column: str) -> Field:
    return Field(name=f"{column}.missing", kind="category", source=column, classes=FLAG)


def write_flag(category: np.ndarray, gaps: np.ndarray | None) -> None:
    """Write codes of `FLAG` to `category` [N, 0 or 1]."""
    if category.shape[1]:
        category[:, 0] = 1 if gaps is None else gaps + 1
