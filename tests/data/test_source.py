"""Every way to give data, and every way in which a table can be wrong."""

import gzip
import json
from datetime import datetime
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

from fathom.core.errors import DataError
from fathom.data._csv import HEAD
from fathom.data._source import read


@pytest.fixture
def written(tmp_path):
    def write(data, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_are_told_from_the_file(written, delimiter):
    table = read(written(f"a{delimiter}b\n1{delimiter}x y\n2{delimiter}z\n"))
    assert table.frame.to_dict(as_series=False) == {"a": [1, 2], "b": ["x y", "z"]}


def test_a_decimal_comma_is_no_delimiter(written):
    assert read(written("a;b\n1,5;x\n2,5;y\n")).frame["a"].to_list() == ["1,5", "2,5"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "latin-1"])
def test_encodings(written, encoding):
    table = read(written("näme,wért\né,1\nü,2\n".encode(encoding)))
    assert table.frame.to_dict(as_series=False) == {"näme": ["é", "ü"], "wért": [1, 2]}
    assert any("It is read as" in note for note in table.notes) == (not encoding.startswith("utf-8"))


def test_an_encoding_that_shows_late_is_found(written):
    lines = [b"a,b"] + [b"1,plain"] * (HEAD // 8 + 10) + [b"2,caf\xe9"]
    table = read(written(b"\n".join(lines)))
    assert table.frame["b"][-1] == "café" and any("Windows-1252" in note for note in table.notes)


def test_damaged_letters_set_their_row_aside(written):
    table = read(written("a,b\n1,é\n2,ü\n3,ö\n".encode() + b"4,\xff\xfe\n"))
    assert table.frame["a"].to_list() == [1, 2, 3]
    assert [(s.row, "encoding" in s.reason) for s in table.set_aside] == [(5, True)]


def test_names_are_stripped_distinct_and_never_empty(written):
    table = read(written(" a ,a,,a_2,^x$,*\n1,2,3,4,5,6\n7,8,9,10,11,12\n"))
    assert table.frame.columns == ["a", "a_3", "column_3", "a_2", "x", "column_6"]
    assert len(table.notes) == 5 and any("'a_3'" in note for note in table.notes)


@pytest.mark.parametrize("word", ["", "NA", "n/a", "NaN", "null", "NULL", "?", " NA ", "#N/A", "<NA>", "NaT"])
def test_words_for_missing(written, word):
    table = read(written(f"a,b,c\n1,x,1.5\n{word},{word},{word}\n2,y,2.5\n"))
    assert table.frame["a"].to_list() == [1, None, 2] and table.frame["b"].to_list() == ["x", None, "y"]
    assert table.frame["c"].dtype == pl.Float64


def test_plus_and_minus_are_values(written):
    assert read(written("a,b\n1,+\n2,-\n")).frame["b"].to_list() == ["+", "-"]


def test_what_is_not_finite_is_missing():
    table = read({"x": [1.0, float("inf"), float("nan"), -float("inf")]})
    assert table.frame["x"].to_list() == [1.0, None, None, None]


def test_broken_rows_are_set_aside_with_their_line(written):
    text = 'a,b,c\n1,2,3\n4,5\n\n6,7,8,9\n"10,11,12\n13,"x"y,14\n15,"two\nlines",16\n17,18,19,\n20,,\n'
    table = read(written(text))
    assert table.frame["a"].to_list() == [1, 15, 17, 20]
    assert table.frame["b"].to_list() == ["2", "two\nlines", "18", None]
    assert [s.row for s in table.set_aside] == [3, 5, 6, 7]
    reasons = [s.reason for s in table.set_aside]
    assert "2 fields instead of 3" in reasons[0] and "4 fields instead of 3" in reasons[1]
    assert "not closed" in reasons[2] and "followed by" in reasons[3]
    assert "1 blank lines are skipped." in table.notes


def test_a_short_row_hides_behind_no_missing_value(written):
    """polars fills a short row with nulls; among rows that end in a missing value it must still be found."""
    table = read(written("a,b,c\n1,2,\n3,4,\n5,6\n7,8,9\n"))
    assert len(table.frame) == 3 and [s.row for s in table.set_aside] == [4]


def test_quotes_within_cells_stay(written):
    table = read(written('a,b\n1,5" pipe\n2,"say ""hi"""\n3, "x,y"\n'))
    assert table.frame["b"].to_list() == ['5" pipe', 'say "hi"', "x,y"]


def test_mostly_broken_is_refused(written):
    with pytest.raises(
        DataError, match=r"Most rows .* broken \(2 of 3\); the first is line 3: it has 1 field instead of 2"
    ):
        read(written("a,b\n1,2\n3\n4\n"))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"a,b\n", "has a header but no rows"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "a PNG image"),
        (b"PK\x03\x04\x00\x00", "Excel"),
        (b"PAR1garbage", "damaged Parquet"),
        (b"\x1f\x8b\x08\x00garbage", "cannot be unpacked"),
    ],
)
def test_files_that_are_no_table(written, data, told):
    path = written(data)
    with pytest.raises(DataError, match=told) as caught:
        read(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_a_type_that_changes_late_is_followed(written):
    rows = HEAD // 4 + 1000
    table = read(written("a,b,c,d\n" + "1,1,x,true\n" * rows + "2.5,NA,y,NA\n"))
    assert table.frame.dtypes == [pl.Float64, pl.Int64, pl.String, pl.Boolean]
    assert table.frame.row(-1) == (2.5, None, "y", None) and len(table.frame) == rows + 1


def test_codes_keep_their_zeros_and_huge_numbers_their_digits(written):
    table = read(written(f"zip,big\n00501,{'9' * 25}\n10001,{'8' * 25}\n"))
    assert table.frame.rows() == [("00501", "9" * 25), ("10001", "8" * 25)]


@pytest.mark.parametrize(
    ("text", "columns", "rows"),
    [
        ("5.1,3.5,setosa\n4.9,3.0,setosa\n", ["column_1", "column_2", "column_3"], 2),  # no header
        ("0,1,2\n5.1,3.5,2\n", ["0", "1", "2"], 1),  # as pandas writes columns without names
        ("country,2019,2020\nA,1,2\n", ["country", "2019", "2020"], 1),
        ("a,b\n1,2,\n3,4,\n", ["a", "b"], 2),  # a delimiter too many
        ("a,b\nr1,1,2\nr2,3,4\n", ["row", "a", "b"], 2),  # as R writes names of rows
        ("sep=;\na;b\n1;2\n", ["a", "b"], 1),  # Excel's hint
        ("\n\na,b\n1,2\n", ["a", "b"], 1),
        ("a,b\r1,2\r3,4\r", ["a", "b"], 2),  # old Macs
        ("a,b\r\n1,2\r\n", ["a", "b"], 1),
        ('"a\nb",c\n1,2\n', ["a b", "c"], 1),
        ("only\n1\n2\n", ["only"], 2),
        (",0\n0,5.1\n1,3.2\n", ["column_1", "0"], 2),  # as pandas writes a series
        ("id,400,410\n1,0.1,0.2\n2,0.3,0.4\n", ["id", "400", "410"], 2),  # wavelengths
        ("a,b\n1,x\na,b\n2,y\n", ["a", "b"], 3),  # joined files
        ("title,year\nUp,2009\nIt,2017\n", ["title", "year"], 2),
    ],
)
def test_headers(written, text, columns, rows):
    table = read(written(text))
    assert table.frame.columns == columns and len(table.frame) == rows and not table.set_aside


ADULT = """\
39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, 2174, 0, 40, ?, <=50K
50, Self-emp, 83311, Bachelors, 13, Married, Exec-managerial, Husband, White, Male, 0, 0, 13, United-States, <=50K
38, Private, 215646, HS-grad, 9, Divorced, Cleaners, Not-in-family, White, Male, 0, 0, 40, United-States, <=50K
"""


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (ADULT, 3),  # words outnumber numbers
        ("ham\tSee you, then\nspam\tYou won\nham\tOk\nham\tHe said so\n", 4),  # no number at all
        ("2008,Honda\n2009,Ford\n", 2),  # a year over years
        ("5,x\n?,y\n7,z\n", 3),
        ("3.5,x\n3.5,x\n", 2),
    ],
)
def test_a_first_row_of_data_is_kept_and_told(written, text, rows):
    table = read(written(text))
    assert len(table.frame) == rows and table.frame.columns[:2] == ["column_1", "column_2"]
    assert "It has no header; columns are called column_1, column_2, and so on." in table.notes


@pytest.mark.parametrize("text", ["I loved it, thanks", "one; two", "a\tb", "a, b, c", '"quoted, too"'])
def test_a_header_of_one_name_is_one_column(written, text):
    for texts in ([text], [text, "plain", "so, so"]):
        table = read(written("text\n" + "\n".join(texts) + "\n"))
        assert table.frame.to_dict(as_series=False) == {"text": [t.strip('"') for t in texts]}
        assert "Its header has one name, so it is read as one column." in table.notes
    with pytest.raises(DataError, match="Most rows"):  # a title above a table
        read(written("Sales of 2024\n" + "1,2,3\n" * 9))


@pytest.mark.parametrize("code", ["07030", '"07030"', " 07030"])
@pytest.mark.parametrize("limit", [None, 0])
def test_codes_whose_zeros_show_late_keep_them(written, code, limit):
    rows = HEAD // 8 + 1000
    text = "zip,n,hour\n" + "10001,0,09:30\n" * rows + f"{code},1,x\n"
    frame = read(written(text), limit).frame
    assert frame["zip"].to_list() == ["10001"] * rows + ["07030"] and frame["n"].dtype == pl.Int64
    broken = read(written(text + "1\n"), limit)  # the same of a mended copy
    assert len(broken.set_aside) == 1 and broken.frame.equals(frame)


def test_columns_stay_text_where_that_is_asked_for(written, tmp_path):
    path = written(" code ,n,b\n1.0,1.0,true\n2.0,2,false\n")
    assert read(path).frame.dtypes == [pl.Float64, pl.Float64, pl.Boolean]
    frame = read(path, text={"code", "b", "other"}).frame
    assert frame.rows() == [("1.0", 1.0, "true"), ("2.0", 2.0, "false")]
    broken = read(written("code,n\n1.0,1\n2.0,2\n3\n"), text=["code"]).frame
    assert broken.rows() == [("1.0", 1), ("2.0", 2)]
    unnamed = read(written("1.0,1\n2.0,3\n"), text=["column_1"]).frame
    assert unnamed.rows() == [("1.0", 1), ("2.0", 3)]


def test_other_files_hold_the_same(written, tmp_path):
    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    frame = pl.DataFrame(rows)
    frame.write_parquet(tmp_path / "t.parquet")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    sources = [
        tmp_path / "t.parquet",
        written(lines, "t.jsonl"),
        written(json.dumps(rows), "t.json"),
        written(gzip.compress(b"a,b\n1,x\n2,\n"), "t.csv.gz"),
        written(gzip.compress(lines.encode()), "t.jsonl.gz"),
        written(gzip.compress((tmp_path / "t.parquet").read_bytes()), "u.parquet.gz"),
        rows,
        {"a": [1, 2], "b": ["x", None]},
        frame,
        frame.lazy(),
        frame.to_pandas(),
    ]
    for source in sources:
        table = read(source)
        assert table.frame.equals(frame), source
        assert table.folder == (tmp_path if isinstance(source, Path) else None)


def test_broken_json_lines_are_set_aside(written):
    table = read(written('{"a": 1}\n{"a": \n[1]\n\n{"a": 2, "b": {"c": "x"}}\n{"a": 3}\n', "t.jsonl"))
    assert table.frame.to_dict(as_series=False) == {"a": [1, 2, 3], "b.c": [None, "x", None]}
    assert [s.row for s in table.set_aside] == [2, 3]
    with pytest.raises(DataError, match="Most lines"):
        read(written("no\njson\n", "u.jsonl"))


def test_pandas_types():
    frame = pd.DataFrame(
        {
            "float": [1.0, None],
            "category": pd.Categorical(["x", None]),
            "int": pd.array([1, None], dtype="Int64"),
            "mixed": ["q", 1],
            "when": pd.to_datetime(["2020-01-01 10:00", None]).tz_localize("Europe/Berlin"),
            7: [True, False],
        }
    )
    table = read(frame)
    assert table.frame.rows() == [
        (1.0, "x", 1, "q", datetime(2020, 1, 1, 10), True),
        (None, None, None, "1", None, False),
    ]
    assert table.frame.columns[-1] == "7"


def test_embedded_images_become_bytes_and_lists_are_left_out():
    rows = [{"image": {"bytes": b"\x89PNG", "path": "a.png"}, "tags": ["x"]}] * 2
    table = read(rows)
    assert table.frame.schema == {"image": pl.Binary}
    assert any("'tags' holds lists" in note for note in table.notes)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (3, "type int"),
        ([1, 2], "Row 1 of the data is int"),
        ([], "no rows"),
        ({"a": [1, 2], "b": [1]}, "'a' has 2 values, 'b' has 1"),
        ({"a": 5}, "given as int"),
        ("diamnds", "Did you mean 'diamonds'"),
        ("no/such/folder/t.csv", "no folder"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(source, told):
    with pytest.raises(DataError, match=told):
        read(source)


def test_the_nearest_file_is_named(written):
    path = written("a\n1\n", "houses.csv")
    with pytest.raises(DataError, match=r"Did you mean '.*houses\.csv'"):
        read(path.with_name("house.csv"))


def test_a_path_comes_before_a_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "diamonds").write_text("a,b\n1,2\n")
    table = read("diamonds")
    assert table.frame.columns == ["a", "b"] and any("bundled sample" in note for note in table.notes)


def test_a_table_larger_than_the_limit_is_mapped_and_leaves_nothing_behind(written, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "spill"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spill"))
    (tmp_path / "spill").mkdir()
    text = "a,b,c,d\n" + "".join(f"{i}, x{i % 7} ,{i / 3},{'NA' if i % 5 else 'y'}\n" for i in range(3000))
    path = written(text)
    mapped, held = read(path, limit=0), read(path, limit=1 << 40)
    assert mapped.frame.equals(held.frame) and mapped.frame["b"][0] == "x0"
    assert list((tmp_path / "spill").iterdir()) == []
    broken = read(written(text + "1,2\n"), limit=0)
    assert len(broken.set_aside) == 1 and len(broken.frame) == 3000
    frame = held.frame
    frame.write_parquet(tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", limit=0).frame.equals(frame)
