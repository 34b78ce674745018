"""Rows that stand both in training and in test: scores flatter by them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from fathom.data import _values
from fathom.data._kinds import IMAGES


def overlaps(
    train: pl.DataFrame,
    test: pl.DataFrame,
    inputs: Sequence[str],
    folder: Path | None = None,
    test_folder: Path | None = None,
) -> np.ndarray:
    """Return the positions [M] int64, rising, of test rows whose inputs a training row has too.

    Rows are found by their hash and confirmed by comparison. Image files count as the same if their bytes are.

    Args:
        inputs: the columns that are compared; those that `test` lacks are passed over.
        folder, test_folder: where relative image paths of either table start.
    """
    names = [name for name in inputs if name in train.columns and name in test.columns]
    if not names or not len(train) or not len(test):
        return np.zeros(0, dtype=np.int64)
    left, right = [], []
    for place, name in enumerate(names):
        a, b = _alike(train[name], test[name])
        if _are_files(a) and _are_files(b):
            a, b = _contents(a, b, folder, test_folder or folder)
        left.append(a.alias(f"c{place}"))
        right.append(b.alias(f"c{place}"))
    known, asked = pl.DataFrame(left), pl.DataFrame(right)
    hashes, sought = known.hash_rows(), asked.hash_rows()
    maybe = sought.is_in(hashes.unique().implode())
    candidates = asked.with_row_index("row").filter(maybe)
    sources = known.filter(hashes.is_in(sought.filter(maybe).unique().implode()))
    found = candidates.join(sources, on=asked.columns, how="semi", nulls_equal=True)
    return np.sort(found["row"].to_numpy().astype(np.int64))


def _alike(a: pl.Series, b: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Return two columns in one type."""
    if a.dtype.is_numeric() or b.dtype.is_numeric():
        a, b = _values.numbers(a), _values.numbers(b)
        return a + 0.0, b + 0.0  # -0.0 and 0.0 are the same
    return (a, b) if a.dtype == b.dtype else (_values.labels(a), _values.labels(b))


def _are_files(texts: pl.Series) -> bool:
    if texts.dtype != pl.String:
        return False
    some = texts.drop_nulls().head(100).str.to_lowercase().to_list()
    return bool(some) and sum(text.endswith(IMAGES) for text in some) > len(some) / 2


def _contents(a: pl.Series, b: pl.Series, folder: Path | None, other: Path | None) -> tuple[pl.Series, pl.Series]:
    """Return what identifies each file: its digest if a file of the other table has its size, else its own path.

    A file that is not there is known by its path.
    """
    ours, theirs = _sizes(a, folder), _sizes(b, other)
    shared = {size for size in ours if size is not None}.intersection(theirs)
    return _digests(a, ours, shared, folder), _digests(b, theirs, shared, other)


def _sizes(paths: pl.Series, folder: Path | None) -> list[int | None]:
    return [_size(_place(path, folder)) if path is not None else None for path in paths]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _digests(paths: pl.Series, sizes: Iterable[int | None], shared: set[int], folder: Path | None) -> pl.Series:
    found = []
    for path, size in zip(paths, sizes, strict=True):
        known = path is not None and size in shared
        found.append(hashlib.sha256(_place(path, folder).read_bytes()).hexdigest() if known else path)
    return pl.Series(paths.name, found, dtype=pl.String)


def _place(path: str, folder: Path | None) -> Path:
    return Path(path) if folder is None else folder / path
