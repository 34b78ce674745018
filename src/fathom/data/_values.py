"""A column's cells as values of its kind, however they are stored: the same at training and at serving.

What cannot be read as the kind is null.
"""

from __future__ import annotations

import polars as pl

from fathom.data import _forms

EXACT = 2**53  # whole numbers below are exact in Float64
TRUTH = dict.fromkeys(_forms.TRUE, True) | dict.fromkeys(_forms.FALSE, False)


def numbers(series: pl.Series, format: str = "") -> pl.Series:
    """Return Float64, finite where it stood in text; `format` is the decimal sign of text."""
    if _is_text(series):
        return _forms.numbers(_text(series), format or ".")
    if series.dtype == pl.Duration:
        return series.dt.total_microseconds().cast(pl.Float64) / 1e6
    if series.dtype.is_numeric() or series.dtype == pl.Boolean:
        return series.cast(pl.Float64)
    return _nothing(series, pl.Float64)


def truths(series: pl.Series) -> pl.Series:
    """Return Boolean."""
    if series.dtype == pl.Boolean:
        return series
    text = labels(series)
    words = text.unique().drop_nulls()
    found = canonical(words).str.to_lowercase().replace_strict(TRUTH, default=None, return_dtype=pl.Boolean)
    return text.replace_strict(words, found, default=None, return_dtype=pl.Boolean)


def moments(series: pl.Series, format: str = "") -> pl.Series:
    """Return Datetime in microseconds, as the clock on the wall shows it; `format` is how text is written."""
    if _is_text(series):
        return _forms.dates(_text(series), format or _forms.ISO[0])
    if isinstance(series.dtype, pl.Datetime):
        return series.dt.replace_time_zone(None).cast(pl.Datetime("us"))
    if series.dtype == pl.Date:
        return series.cast(pl.Datetime("us"))
    if format and series.dtype.is_numeric():  # 20240131
        return _forms.dates(labels(series), format)
    return _nothing(series, pl.Datetime("us"))


def labels(series: pl.Series) -> pl.Series:
    """Return String, the same however a value is stored: 3, 3.0 and "3" are "3", true is "true"."""
    if _is_text(series):
        return _text(series)
    if series.dtype.is_float():
        column = pl.col("x")
        whole = (column.floor() == column) & (column.abs() < EXACT)
        without_point = column.cast(pl.Int64, strict=False).cast(pl.String)
        written = pl.when(whole).then(without_point).otherwise(column.cast(pl.String))
        return series.alias("x").to_frame().select(pl.when(column.is_not_nan()).then(written)).to_series()
    if series.dtype.is_nested() or series.dtype == pl.Binary:
        return _nothing(series, pl.String)
    return series.cast(pl.String, strict=False)


def canonical(text: pl.Series) -> pl.Series:
    """Return labels as `labels` writes them of values that are typed: "1.0" as "1", "True" as "true".

    A file's reader types a column by all of its cells, so the same cell is text in one table and a value in another.
    Codes with leading zeros are no numbers.
    """
    label = pl.col("x")
    number = label.str.contains(r"^[+-]?[0-9.]+([eE][+-]?[0-9]{1,3})?$") & ~label.str.contains(r"^[+-]?0[0-9]")
    value = pl.when(number).then(label.cast(pl.Float64, strict=False))
    known = text.alias("x").to_frame()
    written = labels(known.select(pl.when(value.abs() < EXACT).then(value)).to_series())
    lower = label.str.to_lowercase()
    plain = pl.when(lower.is_in(["true", "false"])).then(lower).otherwise(label)
    return known.select(pl.when(written.is_not_null()).then(written).otherwise(plain)).to_series()


def counts(series: pl.Series) -> dict[str, int]:
    """Return how often each label occurs, most frequent first, equals in order of the alphabet."""
    if series.dtype == pl.Object or series.dtype.is_nested():
        series = labels(series)
    table = series.alias("value").value_counts(name="rows")
    table = table.select(labels(table.get_column("value")).alias("label"), "rows").drop_nulls()
    table = table.group_by("label").agg(pl.col("rows").sum()).sort("rows", "label", descending=[True, False])
    return dict(zip(table.get_column("label"), table.get_column("rows"), strict=True))


def _is_text(series: pl.Series) -> bool:
    return series.dtype in (pl.String, pl.Object) or isinstance(series.dtype, (pl.Categorical, pl.Enum))


def _text(series: pl.Series) -> pl.Series:
    """Return String under a name that polars does not take for a pattern."""
    if series.dtype == pl.Object:
        return pl.Series("x", [None if value is None else str(value) for value in series], dtype=pl.String)
    return series.cast(pl.String).alias("x")


def _nothing(series: pl.Series, dtype: pl.DataType | type[pl.DataType]) -> pl.Series:
    return pl.Series("x", [None] * len(series), dtype=dtype)
