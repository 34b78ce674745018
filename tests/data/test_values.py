"""Cells as values of their kind, however a table stores them."""

import polars as pl
import pytest

from fathom.data import _forms, infer, read
from fathom.data._categories import codes
from fathom.data._values import canonical, labels, moments, numbers, truths


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1.0, 2.5, -0.0, 1000.0], ["1.0", "2.50", "-0.0", "1e3"]),
        ([1, 20, -3], ["+1", "20.", "-3.0"]),
        ([True, False], ["True", "FALSE"]),
    ],
)
def test_text_in_canonical_form_is_the_label_of_the_value(values, texts):
    assert canonical(pl.Series(texts)).to_list() == labels(pl.Series(values)).to_list()


def test_codes_and_words_are_their_own_canonical_form():
    texts = ["007", "00.5", "x", "1.2.3", "9" * 20, "12345678901234567890.0", "Yes", ".", "", None]
    assert canonical(pl.Series(texts)).to_list() == texts
    assert canonical(pl.Series([], dtype=pl.String)).to_list() == []


def test_a_label_is_a_class_as_written_before_it_is_one_by_meaning():
    classes = pl.Enum(["True", "1.10", "1.0", "1.1", "007"])
    found = codes(pl.Series(["true", "1.1", "1.10", "1.100", "1", "7", "007", None, "x"]), classes)
    assert found.tolist() == [0, 3, 1, 1, 2, -1, 4, -1, -1]


def test_truths_in_any_form():
    text = pl.Series(["Yes", "1.0", "0", None, "maybe", "-", "FALSE"])
    assert truths(text).to_list() == [True, True, False, None, None, None, False]
    assert truths(pl.Series([1.0, 0.0, None])).to_list() == [True, False, None]
    assert truths(pl.Series([None, None], dtype=pl.String)).to_list() == [None, None]


def test_days_in_digits_are_dates_in_whatever_number():
    days = [moments(pl.Series([20240131, None], dtype=dtype), "%Y%m%d") for dtype in (pl.Int64, pl.Float64)]
    text = moments(pl.Series(["20240131", None]), "%Y%m%d")
    assert all(found.equals(text) for found in days) and text[0].day == 31


def test_no_thousands_begin_with_a_zero():
    little = pl.Series(["0,123", "0,456", "12,345", "-0,001"])
    assert _forms.decimal_sign(little) == ","
    assert numbers(little, ",").to_list() == [0.123, 0.456, 12.345, -0.001]
    assert numbers(little, ".").to_list() == [None, None, 12345.0, None]
    assert numbers(pl.Series(["0.123", "1.234", "1.234,5"]), ",").to_list() == [None, 1234.0, 1234.5]


@pytest.mark.parametrize(
    ("cells", "usual", "sign"),
    [
        (["1,234", "12,345"], ".", "."),
        (["1,234", "12,345"], ",", ","),
        (["1.234", "12.345"], ",", "."),
        (["1,234.5", "12,345"], ",", "."),
        (["1,5", "12,345"], ".", ","),
    ],
)
def test_what_cells_leave_open_their_table_decides(cells, usual, sign):
    assert _forms.decimal_sign(pl.Series(cells), usual) == sign


def test_semicolons_come_with_decimal_commas(tmp_path):
    for separator, sign in ((";", ","), ("\t", ".")):
        rows = "".join(f"{i % 7 + 1},{i * 7 % 900 + 100}{separator}x{i % 3}\n" for i in range(40))
        (tmp_path / "t.csv").write_text(f"a{separator}b\n{rows}")
        table = read(tmp_path / "t.csv")
        for options in ({}, {"targets": ["a"]}, {"kinds": {"a": "number"}}):
            column = infer(table.frame, decimal=table.decimal, **options)[0]
            assert (column.kind, column.format) == ("number", sign)
