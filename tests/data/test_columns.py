"""What a column is taken for, and why."""

from hashlib import md5

import msgspec
import polars as pl
import pytest

from fathom.core.errors import ConfigError, DataError
from fathom.data._columns import COUNTED, Column, infer
from fathom.data._source import read

ROWS = 60


def column(values, name="x", targets=(), **kinds):
    repeated = (list(values) * (ROWS // len(values) + 1))[:ROWS] if len(values) < ROWS else list(values)
    other = {"other": [i % 7 / 3 for i in range(len(repeated))]}
    return infer(read({name: repeated, **other}).frame, targets, kinds)[0]


@pytest.mark.parametrize(
    ("values", "kind", "format"),
    [
        ([1.5, 2.5, None], "number", ""),
        ([1, 2, 3], "number", ""),
        ([0, 1], "boolean", ""),
        ([True, False, None], "boolean", ""),
        (["yes", "No", "YES"], "boolean", ""),
        (["t", "f", "-"], "boolean", ""),
        (["yes", "no", "maybe"], "category", ""),
        (["red", "green"], "category", ""),
        (["+", "-"], "category", ""),
        (["00501", "10001"], "category", ""),
        (["3,5", "1.234,5", "-"], "number", ","),
        (["1,234", "2,500"], "number", "."),
        (["$1,234.50", "€3", "£12"], "number", "."),
        (["12 %", "3.5%"], "number", "."),
        (["1'234.5", "1 000"], "number", "."),
        (["1", "2", "inf", "3"], "number", "."),
        (["2020-01-31", "2021-02-03"], "datetime", "%Y-%m-%d"),
        (["2020-01-31 10:00:00", "2021-02-03 11:30:00.25"], "datetime", "%Y-%m-%d %H:%M:%S"),
        (["2020-01-31T10:00:00Z", "2021-02-03T10:00:00+02:00"], "datetime", "%Y-%m-%dT%H:%M:%S"),
        (["31/01/2020", "03/02/2021"], "datetime", "%d/%m/%Y"),
        (["01/31/2020", "02/03/2021"], "datetime", "%m/%d/%Y"),
        (["31.1.20", "3.2.21"], "datetime", "%d.%m.%y"),
        (["14 Feb 2020", "3 Mar 2021"], "datetime", "%d %b %Y"),
        (["September 9, 2019", "May 10, 2020", "Jan 1, 2021"], "datetime", "%B %d, %Y"),
        (["9 September 2019 10:30", "10 March 2020 11:00"], "datetime", "%d %B %Y %H:%M"),
        (["Dec-2011", "Jan-2012"], "datetime", "%B-%Y"),
        (["2015-01", "2016-12", "-"], "datetime", "%Y-%m"),
        (["10-02", "11-03"], "category", ""),
        (["1/31/2020 3:04 PM", "2/3/2021 11:00 AM"], "datetime", "%m/%d/%Y %I:%M %p"),
        (["a/1.png", "b/2.JPG"], "image", ""),
        ([b"\x89PNG1", b"\xff\xd8\xff2"], "image", ""),
        (["same"], "constant", ""),
        ([None], "constant", ""),
        ([7], "constant", ""),
        ([7, None], "number", ""),
        ([f"user{i}x" for i in range(ROWS)], "identifier", ""),
        (list(range(ROWS)), "identifier", ""),
        (list(range(1, ROWS + 1)), "identifier", ""),
        (list(range(1960, 1960 + ROWS)), "number", ""),
        ([i * 37 % 1009 for i in range(ROWS)], "number", ""),
        ([f"{i * i:08x}-0000-4000-8000-{i:012x}" for i in range(ROWS)], "identifier", ""),
        ([f"{i * i:08x}-0000-4000-8000-{i:012x}" for i in range(ROWS // 2)] * 2, "category", ""),
        ([f"https://example.org/item?x{i}" for i in range(ROWS)], "identifier", ""),
        ([md5(bytes([i])).hexdigest() for i in range(ROWS)], "identifier", ""),
        (["".join("ACGT"[i >> 2 * k & 3] for k in range(40)) for i in range(1000, 1000 + ROWS)], "text", ""),
        ([f"+1 555 {i:03} 4567" for i in range(ROWS)], "identifier", ""),
        (["+1 555 123 4567", "+1 555 124 4567"], "category", ""),
        (["+15551234567", "+15551234568"], "category", ""),
        (["030 12 34 56", "030 65 43 21"], "category", ""),
        (["1 234 567", "12 345,5 €"], "number", ","),
        ([f"this is sentence {i} of them" for i in range(ROWS)], "text", ""),
        (["a sentence of many words that comes again", "and another one that does"], "category", ""),
        ([f"日本語の文章はことばの間に空白がありませんので長さで判断します{i}" for i in range(ROWS)], "text", ""),
    ],
)
def test_kinds(values, kind, format):
    found = column(values)
    assert (found.kind, found.format) == (kind, format), found
    assert found.why


def test_an_identifier_by_name_need_not_count_rows():
    values = [i * 37 % 1009 for i in range(ROWS)]
    assert column(values, "user_id").kind == "identifier" and column(values, "userId").kind == "identifier"
    assert column(values, "grid").kind == "number"
    assert column([v + 0.5 for v in values], "user_id").kind == "number"


@pytest.mark.parametrize("name", ["store_id", "userId", "UUID"])
@pytest.mark.parametrize("form", [int, float, str])
def test_numbers_that_name_something_are_categories_where_they_come_again(name, form):
    some = [form(i % 13 * 7) for i in range(ROWS)]
    found = column(some, name)
    assert found.kind == "category" and "13 different in 60 rows" in found.why
    assert column(some, "visits").kind == "number"
    rare = column([form(i % 45 * 7) for i in range(ROWS)], name)
    assert rare.kind == "identifier" and "few come twice" in rare.why


def test_names_too_many_to_learn_of_each_identify():
    many = [*range(0, 30_000, 2)] * 2
    found = infer(pl.DataFrame({"user_id": many, "x": [i % 7 / 3 for i in range(len(many))]}))[0]
    assert found.kind == "identifier" and "15,000 different" in found.why


def test_whole_numbers_that_pandas_made_fractions_are_said_to_be_whole():
    assert column([1.0, 2.0, None, 40.0]).why == "whole numbers"
    assert column([1.0, 2.5, None]).why == "numbers with fractions"


def test_dates_that_could_be_either_are_said_to_be():
    slashes, points = column(["01/02/2020", "03/04/2021"]), column(["01.02.2020", "03.04.2021"])
    assert (slashes.format, points.format) == ("%m/%d/%Y", "%d.%m.%Y")
    assert "month first" in slashes.why and "day first" in points.why


def test_cells_of_another_kind_are_told_by_row():
    found = column([*map(str, range(50)), "abc", *map(str, range(9))])
    assert found.kind == "number" and "'abc' in row 51" in found.why
    assert column(["1", "2", "abc"]).kind == "category"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 1, 2], "category"),
        ([0.0, 1.0, None], "category"),
        (["b", "a"], "category"),
        (["yes", "no"], "category"),
        ([True, False], "boolean"),
        ([0.5, 1.5], "number"),
        (list(range(ROWS)), "number"),
        (["1,5", "2,5", "3,75"], "number"),
        (["00501", "10001"], "category"),
    ],
)
def test_targets(values, kind):
    assert column(values, targets=["x"]).kind == kind


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([None], "has no value"),
        (["a"], "two different values"),
        ([f"w{i}" for i in range(ROWS)], "too many to be classes"),
    ],
)
def test_targets_that_cannot_be_learned(values, told):
    with pytest.raises(DataError, match=f"'x'.*{told}"):
        column(values, targets=["x"])


def test_the_user_overrules():
    assert column([0, 1, 2], x="category").kind == "category"
    assert column(["a 1,5", "2,5"], x="number").format == ","
    assert column(["hello", "world"], x="text").why == "as was asked for"
    assert column(list(range(ROWS)), x="number").kind == "number"


def test_wrong_names_are_answered_with_the_nearest():
    frame = pl.DataFrame({"price": [1, 2, 3]})
    with pytest.raises(DataError, match="Did you mean 'price'"):
        infer(frame, ["prise"])
    with pytest.raises(DataError, match="Did you mean 'price'"):
        infer(frame, kinds={"Pric": "number"})
    with pytest.raises(ConfigError, match="Did you mean 'number'"):
        infer(frame, kinds={"price": "numbr"})
    with pytest.raises(DataError, match="'x' was said to hold a number"):
        column(["a", "b"], x="number")


def test_row_numbers_are_kept_where_there_is_nothing_else():
    frame = pl.DataFrame({"x": range(ROWS), "y": [i * 2.5 for i in range(ROWS)]})
    assert [c.kind for c in infer(frame, ["y"])] == ["number", "number"]


def test_counts_and_examples():
    found = column(["b", None, "a", "a", "c"], "café")
    assert (found.name, found.missing, found.distinct, found.examples) == ("café", ROWS // 5, 3, ("b", "a", "c"))


def test_many_rows_are_estimated_but_constants_are_sure():
    n = COUNTED + 1
    values = pl.DataFrame(
        {
            "nearly": [0] * (n - 1) + [5],
            "classes": [f"c{i % 40}" for i in range(n)],
            "number": pl.int_range(n, eager=True) * 7 % 100_003,
            "row": pl.int_range(n, eager=True),
            "y": [i % 3 for i in range(n)],
        }
    )
    found = {c.name: c for c in infer(values, ["y"])}
    assert found["nearly"].kind == "number" and found["row"].kind == "identifier"
    assert found["classes"].distinct == 40 and found["y"].distinct == 3
    assert abs(found["number"].distinct - n) < 0.1 * n


def test_a_column_is_plain_data():
    columns = infer(read("diamonds").frame, ["price"])
    assert msgspec.convert(msgspec.to_builtins(columns), tuple[Column, ...]) == columns
    assert {c.name: c.kind for c in columns}["clarity"] == "category"


def test_a_rare_value_among_very_many_rows_does_not_make_a_constant():
    rows = 200_000
    rare = ["no"] * rows
    rare[123_457] = "yes"
    words = [f"word {i % 7}" for i in range(rows)]
    found = {c.name: c for c in infer(pl.DataFrame({"rare": rare, "words": words}))}
    assert found["rare"].kind != "constant"
    assert found["words"].distinct == 7
