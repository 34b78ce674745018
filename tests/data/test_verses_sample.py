"""The bundled verses: every book whole and in its place, pairs that belong together, a split without echoes."""

import re
from collections import Counter
from statistics import correlation

import polars as pl
import pytest

from fathom.data._samples import find

SAMPLE = find("verses")


@pytest.fixture(scope="module")
def verses() -> pl.DataFrame:
    return pl.read_parquet(SAMPLE.path)


def verse(verses: pl.DataFrame, book: str, chapter: int, number: int) -> dict:
    return verses.row(by_predicate=(pl.struct("book", "chapter", "verse") == _place(book, chapter, number)), named=True)


def _place(book: str, chapter: int, number: int) -> pl.Expr:
    return pl.struct(book=pl.lit(book), chapter=pl.lit(chapter, dtype=pl.Int16), verse=pl.lit(number, dtype=pl.Int16))


def test_rows_and_columns_are_as_told(verses):
    assert verses.height == SAMPLE.rows == 31_095
    assert verses.columns == ["book", "chapter", "verse", "genre", "text", "spanish", "split"]
    assert SAMPLE.target == ("genre",)
    assert SAMPLE.split == "split"
    assert verses.null_count().row(0, named=True) == dict.fromkeys(verses.columns, 0) | {"spanish": 62}
    assert verses.select("book", "chapter", "verse").is_unique().all()


def test_every_book_stands_whole(verses):
    chapters = verses.group_by("book", maintain_order=True).agg(pl.col("chapter").n_unique(), pl.len())
    assert chapters.height == 66
    assert chapters["chapter"].sum() == 1189
    known = {"Genesis": (50, 1533), "Psalms": (150, 2461), "Malachi": (4, 55), "Matthew": (28, 1071), "Jude": (1, 25)}
    for book, sizes in known.items():
        assert chapters.row(by_predicate=pl.col("book") == book)[1:] == sizes
    # The two testaments have 23,145 and 7,957 verses; seven of the latter are footnotes or stand elsewhere here.
    assert verses["book"].to_list().index("Matthew") == 23_145
    gaps = (
        verses.group_by("book", "chapter").agg(missing=pl.col("verse").max() - pl.len()).filter(pl.col("missing") > 0)
    )
    assert set(gaps["book"]) <= {"Luke", "Acts", "Romans"}


@pytest.mark.parametrize(
    ("place", "begins", "spanish"),
    [
        (("Genesis", 1, 1), "In the beginning, God created the heavens and the earth.", "EN el principio"),
        (("Exodus", 1, 1), "Now these are the names of the sons of Israel", "ESTOS son los nombres"),
        (("Job", 39, 1), "“Do you know the time when the mountain goats give birth?", "¿Sabes tú el tiempo"),
        (("Psalms", 3, 1), "Yahweh, how my adversaries have increased!", "¡OH Jehová, cuánto"),
        (("Psalms", 23, 1), "Yahweh is my shepherd; I shall lack nothing.", "JEHOVÁ es mi pastor; nada me faltará."),
        (("Song of Solomon", 2, 1), "I am a rose of Sharon, a lily of the valleys.", "YO soy la rosa de Sarón"),
        (("Malachi", 4, 6), "He will turn the hearts of the fathers", "El convertirá el corazón de los padres"),
        (("Matthew", 1, 1), "The book of the genealogy of Jesus Christ, the son of David", "LIBRO de la generación"),
        (("John", 11, 35), "Jesus wept.", "Y lloró Jesús."),
        (("Romans", 1, 1), "Paul, a servant of Jesus Christ", "PABLO, siervo de Jesucristo"),
        (("Jude", 1, 1), "Jude, a servant of Jesus Christ", "JUDAS, siervo de Jesucristo"),
        (("Revelation", 13, 2), "The beast which I saw was like a leopard", "Y la bestia que vi, era semejante á un"),
        (("Revelation", 22, 21), "The grace of the Lord Jesus Christ be with all the saints. Amen.", "La gracia de"),
    ],
)
def test_known_verses(verses, place, begins, spanish):
    row = verse(verses, *place)
    assert row["text"].startswith(begins)
    assert row["spanish"].startswith(spanish)


def test_texts_are_words_alone(verses):
    for column in ("text", "spanish"):
        marked = verses.filter(pl.col(column).str.contains(r"[<>{}\[\]\\]|strong:|  | [,.;:!?]|^\s|\s$|\p{Cc}"))
        assert marked.is_empty()
    assert verses.filter(pl.col("text").str.contains(r"[,;:?!][A-Za-z]")).is_empty()  # a note left no gap behind


def test_genres_follow_the_books(verses):
    assert verses.group_by("book").agg(pl.col("genre").n_unique())["genre"].max() == 1
    count = Counter(verses["genre"])
    assert set(count) == {"law", "history", "wisdom", "poetry", "prophecy", "gospel", "letter", "apocalypse"}
    assert count["law"] == 1533 + 1213 + 859 + 1288 + 959
    genre = dict(verses.select("book", "genre").unique().iter_rows())
    told = {"Acts": "history", "Job": "wisdom", "Psalms": "poetry", "Daniel": "prophecy", "Hebrews": "letter"}
    assert {book: genre[book] for book in told} == told


def test_pairs_are_of_like_length(verses):
    """Within each book long verses have long counterparts; shifted by one verse that ends."""
    pairs = verses.drop_nulls("spanish").with_columns(
        e=pl.col("text").str.len_chars(), s=pl.col("spanish").str.len_chars()
    )
    for (book,), rows in pairs.group_by("book"):
        together = correlation(rows["e"], rows["s"])
        shifted = correlation(rows["e"][:-1], rows["s"][1:])
        assert together > 0.7, book
        assert together > shifted + 0.05, book


def test_pairs_share_their_names(verses):
    """Names that both languages write alike stand in both verses of a pair, and more seldom in the neighbour's."""
    pairs = verses.drop_nulls("spanish").with_columns(next=pl.col("spanish").shift(-1).fill_null(""))
    for name in ("Abraham", "Isaac", "David", "Samuel", "Job"):
        held = pairs.filter(pl.col("text").str.contains(rf"\b{name}\b"))
        same = held["spanish"].str.contains(rf"\b{name}\b").mean()
        assert same > 0.9 > held["next"].str.contains(rf"\b{name}\b").mean() + 0.2, name


@pytest.mark.parametrize("chapter", [("Numbers", 13), ("1 Samuel", 24), ("Job", 39), ("Hosea", 12)])
def test_chapters_that_the_editions_number_differently_are_matched(verses, chapter):
    rows = verses.filter(pl.col("book") == chapter[0], pl.col("chapter") == chapter[1]).drop_nulls("spanish")
    assert rows.height > 10
    lengths = [(len(e), len(s)) for e, s in rows.select("text", "spanish").iter_rows()]
    assert correlation(*zip(*lengths, strict=True)) > 0.6


def test_the_split_is_a_fifth_of_each_book_and_has_no_echo(verses):
    share = verses.group_by("book").agg(pl.col("split").eq("test").mean())["split"]
    assert share.min() > 0.18 and share.max() < 0.24
    words = verses.with_columns(words=pl.col("text").str.to_lowercase().str.replace_all(r"\W+", " ").str.strip_chars())
    assert words.group_by("words").agg(pl.col("split").n_unique())["split"].max() == 1


def test_the_licence_names_both_sources_and_the_trademark():
    notice = re.sub(r"\s+", " ", SAMPLE.notice.read_text(encoding="utf-8"))
    assert "The World English Bible is in the Public Domain" in notice
    assert "“World English Bible” is a Trademark" in notice.replace('"World English Bible"', "“World English Bible”")
    assert "Reina-Valera 1909" in notice
