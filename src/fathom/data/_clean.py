"""From whatever a reader made to the few types that later steps know."""

from __future__ import annotations

import polars as pl

from fathom.data import _forms

WORDS = ("na", "n/a", "#n/a", "nan", "null", "<na>", "nat", "?")
MISSING = sorted({"", "NaN", "NaT", *(write(word) for word in WORDS for write in (str.lower, str.upper, str.title))})
LONGEST = max(map(len, MISSING))
EXACT = 100_000  # rows up to which every sort of white space is looked for in every cell


def clean(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Return the frame with stripped text, nulls for what is missing and plain types, and what there is to say.

    Left are Boolean, integers up to Int64, Float64, String, Datetime("us") without a time zone, Binary, and of
    structs only an image's {bytes, path}, where some rows have bytes and others a path. Columns that nothing can be
    learned from (lists, objects) are left out, which is said.
    """
    frame = _flat(frame)
    odd = {name: dtype for name, dtype in frame.schema.items() if _is_odd(dtype)}
    notes = [
        f"Column '{name}' holds {_words(dtype)}, which cannot be learned from; it is left out."
        for name, dtype in odd.items()
    ]
    frame = frame.drop(list(odd))
    plain = {name: _plain(name, dtype) for name, dtype in frame.schema.items()}
    frame = frame.with_columns(change for change in plain.values() if change is not None)
    floats = frame.select(pl.selectors.float().is_finite().all())  # none where there is no such column
    whole = floats.row(0, named=True) if floats.width else {}
    frame = frame.with_columns(_forms.finite(frame[name]) for name, finite in whole.items() if not finite)
    return clean_text(frame), notes


def clean_text(frame: pl.DataFrame) -> pl.DataFrame:
    """Strip texts and turn words for "missing" into nulls, in those columns that have any: asking is cheaper."""
    texts = [name for name, dtype in frame.schema.items() if dtype == pl.String]
    if not texts or not len(frame):
        return frame
    frame = frame.with_columns(pl.col(name).str.strip_chars() for name in _padded(frame, texts))
    shortest = frame.select(pl.col(texts).str.len_bytes().min()).row(0, named=True)
    short = [name for name, length in shortest.items() if length is not None and length <= LONGEST]
    some = frame.select(pl.col(short).is_in(MISSING).any()).row(0, named=True) if short else {}
    gaps = [name for name, any_is in some.items() if any_is]
    return frame.with_columns(pl.when(~pl.col(name).is_in(MISSING)).then(pl.col(name)) for name in gaps)


def _padded(frame: pl.DataFrame, texts: list[str]) -> list[str]:
    """Return the columns in which any text begins or ends with white space; beyond `EXACT` rows most are asked for
    spaces only."""
    some = frame.select(texts) if len(frame) <= EXACT else frame.select(texts).gather_every(len(frame) // 20_000)
    found = some.select(pl.all().str.contains(r"^\s|\s$").any()).row(0, named=True)
    if len(some) < len(frame):
        spaced = (pl.col(texts) < "!").any() | pl.col(texts).str.ends_with(" ").any()
        found = {name: found[name] or more for name, more in frame.select(spaced).row(0, named=True).items()}
    return [name for name, any_is in found.items() if any_is]


def is_image(dtype: pl.DataType) -> bool:
    """Whether a column follows the Hugging Face convention for images: a struct of bytes and path."""
    return isinstance(dtype, pl.Struct) and {field.name for field in dtype.fields} == {"bytes", "path"}


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with the members of structs as columns `a.b`, and images as bytes or paths."""
    while nested := [n for n, dtype in frame.schema.items() if isinstance(dtype, pl.Struct) and not is_image(dtype)]:
        columns = []
        for column in frame.get_columns():
            if column.name not in nested:
                columns.append(column)
            else:
                members = column.struct.unnest().get_columns()
                columns += [m.alias(f"{column.name}.{m.name}") for m in members]
        taken: dict[str, int] = {}
        for place, column in enumerate(columns):
            taken[column.name] = taken.get(column.name, 0) + 1
            if taken[column.name] > 1:
                columns[place] = column.alias(f"{column.name}_{taken[column.name]}")
        frame = pl.DataFrame(columns)
    return frame.with_columns(_image(column) for column in frame.get_columns() if is_image(column.dtype))


def _image(column: pl.Series) -> pl.Series:
    """Return the bytes of embedded images, or their paths where none has bytes; where some have, leave both."""
    data, path = column.struct.field("bytes"), column.struct.field("path")
    if data.null_count() == len(data):
        return path.alias(column.name)
    return column if (data.is_null() & path.is_not_null()).any() else data.alias(column.name)


def _is_odd(dtype: pl.DataType) -> bool:
    return isinstance(dtype, (pl.List, pl.Array)) or dtype == pl.Object


def _words(dtype: pl.DataType) -> str:
    return "lists" if isinstance(dtype, (pl.List, pl.Array)) else "Python objects"


def _plain(name: str, dtype: pl.DataType) -> pl.Expr | None:
    """How a column of a rarer type becomes one of the few, or None if it is one of them already."""
    column = pl.col(name)
    if isinstance(dtype, pl.Datetime):
        return column.dt.replace_time_zone(None).cast(pl.Datetime("us")) if dtype != pl.Datetime("us") else None
    if dtype == pl.Date:
        return column.cast(pl.Datetime("us"))
    if dtype == pl.Duration:
        return column.dt.total_microseconds() / 1e6
    if dtype.is_decimal() or (dtype.is_float() and dtype != pl.Float64) or dtype in (pl.Int128, pl.UInt64):
        return column.cast(pl.Float64)
    if isinstance(dtype, (pl.Categorical, pl.Enum)) or dtype in (pl.Null, pl.Time):
        return column.cast(pl.String)
    return None


def clean_lazily(table: pl.LazyFrame) -> pl.LazyFrame:
    """The costly part of `clean` for a table that is streamed: `clean` then finds nothing to change in its cells."""
    text, number = pl.selectors.string(), pl.selectors.float()
    stripped = text.str.strip_chars()
    return table.with_columns(
        pl.when(~stripped.is_in(MISSING)).then(stripped).name.keep(),
        pl.when(number.is_finite()).then(number).name.keep(),
    )
