"""Folders of images or texts by class: a sub-folder's name is the class of the files in it.

Where the sub-folders are called train, valid or test, the class folders are looked for within them, and the part that a
file belongs to becomes the column `split`. A folder without sub-folders, or one image, has no classes: it can be
predicted for.
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
    """Return a folder's files as a table: `image` (its path) or `text` (what it says), and `file`, its path.

    Of files in class folders also `label`, and perhaps `split`. What a file is called is not learned from.

    Raises:
        DataError: there are no such files.
    """
    files, notes = _files(folder)
    by_kind = {kind: [f for f in files if f.suffix.lower() in kind] for kind in (IMAGES, TEXTS)}
    kind = max(by_kind, key=lambda kind: len(by_kind[kind]))
    chosen = by_kind[kind]
    split = _is_split(chosen)
    placed = [f for f in chosen if len(f.parts) > 1 + split]
    tables = [f for f in files if f.suffix.lower() in TABLES]
    about = kind is TEXTS and not placed and len(chosen) <= len(tables)  # a text beside a table says what that is
    if not chosen or about:
        raise DataError(_nothing(folder, origin, files, tables))
    column = "image" if kind is IMAGES else "text"
    left, known = set(placed or chosen), set(chosen)
    set_aside = [_aside(folder, f, "it is not in a class's folder") for f in chosen if f not in left]
    set_aside += [_aside(folder, f, f"it is no {column}") for f in files if f not in known]
    paths = [f.as_posix() for f in placed or chosen]
    frame = pl.DataFrame({column: paths, "file": paths})
    if placed:
        frame = frame.with_columns(label=pl.Series([f.parts[split] for f in placed]))
    else:
        notes.append(f"'{origin}' has no sub-folders, so that its {column}s have no classes to learn.")
    if split:
        frame = frame.with_columns(split=pl.Series([PARTS[f.parts[0].lower()] for f in placed]))
    if kind is TEXTS:
        frame, unread = _with_texts(folder, frame)
        set_aside += unread
    return Table(
        frame,
        origin,
        folder,
        tuple(set_aside),
        target=("label",) if placed else (),
        split="split" if split else None,
        inputs=(column,),
        notes=tuple(notes),
    )


def is_image(path: Path) -> bool:
    """Whether a file is called what images are called."""
    return path.suffix.lower() in IMAGES


def read_image(path: Path, origin: str) -> Table:
    """Return one image as a table of one row, to predict for: `image` and `file`."""
    return Table(pl.DataFrame({"image": [path.name], "file": [path.name]}), origin, path.parent, inputs=("image",))


def _files(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the paths of all files, relative to the folder, sorted, without hidden ones and the system's own.

    Links to folders elsewhere are followed; those that lead back are not, which the notes returned say.
    """
    root, followed = folder.resolve(), set[Path]()
    found, notes = [], []
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place)
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__")))
        for link in [f for f in folders if (here / f).is_symlink()]:
            target = (here / link).resolve()
            if target in followed or target.is_relative_to(root) or root.is_relative_to(target):
                folders.remove(link)
                notes.append(f"'{here / link}' links to a folder that is read anyway, and is not followed.")
            followed.add(target)
        inside = here.relative_to(folder)
        found += [inside / name for name in sorted(names) if not name.startswith(".") and name.lower() not in SYSTEM]
    return found, notes


def _is_split(files: list[Path]) -> bool:
    """Whether the first level of folders is train, valid, test, with classes below."""
    tops = {f.parts[0].lower() for f in files if len(f.parts) > 1}
    deep = sum(len(f.parts) > 2 for f in files) > len(files) / 2
    return deep and tops <= PARTS.keys() and "train" in {PARTS[top] for top in tops}


def _with_texts(folder: Path, frame: pl.DataFrame) -> tuple[pl.DataFrame, list[SetAside]]:
    """Put what the files say in place of their paths; those that say nothing are set aside."""
    texts: list[str | None] = []
    set_aside = []
    for name in frame["file"]:
        try:
            texts.append(_decode((folder / name).read_bytes()))
            reason = "" if texts[-1] else "it is empty"
        except (OSError, ValueError) as error:
            texts.append(None)
            reason = f"it cannot be read: {error}"
        if reason:
            set_aside.append(_aside(folder, Path(name), reason))
    frame = frame.with_columns(pl.Series("text", texts, dtype=pl.String))
    return frame.filter(pl.col("text").is_not_null() & (pl.col("text") != "")), set_aside


def _decode(data: bytes) -> str:
    encoding = encoding_of([data])
    if encoding is None:
        raise ValueError("it is not text")
    return data.decode(encoding, errors="replace").removeprefix("\ufeff").strip()


def _aside(folder: Path, file: Path, reason: str) -> SetAside:
    return SetAside(where=str(folder / file), row=None, column=None, reason=reason)


def _nothing(folder: Path, origin: str, files: list[Path], tables: list[Path]) -> str:
    if tables:
        return f"Folder '{origin}' holds no images or texts by class, but a table; give '{folder / tables[0]}' itself."
    kinds = ", ".join(f"{n} {kind or 'without suffix'}" for kind, n in Counter(f.suffix for f in files).most_common(3))
    holds = f"holds {len(files)} other files ({kinds})" if files else "is empty"
    return f"Folder '{origin}' {holds}; expected images ({', '.join(IMAGES)}) or texts (.txt, .md)."
