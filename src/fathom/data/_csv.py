"""Reading a text table: by polars' own parser wherever that is safe, after mending where it is not.

    1. sniff: encoding, delimiter and header from the first bytes
    2. polars reads the file as it is; types come from the first bytes, and where those misled, from all cells
    3. what polars passes over in silence (rows with too few fields, blank lines) is looked for
    4. if anything was wrong, the file is mended into a temporary copy, and that is read

A file larger than `limit` is turned into a temporary Arrow file that is mapped into memory.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fathom.core.errors import DataError
from fathom.data._clean import MISSING, clean
from fathom.data._mend import Mended, mend
from fathom.data._names import tidy
from fathom.data._sniff import HEAD, Dialect, encoding_of, sniff
from fathom.data._spill import spill
from fathom.data._table import SetAside, Table

CHUNK = 1 << 23


def read_csv(path: Path, origin: str, limit: int, text: Collection[str] = ()) -> Table:
    """Return the table of a CSV, TSV or other delimited file.

    Args:
        origin: what messages call it.
        limit: bytes beyond which the table is not held in memory but mapped from a temporary file.
        text: names of columns that stay text, whatever their cells look like.

    Raises:
        DataError: it is empty, not text, has no rows, or most of its rows are broken.
    """
    dialect = sniff(path, origin)
    names, notes = tidy(dialect.names or [f"column_{i + 1}" for i in range(dialect.width)])
    texts = {place for place, name in enumerate(names) if name in text}
    frame = _as_it_is(path, dialect, limit, texts) if dialect.plain else None
    mended = Mended()
    if frame is None:
        frame, mended, dialect = _after_mending(path, dialect, origin, limit, texts)
    if not len(frame):
        raise DataError(f"'{origin}' has a header but no rows.")
    frame, more = clean(frame)
    frame.columns = names
    if mended.blank:
        more.append(f"{mended.blank:,} blank lines are skipped.")
    # Columns are separated by semicolons where the comma is the decimal sign.
    decimal = "," if dialect.delimiter == ";" else "."
    return Table(
        frame, origin, set_aside=tuple(mended.set_aside), notes=(*dialect.notes, *notes, *more), decimal=decimal
    )


def _as_it_is(path: Path, dialect: Dialect, limit: int, texts: Collection[int]) -> pl.DataFrame | None:
    """Return what polars makes of the file, or None if that cannot be trusted."""
    schema = _schema(path, dialect)
    frame = None if schema is None else _by_types(path, dialect, schema, limit, texts)
    if frame is None or frame.width != dialect.width or _short_rows(path, dialect, frame):
        return None
    return frame


def _after_mending(
    path: Path, dialect: Dialect, origin: str, limit: int, texts: Collection[int]
) -> tuple[pl.DataFrame, Mended, Dialect]:
    """Mend the file into a temporary copy and read that."""
    if dialect.encoding in ("utf-8", "cp1252", "latin-1"):
        with path.open("rb") as file:
            encoding = encoding_of(iter(lambda: file.read(CHUNK), b"")) or dialect.encoding
        if encoding not in (dialect.encoding, "utf-8"):
            words = {"cp1252": "Windows-1252"}.get(encoding, "Latin-1")
            dialect = replace(dialect, encoding=encoding, notes=(*dialect.notes, f"It is read as {words}."))
    with tempfile.TemporaryDirectory(prefix="fathom-") as folder:
        copy = Path(folder) / "mended.csv"
        mended = mend(path, dialect, copy, origin)
        _check_most(mended, origin)
        if not mended.rows:
            return pl.DataFrame({str(i): [] for i in range(dialect.width)}), mended, dialect
        plain = replace(dialect, names=(), above=0)
        frame = _by_types(copy, plain, _schema(copy, plain) or {}, limit, texts)
        assert frame is not None and frame.width == dialect.width and len(frame) == mended.rows
        return frame, mended, dialect


def _by_types(
    path: Path, dialect: Dialect, schema: dict[str, pl.DataType], limit: int, texts: Collection[int]
) -> pl.DataFrame | None:
    """Parse with the types that the first rows suggest, as far as later rows bear them out; None: it is malformed.

    Args:
        texts: places of columns that stay text.
    """
    schema = {n: dtype for i, (n, dtype) in enumerate(schema.items()) if dtype != pl.String and i not in texts}
    whole = [name for name, dtype in schema.items() if dtype == pl.Int64]
    with ThreadPoolExecutor(1) as beside:
        coded = beside.submit(_has_codes, path, dialect) if whole else None
        frame = _parse(path, dialect, schema, limit)
    if frame is None and schema:  # a later cell is not of its type
        frame = _parse(path, dialect, {}, limit)
    elif coded is not None and coded.result():
        codes = _with_codes(path, dialect, whole)
        if codes:
            frame = _parse(path, dialect, {n: dtype for n, dtype in schema.items() if n not in codes}, limit)
    return None if frame is None else _typed(frame, texts)


def _check_most(mended: Mended, origin: str) -> None:
    broken: list[SetAside] = mended.set_aside
    if len(broken) > mended.rows:
        raise DataError(
            f"Most rows of '{origin}' are broken ({len(broken):,} of {len(broken) + mended.rows:,}); the first is line "
            f"{broken[0].row}: {broken[0].reason}."
        )


def _schema(path: Path, dialect: Dialect) -> dict[str, pl.DataType] | None:
    """Return the columns, as polars names them, and the types that the first rows suggest; None: they do not parse."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        if file.read(1) and b"\n" in head:
            head = head[: head.rindex(b"\n") + 1]
    texts = _parse(io.BytesIO(head), dialect, {})
    if texts is None or texts.width != dialect.width:
        return None
    return {s.name: _type_of(s) if not s.is_in(MISSING).any() else pl.String() for s in texts.get_columns()}


def _type_of(texts: pl.Series) -> pl.DataType:
    """Return the type that fits all texts; codes with leading zeros and whole numbers beyond 64 bits are text."""
    texts = texts.drop_nulls()
    if not len(texts) or texts.str.contains(r"^0[0-9]").any():
        return pl.String()
    if texts.str.contains(r"^[+-]?[0-9]{1,18}$").all():
        return pl.Int64()
    if texts.str.contains(r"^[+-]?[0-9]{19,}$").any():
        return pl.String()
    if texts.str.contains(r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$").all():
        return pl.Float64()
    return pl.Boolean() if texts.str.contains(r"^(?i:true|false)$").all() else pl.String()


def _has_codes(path: Path, dialect: Dialect) -> bool:
    """Whether any field begins with a zero and another digit; of a code such as 07030, a number would lose the zero."""
    zero, delimiter, newline, quote = f'0{dialect.delimiter}\n"'.encode()
    rest = b"\n"
    with path.open("rb") as file:
        while chunk := file.read(1 << 18):  # what fits into a processor's cache
            data = np.frombuffer(rest + chunk, dtype=np.uint8)
            before = data[:-2]
            first = (before == delimiter) | (before == newline)
            if b'"' in chunk or b'"' in rest:
                first |= before == quote
            first &= data[1:-1] == zero
            following = data[np.flatnonzero(first) + 2]
            if (following - np.uint8(zero) < 10).any():  # below "0", bytes wrap around
                return True
            rest = chunk[-2:]
    return False


def _with_codes(path: Path, dialect: Dialect, columns: Collection[str]) -> list[str]:
    """Return those of the columns with a cell that begins with a zero and another digit."""
    table = pl.scan_csv(path, **_how(dialect, {}))
    found = table.select(pl.col(columns).str.contains(r"^\s*0[0-9]").any()).collect(engine="streaming")
    return [name for name, some in found.row(0, named=True).items() if some]


def _how(dialect: Dialect, schema: dict[str, pl.DataType]) -> dict[str, Any]:
    """Return polars' options; columns without a type in `schema` are text."""
    return {
        "separator": dialect.delimiter,
        "has_header": False,  # a header is passed over, so that columns have plain names while they are worked on
        "skip_rows": int(bool(dialect.names)),
        "schema_overrides": schema,
        "infer_schema": False,
        "glob": False,
    }


def _parse(
    source: Path | io.BytesIO, dialect: Dialect, schema: dict[str, pl.DataType], limit: int = 0
) -> pl.DataFrame | None:
    """Let polars parse the table; columns without a type in `schema` are text.

    None: it is malformed, or a cell does not fit its type.
    """
    how = _how(dialect, schema)
    try:
        if isinstance(source, Path) and source.stat().st_size > limit:
            return spill(pl.scan_csv(source, **how))
        return pl.read_csv(source, **how)
    except pl.exceptions.PolarsError:
        return None


def _typed(frame: pl.DataFrame, texts: Collection[int]) -> pl.DataFrame:
    """Turn text columns, but for those at `texts`, into numbers or truths, if they hold such and words for missing."""
    others = [s.name for i, s in enumerate(frame.get_columns()) if s.dtype == pl.String and i not in texts]
    likely = [name for name in others if _type_of(_known(frame[name].head(HEAD // 64))) != pl.String]
    columns = []
    for name in likely:
        values = _known(frame[name])
        for dtype in (pl.Int64, pl.Float64, pl.Boolean):
            found = _cast(values, dtype)
            if found.null_count() == values.null_count() and _type_of(values) != pl.String:
                columns.append(found)
                break
    return frame.with_columns(columns)


def _known(texts: pl.Series) -> pl.Series:
    """The texts stripped, words for missing as nulls."""
    column = pl.col(texts.name).str.strip_chars()
    return texts.to_frame().select(pl.when(~column.is_in(MISSING)).then(column)).to_series()


def _cast(texts: pl.Series, dtype: type[pl.DataType]) -> pl.Series:
    if dtype == pl.Boolean:
        words = {"true": True, "false": False}
        return texts.str.to_lowercase().replace_strict(words, default=None, return_dtype=pl.Boolean)
    return texts.cast(dtype, strict=False)


def _short_rows(path: Path, dialect: Dialect, frame: pl.DataFrame) -> bool:
    """Whether rows may have too few fields, or be blank: polars fills them with nulls and says nothing.

    Such a row has no value in the last column. Rows with too many fields are an error to polars, so if there are as
    many delimiters as whole rows have, every row is whole; with quotes in the file one cannot tell so simply.
    """
    last = frame[:, -1]
    if frame.width == 1 or not last.null_count():
        return False
    empty = frame.filter(last.is_null()).select(pl.all_horizontal(pl.all().is_null()).any())
    if empty.item():
        return True
    delimiters = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            if b'"' in chunk:
                return True
            delimiters += chunk.count(dialect.delimiter.encode())
    return delimiters != (dialect.width - 1) * (len(frame) + bool(dialect.names))
