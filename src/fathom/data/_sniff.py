"""What a text table looks like, told from its first bytes: encoding, delimiter, header."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fathom.core.errors import DataError
from fathom.data._clean import MISSING
from fathom.data._forms import NUMBER

HEAD = 1 << 18  # bytes that are looked at
DELIMITERS = (",", ";", "\t", "|")
NO_DELIMITER = "\x1f"  # stands in no text: of a table with one column
REPEATED = 5  # rows with equally many fields under a header of one name are no accident of their texts
NUMERIC = re.compile("|".join(NUMBER.values()))
YEAR = re.compile(r"^(1[89]|20)[0-9]{2}$")
BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
BINARY = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"PK\x03\x04": "a ZIP archive or an Excel workbook; save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV",
    b"%PDF": "a PDF",
    b"PAR1": "a Parquet file",
    b"SQLite": "an SQLite database",
}


@dataclass(frozen=True)
class Dialect:
    """How a text table is written.

    Attributes:
        encoding: as Python names it.
        delimiter: one character.
        names: of the columns, as they stand in the file; empty where it has no header.
        width: the number of columns.
        above: lines above the header that are no part of the table.
        plain: whether polars can read it as it is.
        notes: sentences for the user.
    """

    encoding: str
    delimiter: str
    names: tuple[str, ...]
    width: int
    above: int = 0
    plain: bool = True
    notes: tuple[str, ...] = ()


def sniff(path: Path, origin: str) -> Dialect:
    """Return how the file is written.

    Raises:
        DataError: it is empty, or not text.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
        whole = not file.read(1)
    if not head.strip():
        raise DataError(f"'{origin}' is empty.")
    encoding = encoding_of([head], whole)
    if encoding is None:
        what = next((name for start, name in BINARY.items() if head.startswith(start)), "binary data")
        raise DataError(f"'{origin}' is not a text table: it holds {what}.")
    text = head.decode(encoding, errors="replace").removeprefix("\ufeff")
    mac = "\r" in text and "\n" not in text
    text = re.sub("\r\n?", "\n", text)
    if not whole and "\n" in text:
        text = text[: text.rindex("\n") + 1]
    above, told = 0, None
    if match := re.match(r"sep=(.)\n", text, re.IGNORECASE):  # Excel's own hint
        above, told, text = 1, match[1], text[match.end() :]
    blank = len(text) - len(text.lstrip("\n"))
    text, above = text[blank:], above + blank
    delimiter, records = _delimiter(text, [told] if told else [*DELIMITERS])
    if not told and _is_one_column(records):
        delimiter, records = NO_DELIMITER, _parse(text, NO_DELIMITER)
    return _dialect(encoding, delimiter, records, above, mac, text)


def encoding_of(chunks: Iterable[bytes], whole: bool = True) -> str | None:
    """Return the encoding of a text by its bytes, or None where it is no text.

    Bytes that are not UTF-8 are read as Windows-1252, or Latin-1 where that has holes, if they outnumber the letters
    that are; else a few are damaged. Where the chunks are not the whole, their end may lie within a letter.
    """
    good = bad = 0
    holes = False
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a letter may lie across two chunks
    for place, chunk in enumerate(chunks):
        if place == 0:
            for bom, name in BOMS.items():
                if chunk.startswith(bom):
                    return name
            if b"\0" in chunk:
                return _utf16(chunk)
        text = decoder.decode(chunk)
        if not text.isascii():
            lost = text.count("\ufffd")
            good += sum(not c.isascii() for c in text) - lost
            bad += lost
            holes = holes or any(byte in chunk for byte in b"\x81\x8d\x8f\x90\x9d")
    bad += whole and len(decoder.decode(b"", final=True))
    if bad <= good:
        return "utf-8"
    return "latin-1" if holes else "cp1252"


def _utf16(chunk: bytes) -> str | None:
    """UTF-16 without a mark has a zero in nearly every other byte."""
    even, odd = chunk[::2].count(0), chunk[1::2].count(0)
    if min(even, odd) == 0 and max(even, odd) > len(chunk) / 4:
        return "utf-16-be" if even else "utf-16-le"
    return None


def _delimiter(text: str, candidates: Sequence[str]) -> tuple[str, list[list[str]]]:
    """Return the delimiter by which most rows have as many fields as the header, and the first records."""
    best: tuple[float, int] = (-1.0, 0)
    chosen, records = ",", [[""]]
    for delimiter in candidates:
        found = _parse(text, delimiter)
        header = len(found[0])
        width, times = Counter(len(r) for r in found[1:] or found).most_common(1)[0]
        share = times / len(found[1:] or found)
        if header == 1 or width not in (header, header + 1) or (width > header and share < 1):
            share = 0.0
        if (share, header) > best:
            best, chosen, records = (share, header), delimiter, found
    return chosen, records


def _is_one_column(records: Sequence[Sequence[str]]) -> bool:
    """Whether a header without any delimiter names one column, in whose texts a delimiter is a mere comma.

    It may also be a title above a wider table: then all rows have equally many fields.
    """
    widths = {len(record) for record in records[1:]}
    return len(records[0]) == 1 and not (len(records) > REPEATED and len(widths) == 1 and widths.pop() > 2)


def _parse(text: str, delimiter: str) -> list[list[str]]:
    """Return up to 200 records; what cannot be parsed ends them."""
    records: list[list[str]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        while len(records) < 200:
            record = next(reader)
            if record:
                records.append(record)
    except (StopIteration, csv.Error):
        pass
    return records or [text.split("\n", 1)[0].split(delimiter)]


def _dialect(encoding: str, delimiter: str, records: list[list[str]], above: int, mac: bool, text: str) -> Dialect:
    first, rest = records[0], records[1:]
    notes = []
    if encoding not in ("utf-8", "utf-8-sig"):
        words = {"cp1252": "Windows-1252", "latin-1": "Latin-1"}.get(encoding, "UTF-16")
        notes.append(f"It is read as {words}.")
    if delimiter == NO_DELIMITER:
        if any(sign in text for sign in DELIMITERS):
            notes.append("Its header has one name, so it is read as one column.")
    elif delimiter != ",":
        shown = {"\t": "tabs", ";": "semicolons", "|": "bars"}.get(delimiter, f"'{delimiter}'")
        notes.append(f"Columns are separated by {shown}.")
    names, width = tuple(first), len(first)
    if _is_data(records):
        names = ()
        notes.append("It has no header; columns are called column_1, column_2, and so on.")
    elif rest and all(len(r) == width + 1 for r in rest):
        if all(r[-1] == "" for r in rest):
            notes.append("Every row ends with a delimiter too many, which is ignored.")
        else:
            names, width = ("row", *names), width + 1
            notes.append("The header has one name less than the rows have fields; the first field is called 'row'.")
    spaced = re.search(re.escape(delimiter) + r'[ \t]+"', text) is not None
    uneven = (names != tuple(first) and names != ()) or any("delimiter too many" in note for note in notes)
    plain = encoding in ("utf-8", "utf-8-sig") and not (above or mac or spaced or uneven)
    return Dialect(encoding, delimiter, names, width, above, plain, tuple(notes))


def _is_data(records: Sequence[Sequence[str]]) -> bool:
    """Whether the first record is already data, judged by what stands below each of its cells.

    A word over nothing but numbers is a name, and so is the empty cell over pandas' index. Where there is none, a
    number over nothing but numbers is data, and so are words that come again below.
    """
    first, *rest = [[cell.strip() for cell in record] for record in records]
    rows = [row for row in rest if len(row) == len(first)]
    if rest and not rows:
        return False
    others = [row for row in rows if row != first]  # where files were joined, the header comes again
    below = [[cell for cell in column if cell not in MISSING] for column in zip(*others, strict=True)]
    columns = list(zip(first, below or [[]] * len(first), strict=True))
    words = [(cell, column) for cell, column in columns if cell not in MISSING and not NUMERIC.match(cell)]
    index = columns[:1] if first[0] == "" else []
    if any(column and all(map(NUMERIC.match, column)) for _, column in words + index):
        return False
    return _are_data([c for c in columns if NUMERIC.match(c[0])]) or sum(c.count(cell) for cell, c in words) > 1


def _are_data(numbers: Sequence[tuple[str, Sequence[str]]]) -> bool:
    """Whether one of the numbers in a first record, each with the column below it, is data.

    0, 1, 2, … in a row are names; a year is data over years only.
    """
    whole = [int(cell) for cell, _ in numbers if re.match(r"^[0-9]{1,9}$", cell)]
    if len(whole) > 1 and whole in (list(range(len(whole))), list(range(1, 1 + max(3, len(whole))))):
        return False
    return any(
        bool(column) and all(map(YEAR.match, column)) if YEAR.match(cell) else all(map(NUMERIC.match, column))
        for cell, column in numbers
    )
