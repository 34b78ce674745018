"""Rows of a frame on their way to tensors: which are kept, and where each encoder writes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
import torch
from torch import Tensor

from fathom.core.types import Field
from fathom.data._store import TensorStore
from fathom.data._table import SetAside, threads
from fathom.data._targets import TargetEncoder
from fathom.data._tensors import Shapes, allocate
from fathom.data._values import labels
from fathom.data.image import ImageEncoder
from fathom.data.text import TextEncoder

SLICE = 131_072  # rows written at once


class TableEncoder(Protocol):
    """What number, category and date columns have in common."""

    @property
    def column(self) -> str: ...

    @property
    def fields(self) -> tuple[Field, ...]: ...

    @property
    def blemish(self) -> str:
        """What is said of values that could not be understood: "12 values …"."""
        ...

    def encode(self, series: pl.Series, number: np.ndarray, category: np.ndarray) -> int:
        """Write this column's part of both tensors, [N, its numbers] and [N, its categories].

        Return how many values could not be understood."""
        ...


@dataclass
class Prepared:
    """Rows as tensors.

    Attributes:
        store: the tensors of a batch's keys.
        rows: positions [N] in the given frame of the rows kept, rising.
        set_aside: the other rows that were asked for, counted from 1 in the given frame, each with its reason.
        unseen: by category target, how many rows were kept whose class no training row has; their code is -1.
        notes: what was done to values that the user may not expect, one sentence each.
    """

    store: TensorStore
    rows: np.ndarray
    set_aside: tuple[SetAside, ...] = ()
    notes: tuple[str, ...] = ()
    unseen: dict[str, int] = field(default_factory=dict)


@dataclass
class Assembly:
    """A frame's rows being prepared: targets first and images next, for they decide which rows are kept.

    Attributes:
        rows: positions [N] in the frame, rising, of the rows still kept.
    """

    frame: pl.DataFrame
    rows: np.ndarray
    folder: Path | None = None
    paths: bool = True
    memory: float = 0.0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    set_aside: list[SetAside] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unseen: dict[str, int] = field(default_factory=dict)

    def column(self, name: str) -> pl.Series:
        """Return the kept rows of a column."""
        series = self.frame.get_column(name)
        return series if len(self.rows) == len(series) else series.gather(self.rows)

    def add_targets(self, encoders: Sequence[TargetEncoder], unseen: bool = False, missing: bool = False) -> None:
        """Write the targets, and set aside the rows without one: also those of unseen classes, unless asked for.

        With `missing`, rows without one are kept, their code -1, their number NaN.
        """
        kept = np.ones(len(self.rows), dtype=bool)
        found = []
        for encoder in encoders:
            series = self.column(encoder.column)
            values, gaps = encoder.encode(series, unseen)
            found.append((encoder.output.target_key, values))
            if missing:
                count = int(gaps.sum())
                if count:
                    self.notes.append(f"{count:,} rows have no '{encoder.column}'; they are learned from without it.")
                continue
            for place in np.flatnonzero(gaps & kept).tolist():
                self._reject(int(self.rows[place]), encoder.column, encoder.reason(series[place]))
            kept &= ~gaps
        self.rows = self.rows[kept]
        for key, values in found:
            self.tensors[key] = torch.from_numpy(values[kept])

    def require(self, names: Sequence[str]) -> None:
        """Set aside the rows that have no text to write in one of these columns."""
        for name in names:
            gaps = (labels(self.column(name)).fill_null("").str.strip_chars() == "").to_numpy()
            for row in self.rows[gaps].tolist():
                self._reject(row, name, f"target '{name}' is missing")
            self.rows = self.rows[~gaps]
            self.tensors = {key: tensor[torch.from_numpy(~gaps)] for key, tensor in self.tensors.items()}

    def count_unseen(self, encoders: Sequence[TargetEncoder]) -> None:
        """Count the kept rows whose class is none of a target's own, once it is known which rows are kept."""
        for encoder in encoders:
            count = int((self.tensors[encoder.output.target_key] < 0).sum()) if encoder.kind == "category" else 0
            if count:
                self.unseen[encoder.column] = count
                rows = "row is" if count == 1 else "rows are"
                self.notes.append(f"Target '{encoder.column}': {count:,} {rows} of a class that no training row has.")

    def add_images(self, encoders: Sequence[ImageEncoder]) -> None:
        if not encoders:
            return
        self._allocate({e.output.key: ((len(self.rows), *e.output.shape), torch.uint8) for e in encoders})
        kept = np.ones(len(self.rows), dtype=bool)
        for encoder in encoders:
            series = self.frame.get_column(encoder.column)
            pixels = self.tensors[encoder.output.key].numpy()
            for place, reason in encoder.encode(series, self.rows, pixels, self.folder, self.paths).items():
                if kept[place]:
                    self._reject(int(self.rows[place]), encoder.column, reason)
                kept[place] = False
        if not kept.all():
            places = np.flatnonzero(kept)
            self.tensors = {key: _compact(tensor, places) for key, tensor in self.tensors.items()}
            self.rows = self.rows[places]

    def add_table(self, encoders: Sequence[TableEncoder]) -> None:
        """Write the tensors `number` and `category`, slice by slice."""
        widths = [[sum(f.kind == kind for f in e.fields) for kind in ("number", "category")] for e in encoders]
        ends = [(0, 0), *accumulate(widths, lambda a, b: (a[0] + b[0], a[1] + b[1]), initial=(0, 0))][1:]
        numbers, categories = ends[-1]
        self._allocate(
            {
                "number": ((len(self.rows), numbers), torch.float32),
                "category": ((len(self.rows), categories), torch.int32),
            }
        )
        number, category = self.tensors["number"].numpy(), self.tensors["category"].numpy()

        def write(start: int) -> list[int]:
            part = slice(start, start + SLICE)
            rows = len(self.rows[part])
            # A column is written whole, and laid beside the others at once: one number a row at a time is slow.
            n, c = np.empty((numbers, rows), np.float32).T, np.empty((categories, rows), np.int32).T
            counts = [
                encoder.encode(self._slice(encoder.column, part), n[:, a:b], c[:, i:j])
                for encoder, (a, i), (b, j) in zip(encoders, ends, ends[1:], strict=False)
            ]
            number[part], category[part] = n, c
            return counts

        starts = range(0, len(self.rows), SLICE)
        if len(starts) > 1:
            with ThreadPoolExecutor(threads()) as pool:
                counted = list(pool.map(write, starts))
        else:
            counted = [write(start) for start in starts]
        unknown = [sum(counts) for counts in zip(*counted, strict=True)]
        for encoder, count in zip(encoders, unknown, strict=False):
            if count:
                self.notes.append(f"Column '{encoder.column}': {count:,} values {encoder.blemish}.")
        for key in ("number", "category"):
            if self.tensors[key].shape[1] == 0:
                del self.tensors[key]

    def add_texts(self, encoders: Sequence[TextEncoder], targets: bool = False) -> None:
        keys = [e.output.target_key if targets else e.output.key for e in encoders]
        self._allocate({key: ((len(self.rows), e.length), torch.int32) for key, e in zip(keys, encoders, strict=True)})
        for key, encoder in zip(keys, encoders, strict=True):
            tokens = self.tensors[key].numpy()
            parts = [slice(start, start + SLICE) for start in range(0, len(self.rows), SLICE)]
            cut = sum(encoder.encode(self._slice(encoder.column, part), tokens[part]) for part in parts)
            if cut:
                self.notes.append(f"Column '{encoder.column}': {cut:,} texts are cut at {encoder.length} tokens.")

    def prepared(self) -> Prepared:
        set_aside = tuple(sorted(self.set_aside, key=lambda one: one.row or 0))
        return Prepared(TensorStore(self.tensors), self.rows, set_aside, tuple(self.notes), self.unseen)

    def _slice(self, name: str, part: slice) -> pl.Series:
        series = self.frame.get_column(name)
        if len(self.rows) == len(series):
            return series.slice(part.start, SLICE)
        return series.gather(self.rows[part])

    def _allocate(self, shapes: Shapes) -> None:
        self.tensors.update(allocate(shapes, self.memory))

    def _reject(self, row: int, column: str, reason: str) -> None:
        self.set_aside.append(SetAside("the table", row + 1, column, reason, unit="row"))


def _compact(tensor: Tensor, places: np.ndarray) -> Tensor:
    """Move the entries at rising `places` to the front, in the tensor's own memory, and return them."""
    index = torch.from_numpy(places)
    for start in range(0, len(index), SLICE):
        some = index[start : start + SLICE]
        tensor[start : start + len(some)] = tensor[some]
    return tensor[: len(index)]
