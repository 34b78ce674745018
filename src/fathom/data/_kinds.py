"""How the kind of a column is decided.

of_input, of_target    a column -> its kind, with the reason
overruled              the same when the user has named the kind
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import polars as pl

from fathom.core.errors import DataError
from fathom.data import _forms
from fathom.data._dates import date_format

ColumnKind = Literal["number", "boolean", "category", "datetime", "text", "image", "identifier", "constant"]
KINDS: tuple[str, ...] = get_args(ColumnKind)

SAMPLE = 10_000  # rows, evenly spread, on which a kind is decided
FEW = 20  # distinct whole numbers up to which a target is a category
MANY_ROWS = 20  # rows from which on a value of its own in each row makes an identifier
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"BM", b"GIF8", b"II*\x00", b"MM\x00*")
ID_NAME = r"(?i:(^|[\W_])(id|ids|uuid|guid|index|idx|key)$|^(unnamed: ?0|rownames?|row)$)|[a-z]I[Dd]$"
REFERENCE_NAME = r"(?i:(^|[\W_])(id|ids|uuid|guid)$)|[a-z]I[Dd]$"  # of what a row is about: a user, a shop
MOST_REFERRED = 10_000  # things up to which the rows that name them can be learned from
CODE = r"^[A-Za-z0-9_./:+=-]*[0-9][A-Za-z0-9_./:+=-]*$"  # a token, a digest, a number with letters: never a text
FILE_NAME = r"^[^@]*\.[A-Za-z][A-Za-z0-9]{1,4}$"
# No amount, though it is all digits: a telephone number, or digits in groups that are not of three.
NO_AMOUNT = r"^\+[0-9][0-9\s()-]{6,}$|[0-9]{4}\s+[0-9]|[0-9]\s+[0-9]{4}|[0-9]\s+[0-9]{1,2}([^0-9]|$)"


@dataclass(frozen=True)
class Verdict:
    kind: ColumnKind
    why: str
    format: str = ""


def of_input(series: pl.Series, distinct: int, folder: Path | None = None, decimal: str = ".") -> Verdict:
    """Decide the kind of a column to learn from, which has `distinct` different values."""
    missing = series.null_count()
    if missing == len(series):
        return Verdict("constant", "it is empty")
    if distinct == 1 and not missing:
        return Verdict("constant", "every row has the same value")
    if series.dtype == pl.Boolean:
        return Verdict("boolean", "true or false")
    if series.dtype.is_numeric():
        return _numeric(series, distinct)
    if series.dtype.is_temporal():
        return Verdict("datetime", "dates")
    if series.dtype == pl.Binary or isinstance(series.dtype, pl.Struct):
        return _binary(series)
    return _textual(series, distinct, folder, decimal)


def of_target(series: pl.Series, distinct: int, decimal: str = ".") -> Verdict:
    """Decide the kind of a column to predict: a number or a category."""
    if series.dtype == pl.Boolean:
        return Verdict("boolean", "true or false")
    if series.dtype.is_temporal():
        return Verdict("datetime", "dates")
    values, format = series, ""
    if series.dtype == pl.String:
        sign = _decimal_sign(sample(series), decimal)
        if sign is None:
            return _words_of_target(series, distinct)
        values, format = _forms.numbers(series, sign), sign
    elif not series.dtype.is_numeric():
        return _binary(series)
    known = values.drop_nulls()
    whole = known.dtype.is_integer() or bool((known == known.floor()).all())
    if whole and (distinct == 2 or (distinct <= FEW and 4 * distinct <= len(known))):
        return Verdict("category", f"whole numbers with {distinct} different values in {len(known):,} rows")
    why = f"whole numbers with {distinct:,} different values" if whole else "numbers with fractions"
    return Verdict("number", why, format)


def overruled(series: pl.Series, kind: ColumnKind, decimal: str = ".") -> Verdict:
    """Return the kind that the user named, with the format that its texts need.

    Raises:
        DataError: no cell can be read as that kind.
    """
    format = ""
    if series.dtype == pl.String and series.null_count() < len(series):
        texts = sample(series)
        if kind == "number":
            signs = sorted(".,", key=lambda sign: _forms.numbers(texts, sign).null_count())
            format = _forms.decimal_sign(texts, decimal) or signs[0]
            _require(series, _forms.numbers(texts, format), "a number")
        elif kind == "datetime":
            found = date_format(texts)
            format = found[0] if found else _forms.ISO[0]
            _require(series, _forms.dates(texts, format), "a date")
    return Verdict(kind, "as was asked for", format)


def sample(series: pl.Series) -> pl.Series:
    """Return at most `SAMPLE` of the values that are not missing, evenly spread."""
    missing = series.null_count()
    if missing and 2 * missing < len(series) > 4 * SAMPLE:  # drop the missing of a part of them
        series = series.gather_every(len(series) // (2 * SAMPLE))
    known = series.drop_nulls() if missing else series
    return known.gather_every(max(1, -(-len(known) // SAMPLE)))


def _numeric(series: pl.Series, distinct: int) -> Verdict:
    whole = series.dtype.is_integer()
    if whole and distinct == 2 and series.min() == 0 and series.max() == 1:
        return Verdict("boolean", "only 0 and 1")
    if whole and not series.null_count() and len(series) >= MANY_ROWS and distinct >= 0.9 * len(series):
        counted = (series[0] in (0, 1) or _named_like_id(series.name)) and (series.diff().drop_nulls() == 1).all()
        if counted:  # a series of years, too, has one for each row, but does not begin with 1
            return Verdict("identifier", "it numbers the rows")
        if _named_like_id(series.name) and series.n_unique() == len(series):
            return Verdict("identifier", "its name, and a number of its own in each row")
    if not whole:
        whole = all(bool((values == values.floor()).all()) for values in (sample(series), series))
    if whole and (found := _reference(series)) is not None:
        return found
    return Verdict("number", "whole numbers" if whole else "numbers with fractions")


def _reference(series: pl.Series) -> Verdict | None:
    """Decide on numbers that name things, told by the column's own name: their size says nothing."""
    if re.search(REFERENCE_NAME, series.name) is None:
        return None
    known = len(series) - series.null_count()
    distinct = series.n_unique() - bool(series.null_count())
    told = f"{distinct:,} different in {known:,} rows"
    if 2 * distinct > known:
        return Verdict("identifier", f"its name, and few come twice: {told}") if known >= MANY_ROWS else None
    if distinct > MOST_REFERRED:
        return Verdict("identifier", f"its name, and too many to learn of each: {told}")
    return Verdict("category", f"its name says that they name something: {told}")


def _binary(series: pl.Series) -> Verdict:
    if isinstance(series.dtype, pl.Struct):
        return Verdict("image", "embedded images")
    known = sample(series)[:100]
    starts = sum(bytes(value[:4]).startswith(MAGIC) for value in known)
    if starts >= _forms.ENOUGH * len(known):
        return Verdict("image", "embedded images")
    return Verdict("identifier", "bytes that are no image, which cannot be learned from")


def _textual(series: pl.Series, distinct: int, folder: Path | None, decimal: str) -> Verdict:
    texts = sample(series)
    if _ends_as_image(_forms.a_few(texts)) > 0.5 and _ends_as_image(texts) >= _forms.ENOUGH:
        return Verdict("image", _files(texts, folder))
    if _forms.is_boolean(texts):
        return Verdict("boolean", "a word for true and one for false")
    if (sign := _decimal_sign(texts, decimal)) is not None:
        return _numbers_in_text(series, texts, distinct, sign)
    if (found := date_format(texts)) is not None:
        return _dates_in_text(series, texts, *found)
    return _words(series, texts, distinct)


def _ends_as_image(texts: pl.Series) -> float:
    lower = texts.str.to_lowercase()
    return sum(int(lower.str.ends_with(suffix).sum()) for suffix in IMAGES) / len(texts)


def _files(texts: pl.Series, folder: Path | None) -> str:
    if folder is None:
        return "names of image files"
    there = sum((folder / name).is_file() for name in texts.head(20))
    return "paths of image files" + ("" if there else f", none of which is in '{folder}'")


def _numbers_in_text(series: pl.Series, texts: pl.Series, distinct: int, sign: str) -> Verdict:
    if texts.str.contains(r"^0[0-9]+$").any() and texts.str.len_chars().n_unique() == 1:
        if distinct >= 0.9 * len(series) >= MANY_ROWS:
            return Verdict("identifier", "codes that begin with zeros, one for each row")
        return Verdict("category", "codes that begin with zeros")
    unique = len(series) >= MANY_ROWS and distinct >= 0.9 * len(series) and series.n_unique() == len(series)
    if unique and (_named_like_id(series.name) or (texts.str.len_chars().min() or 0) > 15):  # type: ignore[operator]
        return Verdict("identifier", "a number of its own in each row")
    if not len(texts.filter(texts.str.contains("[^0-9]"))) and (found := _reference(series)) is not None:
        return found
    how = "numbers in text" + (" with a decimal comma" if sign == "," else "")
    return Verdict("number", how + _odd_ones(series, texts, _forms.numbers(texts, sign), "numbers"), sign)


def _dates_in_text(series: pl.Series, texts: pl.Series, format: str, ambiguous: bool) -> Verdict:
    if "%d" not in format:
        return Verdict("datetime", "months" + _odd_ones(series, texts, _forms.dates(texts, format), "months"), format)
    order = "day" if format.startswith("%d") else "month"
    how = f"dates; day and month could be either, read as {order} first" if ambiguous else "dates"
    return Verdict("datetime", how + _odd_ones(series, texts, _forms.dates(texts, format), "dates"), format)


def _words(series: pl.Series, texts: pl.Series, distinct: int) -> Verdict:
    """Free text says something new in most rows and has several words; a class comes again and again."""
    words = float(texts.str.count_matches(r"\S+").mean() or 0)  # type: ignore[arg-type]
    length = float(texts.str.len_chars().mean() or 0)  # type: ignore[arg-type]
    known = len(series) - series.null_count()
    varied = distinct / known
    told = f"{distinct:,} different in {known:,} rows"
    if varied >= 0.9 and _share(texts, FILE_NAME) >= _forms.ENOUGH:
        return Verdict("identifier", f"names of files: {told}")
    coded = _share(texts, CODE) >= _forms.ENOUGH
    if not coded and texts.str.contains(r"\p{L}").any():
        long = words >= 3 or length >= 30
        if (long and varied > 0.2 and distinct > FEW) or (words >= 2 and varied > 0.5):
            return Verdict("text", f"texts of {words:.0f} words on average, {told}")
    if known >= MANY_ROWS and varied >= 0.9 and (coded or varied > 0.99 or _named_like_id(series.name)):
        return Verdict("identifier", f"hardly any value comes twice: {told}")
    return Verdict("category", f"{'codes' if coded else 'words'}: {told}")


def _words_of_target(series: pl.Series, distinct: int) -> Verdict:
    """Free text to be written, where values are too many to be classes."""
    if distinct > FEW and 2 * distinct > len(series) - series.null_count():
        found = _words(series, sample(series), distinct)
        if found.kind == "text":
            return found
    return Verdict("category", f"{distinct:,} classes in words")


def _share(texts: pl.Series, pattern: str) -> float:
    return int(texts.str.contains(pattern).sum()) / len(texts)


def _decimal_sign(texts: pl.Series, usual: str) -> str | None:
    """Return the decimal sign of texts that are amounts, else None."""
    sign = _forms.decimal_sign(texts, usual)
    return sign if sign is not None and _share(texts, NO_AMOUNT) <= 1 - _forms.ENOUGH else None


def _odd_ones(series: pl.Series, texts: pl.Series, values: pl.Series, what: str) -> str:
    """Say which cells are not of the form, if any: they count as missing."""
    odd = texts.filter(values.is_null() & ~texts.is_in(_forms.DASHES) & ~texts.str.contains(_forms.NOT_FINITE))
    if not len(odd):
        return ""
    row = series.index_of(odd[0])
    share = len(odd) / len(texts)
    return f"; some cells ({share:.1%}) are no {what}, such as {odd[0]!r} in row {(row or 0) + 1}, and count as missing"


def _require(series: pl.Series, values: pl.Series, what: str) -> None:
    if values.null_count() == len(values):
        first = sample(series)[0]
        raise DataError(f"Column '{series.name}' was said to hold {what} in each row, but no cell does: {first!r}.")


def _named_like_id(name: str) -> bool:
    return re.search(ID_NAME, name) is not None
