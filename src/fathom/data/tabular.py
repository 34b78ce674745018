"""Tables: files (CSV and its kin, Parquet, JSON lines), frames (polars, pandas), rows and columns in Python.

read_file      a path -> Table
read_frame     a polars or pandas frame -> Table
read_rows      a list of dicts -> Table
read_columns   a dict of columns -> Table
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from fathom.core.errors import DataError
from fathom.data import _spill
from fathom.data._clean import clean
from fathom.data._csv import read_csv
from fathom.data._names import tidy
from fathom.data._table import SetAside, Table
from fathom.data._unpack import unpacked

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


def read_file(path: Path, origin: str, limit: int | None = None, text: Collection[str] = ()) -> Table:
    """Return the table in a file, gzipped or not; what it is, is told by its first bytes and its name.

    Args:
        limit: bytes beyond which the table is mapped from a temporary file; by default a quarter of the free memory.
        text: names of columns that stay text, where the file does not say what is text and what a number.

    Raises:
        DataError: it cannot be read, is empty, or is mostly broken.
    """
    limit = _spill.limit() if limit is None else limit
    try:
        with unpacked(path) as plain:
            table = _read_plain(plain, origin, limit, text)
        table.folder = path.parent
        return table
    except OSError as error:
        raise DataError(f"'{origin}' cannot be read: {error.strerror or error}.") from None


def _read_plain(path: Path, origin: str, limit: int, text: Collection[str]) -> Table:
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PAR1":
        return _read_parquet(path, origin, limit)
    if path.suffix.lower() in JSON_SUFFIXES:
        return _read_json(path, origin, limit)
    return read_csv(path, origin, limit, text)


def read_frame(frame: Any, origin: str = "the data") -> Table:
    """Return a polars or pandas frame as a table."""
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    if not isinstance(frame, pl.DataFrame):
        names = [str(name) for name in frame.columns]
        return _table([_from_pandas(frame.iloc[:, i]) for i in range(len(names))], names, origin)
    return _table(frame.get_columns(), frame.columns, origin)


def read_rows(rows: Sequence[Mapping[str, Any]], origin: str = "the data") -> Table:
    """Return a list of dicts as a table; a key that a row lacks is a missing value.

    Raises:
        DataError: a row is not a dict.
    """
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"Row {number} of {origin} is {type(row).__name__}; expected a dict of column names to values."
            )
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _table([_series([row.get(name) for row in rows]) for name in names], [str(name) for name in names], origin)


def read_columns(columns: Mapping[str, Any], origin: str = "the data") -> Table:
    """Return a dict of columns (lists, arrays, series) as a table.

    Raises:
        DataError: the columns differ in length.
    """
    series = [_series(values) for values in columns.values()]
    lengths = {str(name): len(s) for name, s in zip(columns, series, strict=True)}
    if len(set(lengths.values())) > 1:
        (first, n), (other, m) = next((a, b) for a in lengths.items() for b in lengths.items() if a[1] != b[1])
        raise DataError(f"Columns of {origin} differ in length: '{first}' has {n:,} values, '{other}' has {m:,}.")
    return _table(series, list(lengths), origin)


def _table(columns: Sequence[pl.Series], names: Sequence[str], origin: str) -> Table:
    fit, notes = tidy(names)
    frame = pl.DataFrame([column.alias(name) for column, name in zip(columns, fit, strict=True)])
    if not len(frame):
        raise DataError(f"{_begin(origin)} has no rows.")
    frame, said = clean(frame)
    return Table(frame, origin, notes=(*notes, *said))


def _begin(origin: str) -> str:
    return origin[:1].upper() + origin[1:] if not Path(origin).suffix else f"'{origin}'"


def _series(values: Any) -> pl.Series:
    """Return values of one column; where they are of several types, all as text."""
    if isinstance(values, pl.Series):
        return values
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise DataError(f"A column is given as {type(values).__name__}; expected a list, an array or a series.")
    if hasattr(values, "dtype") and hasattr(values, "iloc"):
        return _from_pandas(values)
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    try:
        return pl.Series(listed, strict=True)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        return _mixed(listed)


def _mixed(values: list[Any]) -> pl.Series:
    if all(v is None or isinstance(v, (int, float)) for v in values):
        return pl.Series([None if v is None else float(v) for v in values], dtype=pl.Float64)
    if any(isinstance(v, (bytes, bytearray)) for v in values):
        return pl.Series([bytes(v) if isinstance(v, (bytes, bytearray)) else None for v in values], dtype=pl.Binary)
    return pl.Series([None if v is None else str(v) for v in values], dtype=pl.String)


def _from_pandas(column: Any) -> pl.Series:
    """Return a pandas series, without the help of pyarrow."""
    if column.dtype.kind in "iufbmM" and getattr(column.dtype, "na_value", None) is None:
        return pl.Series(column.to_numpy())
    if column.dtype.kind == "M":  # with a time zone: what the clock there shows
        return pl.Series(column.dt.tz_localize(None).to_numpy())
    gaps = column.isna().to_numpy()
    return _series([None if gap else _native(value) for value, gap in zip(column, gaps, strict=True)])


def _native(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _read_parquet(path: Path, origin: str, limit: int) -> Table:
    try:
        large = path.stat().st_size > limit
        frame = _spill.spill(pl.scan_parquet(path, glob=False)) if large else pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"'{origin}' is a damaged Parquet file: {_one_line(error)}.") from None
    return _table(frame.get_columns(), frame.columns, origin)


def _read_json(path: Path, origin: str, limit: int) -> Table:
    """JSON lines, or one JSON array of objects."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        raise DataError(f"'{origin}' is empty.")
    if start.startswith(b"["):
        return _read_array(path, origin)
    try:
        if path.stat().st_size > limit:
            frame = _spill.spill(pl.scan_ndjson(path, infer_schema_length=10_000))
        else:
            frame = pl.read_ndjson(path, infer_schema_length=None)
        return _table(frame.get_columns(), frame.columns, origin)
    except pl.exceptions.PolarsError:
        return _read_lines(path, origin)


def _read_array(path: Path, origin: str) -> Table:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"'{origin}' is not JSON: {_one_line(error)}.") from None
    table = read_rows(rows, f"'{origin}'")
    table.origin = origin
    return table


def _read_lines(path: Path, origin: str) -> Table:
    """Read JSON lines one by one; those that are no JSON object are set aside."""
    rows, set_aside = [], []
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                reason = "" if isinstance(row, dict) else "it is no JSON object"
            except ValueError as error:
                reason = f"it is no JSON ({getattr(error, 'msg', error)})"
            if reason:
                set_aside.append(SetAside(where=origin, row=number, column=None, reason=reason))
            else:
                rows.append(row)
    if len(set_aside) > len(rows):
        raise DataError(
            f"Most lines of '{origin}' are broken ({len(set_aside):,} of {len(set_aside) + len(rows):,}); the first is "
            f"line {set_aside[0].row}: {set_aside[0].reason}."
        )
    table = read_rows(rows, origin)
    table.set_aside = tuple(set_aside)
    return table


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
