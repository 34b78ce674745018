"""Whatever a table holds, reading it ends in rows and a list of what was set aside, or in one clear error."""

import csv
import io
import re
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fathom.core.errors import FathomError
from fathom.data._columns import infer
from fathom.data._kinds import KINDS
from fathom.data._source import read

QUIET = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
NUMBERS = ["-", "1", "0", "1.5", "3,5", "1.234,5", "$1,200.00", "12%", "1e400", "inf", "00501", "9" * 23]
DATES = ["2020-01-31", "31/12/2020", "12/31/2020", "2020-01-31T10:00:00Z"]
OTHERS = [
    "",
    "NA",
    "?",
    "nan",
    "true",
    "No",
    "a",
    "  a ",
    "é",
    "日本語",
    "x.png",
    "a text of several words",
    "^a$",
    "*",
]
WORDS = st.sampled_from([*NUMBERS, *DATES, *OTHERS, "\u00a0", "\u2028"])
LETTERS = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\n\r\0\x1a\x85"), max_size=8)
CELLS = st.one_of(WORDS, LETTERS)


def blank_lines(table):
    found = [re.match(r"([\d,]+) blank lines", note) for note in table.notes]
    return sum(int(match[1].replace(",", "")) for match in found if match)


def written(rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_MINIMAL).writerows(rows)
    return text.getvalue()


def read_bytes(data, **options):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_bytes(data)
        return read(path, **options)


def check(table):
    """The frame is what later steps rely on, and every column gets a kind."""
    names = table.frame.columns
    assert len(set(names)) == len(names) and all(name == name.strip() and name for name in names)
    for series in table.frame.get_columns():
        if series.dtype.is_float():
            assert series.is_finite().all()
        if series.dtype == pl.String:
            assert not series.is_in(["", "NA", "?", "nan"]).any()
            assert (series == series.str.strip_chars()).all()
    columns = infer(table.frame)
    assert [c.name for c in columns] == names and all(c.kind in KINDS and c.why for c in columns)


@QUIET
@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=12))
def test_every_sound_row_is_kept(rows):
    table = read_bytes(written([["id", "näme", "value"], *rows]).encode())
    assert len(table.frame) == len(rows) and not table.set_aside
    check(table)


@QUIET
@given(st.lists(st.lists(CELLS.filter(lambda c: '"' not in c), min_size=1, max_size=5), min_size=1, max_size=12))
def test_ragged_rows_are_set_aside_one_by_one(rows):
    text = "\n".join(["one;two;three", *(";".join(c.replace(";", ",") for c in row) for row in rows)]) + "\n"
    lines = text.split("\n")[1:-1]
    try:
        table = read_bytes(text.encode())
    except FathomError as error:
        assert "Most rows" in str(error) or not any(line.strip() for line in lines)
        return
    assert len(table.frame) + len(table.set_aside) + blank_lines(table) == len(lines)
    for one in table.set_aside:
        assert lines[one.row - 2].count(";") != 2
        assert str(lines[one.row - 2].count(";") + 1) in one.reason
    check(table)


@QUIET
@given(st.lists(st.lists(CELLS, min_size=1, max_size=4), min_size=1, max_size=8))
def test_headers_of_any_letters(rows):
    try:
        table = read_bytes(written(rows).encode())
    except FathomError:
        return
    check(table)


@QUIET
@given(st.one_of(st.binary(max_size=80), st.text(st.sampled_from('ab1,;\t|"\n\r é\0'), max_size=60).map(str.encode)))
def test_any_bytes_are_read_or_refused_in_one_sentence(data):
    try:
        table = read_bytes(data)
    except FathomError as error:
        assert str(error).endswith((".", "?")) and "\n" not in str(error)
        return
    check(table)


@QUIET
@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=2, max_size=12))
def test_a_mapped_table_is_the_same(rows):
    pytest.importorskip("pyarrow")
    data = written([["first", "second"], *rows]).encode()
    assert read_bytes(data, limit=0).frame.equals(read_bytes(data, limit=1 << 30).frame)


MIXED = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    WORDS,
    LETTERS,
    st.binary(max_size=4),
    st.datetimes(),
    st.dates(),
)


@QUIET
@given(st.lists(st.dictionaries(st.one_of(LETTERS, WORDS), MIXED, max_size=4), max_size=8))
def test_rows_of_mixed_values(rows):
    try:
        table = read(rows)
    except FathomError:
        assert not any(rows) or not rows
        return
    assert len(table.frame) == len(rows)
    check(table)


@QUIET
@given(st.data())
def test_kinds_never_raise_and_targets_only_fathom_errors(data):
    height = data.draw(st.integers(1, 30))
    columns = {
        f"c{i}": data.draw(st.lists(st.one_of(MIXED, st.integers(0, 2)), min_size=height, max_size=height))
        for i in range(2)
    }
    table = read(columns)
    check(table)
    for name in table.frame.columns:
        try:
            columns = infer(table.frame, [name])
        except FathomError as error:
            assert f"'{name}'" in str(error)
            continue
        target = next(c for c in columns if c.name == name)
        assert target.kind not in ("text", "constant")
