"""Folders of images or texts by class: a sub-folder's name is the class of the files in it.

Where the sub-folders are called train, valid or test, the class folders are looked for within them, and the part that a
file belongs to becomes the column `split`.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import polars as pl

from fathom.core.errors import DataError
from fathom.data._kinds import IMAGES
from fathom.data._sniff import encoding_of
from fathom.data._split import PARTS
from fathom.data._table import SetAside, Table

TEXTS = (".txt", ".md")
TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".json", ".gz")
SYSTEM = ("thumbs.db", "desktop.ini")


def read_folder(folder: Path, origin: str) -> Table:
    """Return a folder's files as a table with `image` (its path) or `text` (what it says), `label` and perhaps `split`.

    Raises:
        DataError: there are no such files, or no class folders.
    """
    files = _files(folder)
    by_kind = {kind: [f for f in files if f.suffix.lower() in kind] for kind in (IMAGES, TEXTS)}
    kind = max(by_kind, key=lambda kind: len(by_kind[kind]))
    chosen = by_kind[kind]
    if not chosen:
        raise DataError(_nothing(folder, origin, files))
    split = _is_split(chosen)
    placed = [f for f in chosen if len(f.parts) > 1 + split]
    if not placed:
        raise DataError(
            f"The files in '{origin}' are not in sub-folders; expected one sub-folder for each class, such as "
            f"'{origin}/cats/{chosen[0].name}'."
        )
    left = {id(f) for f in placed}
    set_aside = [_aside(folder, f, "it is not in a class's folder") for f in chosen if id(f) not in left]
    set_aside += [
        _aside(folder, f, "it is no " + ("image" if kind is IMAGES else "text")) for f in files if f not in set(chosen)
    ]
    frame = pl.DataFrame({"path": [f.as_posix() for f in placed], "label": [f.parts[split] for f in placed]})
    if split:
        frame = frame.with_columns(split=pl.Series([PARTS[f.parts[0].lower()] for f in placed]))
    if kind is TEXTS:
        frame, unread = _with_texts(folder, frame)
        set_aside += unread
    else:
        frame = frame.rename({"path": "image"})
    return Table(frame, origin, folder, tuple(set_aside), target=("label",), split="split" if split else None)


def _files(folder: Path) -> list[Path]:
    """Return the paths of all files, relative to the folder, sorted, without hidden ones and the system's own."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__")))
        here = Path(place).relative_to(folder)
        found += [here / name for name in sorted(names) if not name.startswith(".") and name.lower() not in SYSTEM]
    return found


def _is_split(files: list[Path]) -> bool:
    """Whether the first level of folders is train, valid, test, with classes below."""
    tops = {f.parts[0].lower() for f in files if len(f.parts) > 1}
    deep = sum(len(f.parts) > 2 for f in files) > len(files) / 2
    return deep and tops <= PARTS.keys() and "train" in {PARTS[top] for top in tops}


def _with_texts(folder: Path, frame: pl.DataFrame) -> tuple[pl.DataFrame, list[SetAside]]:
    """Put what the files say in place of their paths."""
    texts: list[str | None] = []
    set_aside = []
    for name in frame["path"]:
        try:
            texts.append(_decode((folder / name).read_bytes()))
            reason = "" if texts[-1] else "it is empty"
        except (OSError, ValueError) as error:
            texts.append(None)
            reason = f"it cannot be read: {error}"
        if reason:
            set_aside.append(_aside(folder, Path(name), reason))
    frame = frame.with_columns(pl.Series("path", texts, dtype=pl.String)).rename({"path": "text"})
    return frame.filter(pl.col("text").is_not_null() & (pl.col("text") != "")), set_aside


def _decode(data: bytes) -> str:
    encoding = encoding_of([data])
    if encoding is None:
        raise ValueError("it is not text")
    return data.decode(encoding, errors="replace").removeprefix("\ufeff").strip()


def _aside(folder: Path, file: Path, reason: str) -> SetAside:
    return SetAside(where=str(folder / file), row=None, column=None, reason=reason)


def _nothing(folder: Path, origin: str, files: list[Path]) -> str:
    tables = [f for f in files if f.suffix.lower() in TABLES]
    if tables:
        return f"Folder '{origin}' holds no images or texts, but a table; give '{folder / tables[0]}' itself."
    kinds = ", ".join(f"{n} {kind or 'without suffix'}" for kind, n in Counter(f.suffix for f in files).most_common(3))
    holds = f"holds {len(files)} other files ({kinds})" if files else "is empty"
    return f"Folder '{origin}' {holds}; expected sub-folders of images ({', '.join(IMAGES)}) or texts (.txt, .md)."
