"""Which rows train, which choose (valid), and which test: drawn by seed, or by a column, by group, by time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from fathom.core.config import option
from fathom.core.errors import ConfigError, DataError, did_you_mean
from fathom.data import _values
from fathom.data._columns import Column
from fathom.data._dates import date_format

PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "holdout"), "test"),
}
BINS = 10  # ranges of a number target, each of which is divided in the same share
MOST_VALID = 4_000  # rows, unless a share is given
MOST = 0.9  # of the rows may be taken for valid and test together


@dataclass(frozen=True)
class SplitConfig:
    column: str = option("", "the column that says train, valid or test")
    group: str = option("", "the column whose equal values stay on one side (a patient, a customer)")
    time: str = option("", "the column of dates or numbers by which the latest rows are the test")
    test: float | None = option(
        None, "share of the rows that test; 0 for none; by default 0.2, of 5,000 rows or more 0.1"
    )
    valid: float | None = option(
        None, "share of the rest by which the best state is chosen; by default as for test, at most 4,000 rows"
    )

    def __post_init__(self) -> None:
        for name in ("test", "valid"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= MOST:
                raise ConfigError(f"Option 'split.{name}' was given {share}; expected a share from 0 to {MOST}.")
        given = [f"split.{name}" for name in ("column", "group", "time") if getattr(self, name)]
        if len(given) > 1:
            raise ConfigError(f"Options '{given[0]}' and '{given[1]}' exclude each other; give one.")


@dataclass(frozen=True)
class Split:
    """Positions of rows in the frame, each int64, rising, disjoint."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def split(
    frame: pl.DataFrame, columns: Sequence[Column], targets: Sequence[str], config: SplitConfig, seed: int = 0
) -> Split:
    """Divide the rows of a frame.

    Args:
        columns: what `infer` said; the first target's kind decides how it is stratified.
        config: where a test table is given by itself, `test` is 0.
        seed: the same seed divides the same rows in the same way.

    Raises:
        DataError: a column is missing or says something else than train, valid and test; too few rows or groups.
    """
    for name in (config.column, config.group, config.time):
        if name and name not in frame.columns:
            raise DataError(f"There is no column '{name}' to split by.{did_you_mean(name, frame.columns)}")
    if len(frame) < 3:
        raise DataError(
            f"The table has {len(frame)} row{'s' * (len(frame) != 1)}; at least 3 are needed to train and test."
        )
    rng = np.random.default_rng([seed, 1])
    rows = np.arange(len(frame))
    strata = _strata(frame, columns, targets)
    if config.column:
        return _by_column(frame[config.column], strata, config, rng)
    if config.time:
        moments = _moments(frame[config.time])
        rest, test = _latest(rows, moments, _share(config.test, len(rows)))
        return Split(*_latest(rest, moments, _valid_share(config.valid, len(rest))), test)
    if config.group:
        groups = _groups(frame[config.group])
        rest, test = _whole_groups(rows, groups, _share(config.test, len(rows)), rng, config.group)
        return Split(*_whole_groups(rest, groups, _valid_share(config.valid, len(rest)), rng, config.group), test)
    rest, test = _draw(rows, strata, _share(config.test, len(rows)), rng)
    return Split(*_draw(rest, strata, _valid_share(config.valid, len(rest)), rng), test)


def _share(given: float | None, rows: int) -> float:
    return given if given is not None else 0.2 if rows < 5000 else 0.1


def _valid_share(given: float | None, rows: int) -> float:
    """More than some thousand rows choose no better, and are missed in training."""
    return given if given is not None else min(_share(None, rows), MOST_VALID / max(rows, 1))


def _strata(frame: pl.DataFrame, columns: Sequence[Column], targets: Sequence[str]) -> np.ndarray:
    """Return a code [N] for each row: its class, or the tenth of its number target; -1 where that is missing."""
    if not targets:
        return np.zeros(len(frame), dtype=np.int64)
    series = frame[targets[0]]
    kind = next((c for c in columns if c.name == targets[0]), None)
    if kind is not None and kind.kind == "text":
        return np.zeros(len(frame), dtype=np.int64)
    if kind is not None and kind.kind == "number":
        values = _values.numbers(series, kind.format)
        ranks = values.fill_nan(None).rank("average").to_numpy()
        tenth = np.floor(np.nan_to_num(ranks, nan=-1) / (len(frame) + 1) * BINS)
        return tenth.astype(np.int64)
    return _groups(series)


def _groups(series: pl.Series) -> np.ndarray:
    """Return a code [N] for each distinct value, -1 where it is missing."""
    codes = series.rank("dense").cast(pl.Int64) if series.dtype != pl.Binary else series.bin.encode("hex").rank("dense")
    return codes.cast(pl.Int64).fill_null(-1).to_numpy()


def _draw(
    rows: np.ndarray, strata: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return (the rest, the drawn): from each stratum its share, to the nearest row; nobody's last row is drawn.

    The rows are shuffled and laid out stratum by stratum; every 1/share-th is drawn, from a random start.
    """
    if share == 0 or len(rows) < 2:
        return rows, rows[:0]
    order = rng.permutation(rows)
    order = order[np.argsort(strata[order], kind="stable")]
    _, start, size = np.unique(strata[order], return_index=True, return_counts=True)
    last = start + size - 1
    free = np.ones(len(order), dtype=bool)
    free[last] = False  # one of each stratum stays
    pool = order[free] if free.any() else order[:-1]
    count = min(max(1, round(share * len(rows))), len(pool))
    places = ((np.arange(count) + rng.random()) * len(pool) / count).astype(np.int64)
    drawn = np.sort(pool[places])
    return np.setdiff1d(rows, drawn, assume_unique=True), drawn


def _whole_groups(
    rows: np.ndarray, groups: np.ndarray, share: float, rng: np.random.Generator, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return (the rest, the drawn), no group on both sides; a row without a group is one of its own."""
    if share == 0:
        return rows, rows[:0]
    codes = groups[rows].copy()
    alone = codes < 0
    codes[alone] = codes.max(initial=0) + 1 + np.arange(alone.sum())
    distinct, index, size = np.unique(codes, return_inverse=True, return_counts=True)
    if len(distinct) < 2:
        raise DataError(
            f"Column '{name}' has one group only in {len(rows):,} rows; at least 3 are needed to train and test."
        )
    order = rng.permutation(len(distinct))
    reached = np.cumsum(size[order])
    count = int(np.searchsorted(reached, share * len(rows) + size.mean() / 2))  # to the nearest group
    chosen = order[: min(max(1, count), len(distinct) - 1)]
    drawn = np.isin(index, chosen)
    return rows[~drawn], rows[drawn]


def _latest(rows: np.ndarray, moments: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (the earlier, the latest); rows of one moment stay on one side where there are others."""
    if share == 0:
        return rows, rows[:0]
    order = rows[np.argsort(moments[rows], kind="stable")]
    changes = np.flatnonzero(np.diff(moments[order])) + 1  # positions before which the moment changes
    wanted = len(rows) - max(1, round(share * len(rows)))
    cut = int(changes[np.argmin(np.abs(changes - wanted))]) if len(changes) else wanted
    return np.sort(order[:cut]), np.sort(order[cut:])


def _moments(series: pl.Series) -> np.ndarray:
    """Return the time of each row [N] float64; rows without one count as the earliest."""
    if series.dtype == pl.String:
        found = date_format(series.head(10_000))
        values = _values.moments(series, found[0] if found else "").to_physical()
        if values.null_count() == len(values):
            values = _values.numbers(series)
    else:
        values = series.to_physical() if series.dtype.is_temporal() else _values.numbers(series)
    if values.null_count() == len(values):
        raise DataError(f"Column '{series.name}' holds no dates or numbers to split by.")
    return values.cast(pl.Float64).fill_null(-np.inf).to_numpy()


def _by_column(series: pl.Series, strata: np.ndarray, config: SplitConfig, rng: np.random.Generator) -> Split:
    """Follow a column of words; what it does not set apart is drawn from the training rows."""
    words = series.cast(pl.String).str.strip_chars().str.to_lowercase()
    parts = words.replace_strict(PARTS, default=None, return_dtype=pl.String)
    wrong = parts.is_null().arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(f"Column '{series.name}' says {series[row]!r} in row {row + 1}; expected train, valid or test.")
    train, valid, test = (parts.eq(part).arg_true().to_numpy().astype(np.int64) for part in ("train", "valid", "test"))
    if not len(train):
        raise DataError(f"Column '{series.name}' marks no row as train.")
    if not len(test) and config.test != 0:
        train, test = _draw(train, strata, _share(config.test, len(train)), rng)
    if not len(valid):
        train, valid = _draw(train, strata, _valid_share(config.valid, len(train)), rng)
    return Split(train, valid, test)
