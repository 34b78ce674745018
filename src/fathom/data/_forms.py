"""How numbers, truths and dates are written: found in a sample of texts, used to read all of them.

    decimal_sign, date_format, is_boolean    a sample of texts -> how they are written, or None if it is something else
    numbers, dates                           texts, and how they are written -> values; what does not fit is null

Everything works on whole columns.
"""

from __future__ import annotations

import polars as pl

ENOUGH = 0.95  # of the cells must be of a form; the rest count as missing and are mentioned
DASHES = ["-", "--", "–", "—"]  # missing among numbers, dates and truths; elsewhere a value ("+" and "-")

TRUE = ("true", "yes", "y", "t", "on", "1")
FALSE = ("false", "no", "n", "f", "off", "0")

# Numbers are matched once signs of currency, percent, spaces and apostrophes are taken away. No thousands begin with
# a zero: "0,123" is little.
DECORATION = r"[\s\u{00a0}\u{202f}'’$€£¥₹%]"
NUMBER = {
    ".": r"^[+-]?([1-9][0-9]{0,2}(,[0-9]{3})+(\.[0-9]*)?|[0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$",
    ",": r"^[+-]?([1-9][0-9]{0,2}(\.[0-9]{3})+(,[0-9]*)?|[0-9]+,?[0-9]*|,[0-9]+)([eE][+-]?[0-9]{1,3})?$",
}
NOT_FINITE = r"(?i)^[+-]?(inf|infinity|nan)$"

ISO = ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M")
DAYS = (  # years of two digits first: "%Y" also takes the 20 of 31.1.20, for the year 20
    *("%m/%d/%y", "%m.%d.%y", "%m-%d-%y", "%m/%d/%Y", "%m.%d.%Y", "%m-%d-%Y"),
    *("%d/%m/%y", "%d.%m.%y", "%d-%m-%y", "%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y"),
    *("%Y/%m/%d", "%Y.%m.%d", "%Y%m%d"),
    *("%d %b %y", "%d %b %Y", "%d-%b-%y", "%d-%b-%Y", "%b %d, %y", "%b %d, %Y", "%b %d %y", "%b %d %Y"),
)
CLOCKS = ("", " %H:%M:%S", " %H:%M", " %I:%M:%S %p", " %I:%M %p")


def decimal_sign(texts: pl.Series, usual: str = ".") -> str | None:
    """Return the decimal sign of these numbers, "." or ",", or None if they are not numbers.

    Where every cell fits both, a comma is what is usual in their table: "1,234" is a thousand where the decimal sign
    is the point. "1.234" is little.
    """
    few = _bare(a_few(texts)).drop_nulls()
    if len(few) and max(_fits(few, sign) for sign in ".,") < 0.5:
        return None
    bare = _bare(texts).drop_nulls()
    bare = bare.filter(~bare.str.contains(NOT_FINITE))
    if not len(bare):
        return None
    point, comma = (_fits(bare, sign) for sign in ".,")
    if max(point, comma) < ENOUGH:
        return None
    if comma == point and bare.str.contains(",", literal=True).any():
        return usual
    return "," if comma > point else "."


def numbers(texts: pl.Series, decimal: str = ".") -> pl.Series:
    """Return Float64, finite."""
    if decimal == ".":
        found = texts.cast(pl.Float64, strict=False)
        if found.null_count() == texts.null_count():
            return finite(found)
    column, group = pl.col(texts.name), "," if decimal == "." else "."
    digits = column.str.replace_all(group, "", literal=True).str.replace(decimal, ".", literal=True)
    fits = pl.when(column.str.contains(NUMBER[decimal])).then(digits.cast(pl.Float64, strict=False))
    return finite(_bare(texts).to_frame().select(fits).to_series())


def finite(values: pl.Series) -> pl.Series:
    """Return floats with null for infinities and not-a-numbers."""
    if values.is_finite().all():
        return values
    column = pl.col(values.name)
    return values.to_frame().select(pl.when(column.is_finite()).then(column)).to_series()


def a_few(texts: pl.Series) -> pl.Series:
    """Return some hundred of many texts, evenly spread: what these are not, all are not."""
    return texts.gather_every(max(1, len(texts) // 200))


def is_boolean(texts: pl.Series) -> bool:
    """Whether these texts are a yes and its no, in any case, and nothing else."""
    if not a_few(texts).str.to_lowercase().is_in([*TRUE, *FALSE, *DASHES]).all():
        return False
    words = set(texts.str.to_lowercase().unique().drop_nulls().to_list()) - set(DASHES)
    return any(words == {yes, no} for yes, no in zip(TRUE, FALSE, strict=True))


def date_format(texts: pl.Series) -> tuple[str, bool] | None:
    """Return (format, whether day and month could be swapped) of texts that are dates, else None.

    Day-first or month-first is decided by the data. Where both fit every cell, "/" is read month first and "." and
    "-" day first, as is customary where they are used.
    """
    texts = texts.filter(~texts.is_in(DASHES)).drop_nulls().unique(maintain_order=True)
    if not len(texts) or not _could_be_dates(texts):
        return None
    few = a_few(texts)
    iso = max(ISO, key=lambda form: _share(few, form))
    if _share(few, iso) > 0 and 1 - dates(texts, iso).null_count() / len(texts) >= ENOUGH:
        return iso, False
    forms = [day + clock for day in DAYS for clock in CLOCKS]
    shares = {form: _share(texts, form) for form in forms if _share(few, form) > 0.5}
    best = max(shares, key=lambda form: shares[form], default="")
    if not best or shares[best] < ENOUGH:
        return None
    swapped = best.replace("%m", "%?").replace("%d", "%m").replace("%?", "%d")
    ambiguous = swapped != best and shares.get(swapped) == shares[best]
    return (swapped if ambiguous and best[2] != "/" else best), ambiguous


def dates(texts: pl.Series, format: str) -> pl.Series:
    """Return Datetime("us"), as the clock on the wall shows it: an offset from Greenwich is not applied."""
    found = _parse(texts, format)
    if format in ISO:  # days without a clock among those with one, and the other way round
        for other in ISO:
            if found.null_count() == texts.null_count():
                break
            left = (found.is_null() & texts.is_not_null()).arg_true()
            found = found.scatter(left, _parse(texts.gather(left), other))
    return found


def _parse(texts: pl.Series, format: str) -> pl.Series:
    if format in ISO and format.endswith("%S") and (texts.str.len_bytes().max() or 0) > 19:  # type: ignore[operator]
        texts = texts.str.head(19)  # fractions and offsets, with which polars is five times as slow, are left unread
    return texts.str.to_datetime(format, strict=False, time_unit="us", cache=False)


def _share(texts: pl.Series, format: str) -> float:
    return 1.0 - _parse(texts, format).null_count() / len(texts)


def _fits(bare: pl.Series, sign: str) -> float:
    """Return the share of texts that are numbers with this decimal sign, or not finite."""
    fits = bare.str.contains(NUMBER[sign]) | bare.str.contains(NOT_FINITE)
    return int(fits.sum()) / len(bare)


def _could_be_dates(texts: pl.Series) -> bool:
    """Cheap: of a date's length, with at least three digits."""
    length = texts.str.len_chars()
    fits = (length >= 6) & (length <= 40) & (texts.str.count_matches("[0-9]") >= 3)
    return int(fits.sum()) >= ENOUGH * len(texts)


def _bare(texts: pl.Series) -> pl.Series:
    """Numbers without currency, percent, spaces and apostrophes; dashes are null."""
    column = pl.col(texts.name)
    bare = texts.str.replace_all(DECORATION, "").to_frame()
    return bare.select(pl.when(~column.is_in(["", *DASHES])).then(column)).to_series()
