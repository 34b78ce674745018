"""Whatever a user may call data, as a table."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import polars as pl

from fathom.core.errors import DataError, did_you_mean
from fathom.data import _samples, folders, tabular
from fathom.data._table import Table


def read(source: Any, limit: int | None = None, text: Collection[str] = ()) -> Table:
    """Return the data that `source` stands for.

    Args:
        source: a path (CSV or other delimited text, gzipped or not, Parquet, JSON lines, an image, a folder of
            images or texts, by class or to predict for), the name of a bundled sample, a polars or pandas frame, a
            list of dicts, or a dict of columns. A path that exists comes before a sample of the same name.
        limit: bytes beyond which a file is mapped into memory instead of held there; by default a quarter of what is
            free.
        text: names of columns of a CSV file that stay text, whatever their cells look like. A type that is told from
            the cells differs between tables: rows to predict for are read with `Preprocess.text_columns`.

    Raises:
        DataError: there is no such thing, or it cannot be read; the message names the file and row.
    """
    if isinstance(source, Table):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _read_path(os.fspath(source), limit, text)
    if isinstance(source, (pl.DataFrame, pl.LazyFrame)) or (hasattr(source, "iloc") and hasattr(source, "columns")):
        return tabular.read_frame(source)
    if isinstance(source, Mapping):
        return tabular.read_columns(source)
    if isinstance(source, Sequence) and not isinstance(source, (bytes, bytearray)):
        return tabular.read_rows(source)
    raise DataError(
        f"Data of type {type(source).__name__} cannot be read; expected a path, the name of a sample, a polars or "
        "pandas frame, a list of dicts or a dict of columns."
    )


def _read_path(given: str, limit: int | None, text: Collection[str]) -> Table:
    path = Path(given).expanduser()
    is_sample = given in _samples.names()
    if path.exists():
        if path.is_dir():
            table = folders.read_folder(path, given)
        elif folders.is_image(path):
            table = folders.read_image(path, given)
        else:
            table = tabular.read_file(path, given, limit, text)
        if is_sample:
            table.notes = (*table.notes, f"'{given}' is also a bundled sample; the path of that name is read.")
        return table
    if is_sample:
        return _read_sample(_samples.find(given), limit, text)
    raise DataError(_missing(given, path))


def _read_sample(sample: _samples.Sample, limit: int | None, text: Collection[str]) -> Table:
    table = tabular.read_file(sample.path, sample.name, limit, text)
    table.target, table.split, table.inputs = sample.target, sample.split, sample.inputs
    return table


def _missing(given: str, path: Path) -> str:
    """Say that there is no such file, and what is nearest to it: a file beside it, or a sample."""
    if path.suffix or len(path.parts) > 1:
        if not path.parent.is_dir():
            return f"There is no folder '{path.parent}', and so no '{given}'."
        beside = [p.name for p in path.parent.iterdir() if not p.name.startswith(".")]
        close = get_close_matches(path.name, beside, n=1, cutoff=0.6)
        hint = f" Did you mean '{path.parent / close[0]}'?" if close else ""
        return f"There is no file '{given}'.{hint}"
    beside = [p.name for p in Path().iterdir() if not p.name.startswith(".")]
    close = get_close_matches(given, [*beside, *_samples.names()], n=1, cutoff=0.6)
    hint = (
        f" Did you mean '{close[0]}'?" if close else did_you_mean(given, _samples.names()).replace("Known", "Samples")
    )
    return f"There is no file, folder or sample '{given}'.{hint}"
