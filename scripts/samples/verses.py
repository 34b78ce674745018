"""Build the sample `verses`: the World English Bible by verse, with its genre and its Spanish counterpart.

    apt-get install sword-text-web sword-text-sparv
    python scripts/samples/verses.py

The packages hold SWORD modules of type zText. A testament is three files: `.bzv` has an entry for each place of the
versification (block, offset and length of its text), `.bzs` says where each block stands in `.bzz`, and `.bzz` holds
the blocks, compressed with zlib. The places of a testament are its own heading, then for each book a heading, then for
each chapter a heading and its verses, so a verse's number is its distance from its chapter's heading.

The two modules number by different schemes (NRSVA and KJV), and the Spanish one puts whatever its scheme has no place
for at the end of the last verse that has one. Verses are therefore paired by book, chapter and number, except in the
chapters of `SHIFTED`, where the Spanish edition follows the Hebrew numbering; a pair whose lengths differ by more than
twice is dropped (a verse split in one edition and not in the other, or a note on where a letter was written).
`SHIFTED` was found by comparing each verse with its neighbours' translations, word for word, and checked by eye.

The deuterocanonical books are left out: the module numbers them unreliably, and they have no Spanish counterpart.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import polars as pl

MODULES = Path("/usr/share/sword/modules/texts/ztext")
SAMPLES = Path(__file__).parents[2] / "src/fathom/samples"
TEST_SHARE = 0.2
SEED = 0

# Each genre with the names of its books: first the module's, then ours. Acts is told as history; Daniel stands, as in
# the Christian order, among the prophets; Revelation is the one apocalypse.
GENRES = {
    "law": "Gen Genesis, Exod Exodus, Lev Leviticus, Num Numbers, Deut Deuteronomy",
    "history": "Josh Joshua, Judg Judges, Ruth Ruth, 1Sam 1 Samuel, 2Sam 2 Samuel, 1Kgs 1 Kings, 2Kgs 2 Kings, "
    "1Chr 1 Chronicles, 2Chr 2 Chronicles, Ezra Ezra, Neh Nehemiah, Esth Esther, Acts Acts",
    "wisdom": "Job Job, Prov Proverbs, Eccl Ecclesiastes",
    "poetry": "Ps Psalms, Song Song of Solomon, Lam Lamentations",
    "prophecy": "Isa Isaiah, Jer Jeremiah, Ezek Ezekiel, Dan Daniel, Hos Hosea, Joel Joel, Amos Amos, Obad Obadiah, "
    "Jonah Jonah, Mic Micah, Nah Nahum, Hab Habakkuk, Zeph Zephaniah, Hag Haggai, Zech Zechariah, Mal Malachi",
    "gospel": "Matt Matthew, Mark Mark, Luke Luke, John John",
    "letter": "Rom Romans, 1Cor 1 Corinthians, 2Cor 2 Corinthians, Gal Galatians, Eph Ephesians, Phil Philippians, "
    "Col Colossians, 1Thess 1 Thessalonians, 2Thess 2 Thessalonians, 1Tim 1 Timothy, 2Tim 2 Timothy, Titus Titus, "
    "Phlm Philemon, Heb Hebrews, Jas James, 1Pet 1 Peter, 2Pet 2 Peter, 1John 1 John, 2John 2 John, 3John 3 John, "
    "Jude Jude",
    "apocalypse": "Rev Revelation",
}
BOOKS = {
    code: (name, genre)
    for genre, books in GENRES.items()
    for code, name in (b.split(" ", 1) for b in books.split(", "))
}

# In these chapters the English verses `first` to `last` are `shift` further on in Spanish; others there have no pair.
SHIFTED = {
    ("Num", 13): [(1, 31, 1)],
    ("Num", 30): [(1, 14, 1)],
    ("Judg", 14): [(1, 18, 0)],
    ("1Sam", 24): [(1, 20, 1)],
    ("2Sam", 2): [(1, 30, 0)],
    ("1Kgs", 22): [(1, 42, 0), (44, 51, 1)],
    ("1Chr", 21): [(1, 14, 0), (16, 28, 1)],
    ("2Chr", 33): [(1, 9, 0), (12, 23, -1)],
    ("Job", 39): [(1, 26, 3)],
    ("Job", 40): [(6, 23, -5)],
    ("Hos", 12): [(1, 13, 1)],
    ("Jonah", 2): [(1, 9, 1)],
    ("Zeph", 2): [(2, 15, 0)],
}

CHAPTER = re.compile(r'<chapter [^>]* sID="(\w+)\.(\d+)"')
BOOK_HEADING = re.compile(r'<div [^>]* sID=[^>]*type="book"')
END = re.compile(r"<chapter [^>]*eID=")  # after the last verse of a book stand the closing words of the edition
LEFT_OUT = re.compile(r"<(note|title|speaker|reference)\b.*?</\1>", re.DOTALL)
INLINE = re.compile(r"</?(?:w|q|transChange|name|seg)\b[^>]*>")
TAG = re.compile(r"<[^>]*>")
SUPERSCRIPTION = re.compile(r"^.*?[.:] (?=[¡¿]?[A-ZÁÉÍÓÚÑ]{2,}|[AOYÁ] [A-ZÁÉÍÓÚÑ]{2,})")


def read_places(module: str, testament: str) -> list[str]:
    """Return the marked-up text of every place of a testament, in order."""
    path = MODULES / module / testament
    packed = path.with_suffix(".bzz").read_bytes()
    index = struct.iter_unpack("<III", path.with_suffix(".bzs").read_bytes())
    blocks = [zlib.decompress(packed[start : start + size]) if size else b"" for start, size, _ in index]
    places = struct.iter_unpack("<IIH", path.with_suffix(".bzv").read_bytes())
    return [blocks[block][start : start + size].decode("utf-8") for block, start, size in places]


def clean(marked: str) -> str:
    """Return the words of a verse alone: no notes, titles, speakers, Strong's numbers or line breaks."""
    text = LEFT_OUT.sub(" ", END.split(marked)[0])
    text = TAG.sub(" ", INLINE.sub("", text))
    text = re.sub(r" +", " ", text.replace("\n", " ")).strip()
    return re.sub(r"(?<=\S) ([,.;:!?)”])", r"\1", text)


def read_verses(module: str) -> dict[tuple[str, int, int], str]:
    """Return the text of every verse of the 66 books that has one, by (book, chapter, verse)."""
    verses = {}
    for testament in ("ot", "nt"):
        book, chapter, heading = "", 0, 0
        for position, marked in enumerate(read_places(module, testament)):
            begins = CHAPTER.findall(marked)
            if BOOK_HEADING.search(marked):
                book = ""
            elif begins and not clean(marked.split("<chapter")[0]):
                (book, chapter), heading = (begins[-1][0], int(begins[-1][1])), position
            elif book in BOOKS and clean(marked):
                verses[book, chapter, position - heading] = clean(marked)
    return verses


def spanish_of(
    book: str, chapter: int, verse: int, english: str, spanish: dict[tuple[str, int, int], str]
) -> str | None:
    """Return the Spanish counterpart of an English verse, or None where there is none to be sure of."""
    ranges = SHIFTED.get((book, chapter), [(1, 200, 0)])
    shifts = [shift for first, last, shift in ranges if first <= verse <= last]
    if not shifts or (book, chapter, verse + shifts[0]) not in spanish:
        return None
    text = spanish[book, chapter, verse + shifts[0]]
    if book == "Ps" and verse == 1:  # the English superscriptions are titles and have been left out
        text = SUPERSCRIPTION.sub("", text)
    return text if 0.5 <= (len(english) + 10) / (len(text) + 10) <= 2.0 else None


def split(books: list[str], texts: list[str]) -> list[str]:
    """Return "train" or "test" for each verse: a fifth of each book is for testing, and verses of the same words
    stand on the same side."""
    words = [re.sub(r"\W+", " ", text).strip().lower() for text in texts]
    first = dict(zip(reversed(words), reversed(books), strict=True))  # each wording, by the book that has it first
    generator = np.random.default_rng(SEED)
    tested: set[str] = set()
    for book in dict.fromkeys(books):
        own = np.array([wording for wording, owner in first.items() if owner == book])
        tested.update(generator.permutation(own)[: round(TEST_SHARE * len(own))].tolist())
    return ["test" if wording in tested else "train" for wording in words]


def main() -> None:
    english, spanish = read_verses("engWEB2015eb"), read_verses("spaRV1909eb")
    keys = list(english)  # in the order of the module, which is that of the books
    frame = pl.DataFrame(
        {
            "book": [BOOKS[book][0] for book, _, _ in keys],
            "chapter": [chapter for _, chapter, _ in keys],
            "verse": [verse for _, _, verse in keys],
            "genre": [BOOKS[book][1] for book, _, _ in keys],
            "text": [english[key] for key in keys],
            "spanish": [spanish_of(*key, english[key], spanish) for key in keys],
            "split": split([book for book, _, _ in keys], [english[key] for key in keys]),
        },
        schema_overrides={"chapter": pl.Int16, "verse": pl.Int16},
    )
    frame.write_parquet(SAMPLES / "verses.parquet", compression="zstd", compression_level=19, statistics=False)
    print(frame.height, "verses,", frame["spanish"].count(), "pairs")
    print(frame.group_by("genre", "split").len().pivot("split", index="genre", values="len"))


if __name__ == "__main__":
    main()
