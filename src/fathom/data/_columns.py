"""What each column of a table is, and why: its kind is inferred, shown to the user, and can be overruled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import polars as pl

from fathom.core.errors import ConfigError, DataError, did_you_mean
from fathom.data import _kinds
from fathom.data._kinds import KINDS, ColumnKind
from fathom.data._table import threads

COUNTED = 100_000  # rows up to which distinct values are counted, not estimated
FEW_SEEN = 100  # times that a sample has each value, on average, where it has them all
UNUSED = ("identifier", "constant")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column as it was understood.

    Attributes:
        kind: identifiers and constants are not learned from.
        why: the reason for the kind, a clause for the user.
        missing: cells that are empty.
        distinct: different values; of tables beyond `COUNTED` rows an estimate.
        examples: up to three values.
        format: of numbers in text the decimal sign, of dates in text how they are written (strftime's letters).
    """

    name: str
    kind: ColumnKind
    why: str
    missing: int = 0
    distinct: int = 0
    examples: tuple[str, ...] = ()
    format: str = ""


def infer(
    frame: pl.DataFrame,
    targets: Sequence[str] = (),
    kinds: Mapping[str, str] | None = None,
    folder: Path | None = None,
    decimal: str = ".",
) -> tuple[Column, ...]:
    """Return what each column of the frame is, in order.

    Args:
        frame: a cleaned table, as `read` returns it.
        targets: the columns to predict: never identifiers; whole numbers of few values are classes.
        kinds: column name -> kind, overruling what would be inferred.
        folder: where relative image paths start.
        decimal: the decimal sign of numbers in text that leave it open: the table's.

    Raises:
        ConfigError: `kinds` names a kind that does not exist.
        DataError: a name in `targets` or `kinds` is not a column; a target has no value, only one, or one for
            each row.
    """
    kinds = kinds or {}
    _check_names(frame, targets, kinds)

    def inferred(series: pl.Series) -> Column:
        name, distinct = series.name, _distinct_of(series, series.name in targets)
        if name in targets:
            _check_target(series, distinct)
        if name in kinds:
            verdict = _kinds.overruled(series, cast(ColumnKind, kinds[name]), decimal)
        elif name in targets:
            verdict = _kinds.of_target(series, distinct, decimal)
            _check_classes(series, distinct, verdict.kind)
        else:
            verdict = _kinds.of_input(series, distinct, folder, decimal)
        return Column(
            name=name,
            kind=verdict.kind,
            why=verdict.why,
            missing=series.null_count(),
            distinct=distinct,
            examples=_examples(series),
            format=verdict.format,
        )

    with ThreadPoolExecutor(threads()) as pool:
        columns = list(pool.map(inferred, frame.get_columns()))
    return _keep_something(_images_once(columns, frame, {*targets, *kinds}), frame, {*targets, *kinds})


def _check_names(frame: pl.DataFrame, targets: Sequence[str], kinds: Mapping[str, str]) -> None:
    for name in (*targets, *kinds):
        if name not in frame.columns:
            raise DataError(f"There is no column '{name}'.{did_you_mean(name, frame.columns)}")
    for name, kind in kinds.items():
        if kind not in KINDS:
            raise ConfigError(f"Column '{name}' cannot be of kind '{kind}'.{did_you_mean(kind, KINDS)}")


def _check_target(series: pl.Series, distinct: int) -> None:
    if series.null_count() == len(series):
        raise DataError(
            f"Target '{series.name}' has no value in any of the {len(series):,} rows; there is nothing to learn."
        )
    if distinct == 1:
        only = series.drop_nulls()[0]
        raise DataError(
            f"Target '{series.name}' is {only!r} in every row; two different values are needed to learn from."
        )


def _check_classes(series: pl.Series, distinct: int, kind: str) -> None:
    known = len(series) - series.null_count()
    if kind == "category" and distinct > _kinds.FEW and 2 * distinct > known:
        raise DataError(
            f"Target '{series.name}' has {distinct:,} different values in {known:,} rows, too many to be classes; "
            "choose another target."
        )


def _distinct_of(series: pl.Series, is_target: bool) -> int:
    """Count the different values of a column, missing ones aside; estimate them where there are many rows."""
    if series.dtype.is_nested():
        return len(series)
    if series.dtype == pl.Binary:
        return int(series.head(1000).n_unique())
    if len(series) <= COUNTED:
        return int(series.n_unique()) - bool(series.null_count())
    if series.dtype.is_numeric() and not is_target:
        return _distinct_numbers(series)
    some = _kinds.sample(series)
    found = some.n_unique()
    if found > 1 and FEW_SEEN * found <= len(some):  # each was seen so often that hardly one was missed
        return found
    return max(0, int(series.approx_n_unique()) - bool(series.null_count()))  # type: ignore[arg-type]


def _distinct_numbers(series: pl.Series) -> int:
    """Estimate from a sample: exact where that has each value many times, in proportion where it has most once."""
    if series.min() == series.max():
        return int(series.null_count() < len(series))
    some = _kinds.sample(series)
    found = some.n_unique()
    return max(2, found if found < len(some) / 2 else round(found / len(some) * (len(series) - series.null_count())))


def _examples(series: pl.Series) -> tuple[str, ...]:
    known = series.head(1000).drop_nulls()
    if series.dtype == pl.Binary:
        return tuple(f"{len(value):,} bytes" for value in known.head(3))
    if series.dtype.is_nested():
        return ()
    values = known.unique(maintain_order=True).head(3)
    return tuple(text if len(text) <= 40 else text[:39] + "…" for text in (_shown(value) for value in values))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value).replace("\n", " ")


def _images_once(columns: list[Column], frame: pl.DataFrame, decided: set[str]) -> list[Column]:
    """Where columns name the same image files, learn from the first."""
    found: list[Column] = []
    for column in columns:
        if column.kind == "image" and column.name not in decided:
            paths = frame[column.name]
            same = (c.name for c in found if c.kind == "image" and paths.equals(frame[c.name], check_names=False))
            if (first := next(same, None)) is not None:
                column = replace(column, kind="identifier", why=f"the same images as in '{first}'")
        found.append(column)
    return found


def _keep_something(columns: list[Column], frame: pl.DataFrame, decided: set[str]) -> tuple[Column, ...]:
    """Where row numbers are all there is to learn from, learn from them."""
    inputs = [c for c in columns if c.name not in decided]
    if any(c.kind not in UNUSED for c in columns if c in inputs) or len(decided) == len(columns):
        return tuple(columns)
    numbers = {c.name for c in inputs if c.kind == "identifier" and frame.schema[c.name].is_numeric()}
    why = "nothing else can be learned from"
    return tuple(replace(c, kind="number", why=why) if c.name in numbers else c for c in columns)
