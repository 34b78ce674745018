"""Mending a text table that cannot be read as it is: sound records are copied, broken ones set aside with a reason.

The copy is UTF-8, has the delimiter of the original and no header. A record is broken if it has another number of
fields than the header, a quote that is not closed or closed too early, or bytes that are not of the encoding.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fathom.data._sniff import HEAD, Dialect
from fathom.data._table import SetAside

LONGEST = 1 << 30  # characters of one cell


@dataclass
class Mended:
    rows: int = 0
    blank: int = 0
    set_aside: list[SetAside] = field(default_factory=list)


def mend(path: Path, dialect: Dialect, copy: Path, origin: str) -> Mended:
    """Write the sound records of `path` to `copy`, and return what became of the others."""
    csv.field_size_limit(LONGEST)
    result = Mended()
    errors = "replace" if dialect.encoding.startswith("utf-16") else "surrogateescape"
    newline = None if _ends_in_returns(path, dialect.encoding) else "\n"
    with (
        path.open(encoding=dialect.encoding, errors=errors, newline=newline) as lines,
        copy.open("wb") as file,
    ):
        work = _Records(enumerate(lines, 1), dialect)
        work.skip_header()
        for number, record, reason in work:
            if not reason:
                try:
                    file.write(record.encode("utf-8"))
                    result.rows += 1
                    continue
                except UnicodeEncodeError:
                    reason = "it holds bytes that are no letters in the file's encoding"
            result.set_aside.append(SetAside(where=origin, row=number, column=None, reason=reason))
        result.blank = work.blank
    return result


class _Records:
    """Iterates over (line number, record as it is to be written, reason if it is broken) of a text table."""

    def __init__(self, lines: Iterator[tuple[int, str]], dialect: Dialect) -> None:
        self.lines = lines
        self.waiting: deque[tuple[int, str]] = deque()
        self.delimiter, self.width = dialect.delimiter, dialect.width
        self.above, self.header = dialect.above, bool(dialect.names)
        self.blank = 0

    def skip_header(self) -> None:
        for _ in range(self.above):
            next(self.lines, None)
        if self.header:
            _, line = next(self.lines, (0, ""))
            self._join(line)  # a header may run over several lines

    def __iter__(self) -> Iterator[tuple[int, str, str]]:
        while True:
            number, line = self.waiting.popleft() if self.waiting else next(self.lines, (0, ""))
            if not number:
                return
            bare = line.rstrip("\r\n")
            if not bare.strip() and self.width > 1 and self.delimiter not in bare:
                self.blank += 1
            elif '"' in bare:
                yield (number, *self._quoted(line))
            else:
                yield (number, *self._checked(bare.split(self.delimiter), bare))

    def _checked(self, fields: list[str], record: str | None = None) -> tuple[str, str]:
        """Return (record, reason) of a record whose fields are known."""
        if len(fields) > self.width and not any(fields[self.width :]):
            fields, record = fields[: self.width], None
        if len(fields) != self.width:
            return "", f"it has {len(fields)} field{'s' * (len(fields) != 1)} instead of {self.width}"
        return (self._write(fields) if record is None else record + "\n"), ""

    def _quoted(self, line: str) -> tuple[str, str]:
        """Return (record, reason) of a record that begins with this line and may run over the next."""
        fields, reason = self._parse([line])
        if fields is None and reason == "unclosed":
            taken: list[tuple[int, str]] = []
            following = self._join(line, taken)
            fields, reason = self._parse([line, *following])
            if fields is None or len(fields) != self.width:
                self.waiting.extendleft(reversed(taken))
                return "", "a quote in it is not closed"
        if fields is None:
            return "", "a quote in it is followed by something other than the delimiter"
        return self._checked(fields)

    def _join(self, line: str, taken: list[tuple[int, str]] | None = None) -> list[str]:
        """Take the lines after `line` up to the one that closes its quote."""
        joined: list[str] = []
        open_quote = line.count('"') % 2
        while open_quote:
            number, following = self.waiting.popleft() if self.waiting else next(self.lines, (0, ""))
            if not number:
                break
            if taken is not None:
                taken.append((number, following))
            joined.append(following)
            open_quote ^= following.count('"') % 2
        return joined

    def _parse(self, lines: list[str]) -> tuple[list[str] | None, str]:
        try:
            reader = csv.reader(lines, delimiter=self.delimiter, strict=True, skipinitialspace=True)
            records = list(reader)
        except csv.Error as error:
            return None, "unclosed" if "unexpected end" in str(error) else "broken"
        return (records[0], "") if len(records) == 1 else (None, "broken")

    def _write(self, fields: list[str]) -> str:
        text = io.StringIO()
        csv.writer(text, delimiter=self.delimiter, lineterminator="\n").writerow(fields)
        return text.getvalue()


def _ends_in_returns(path: Path, encoding: str) -> bool:
    """Whether lines end in a carriage return alone, as they did on old Macs."""
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        start = file.read(HEAD)
    return "\r" in start and "\n" not in start
