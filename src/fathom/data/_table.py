"""A table as read: a polars frame, where it came from, and what was set aside on the way."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl


@dataclass(frozen=True)
class SetAside:
    """A row or cell that could not be used, and why. Nothing is ever left out without one of these.

    Attributes:
        where: the file or table.
        row: counted from 1; None where the whole file is meant.
        column: the column's name, or None where the whole row is meant.
        reason: a clause such as "it has 5 fields instead of 4".
        unit: what `row` counts: the lines of a text file, header and all, or the rows of the table that was read.
    """

    where: str
    row: int | None
    column: str | None
    reason: str
    unit: Literal["line", "row"] = "line"

    @property
    def place(self) -> str:
        """Where it is, in words: "cars.csv, line 43"."""
        return self.where if self.row is None else f"{self.where}, {self.unit} {self.row:,}"


@dataclass
class Table:
    """What `read` returns.

    Attributes:
        frame: N rows; names are stripped and distinct, cells are stripped, words for "missing" are null, numbers
            are finite.
        origin: the path or a name for it, as messages show it.
        folder: what the image paths in the frame are relative to, or None.
        set_aside: broken rows.
        target: the columns that are predicted unless the user says otherwise.
        split: the column that says train, valid or test unless the user says otherwise.
        inputs: the columns to predict from unless the user says otherwise, or () for all that are left.
        notes: sentences for the user, such as "It is read as Windows-1252."
        decimal: the decimal sign of numbers in text that leave it open, "." or ",".
    """

    frame: pl.DataFrame
    origin: str
    folder: Path | None = None
    set_aside: tuple[SetAside, ...] = field(default=())
    target: tuple[str, ...] = ()
    split: str | None = None
    inputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    decimal: str = "."

    @property
    def text_columns(self) -> frozenset[str]:
        """The columns that another file of the same kind is to be read as text; see `read`."""
        return frozenset(name for name, dtype in self.frame.schema.items() if dtype == pl.String)


def threads() -> int:
    """Return how many columns are worked on at a time."""
    return min(4, os.cpu_count() or 1)
