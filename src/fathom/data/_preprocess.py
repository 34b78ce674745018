"""Preprocessing: learned from the training rows, kept with the model, the same at training and at serving.

    Preprocess.fit          training rows -> what was learned, and their tensors
    Preprocess.transform    other rows -> their tensors
    Preprocess.save, load   plain JSON files

Rows are taken in slices, each written straight to its place in the tensors, so that nothing is held twice; tensors
that outgrow the memory lie in mapped files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from fathom.core.errors import ArtifactError, DataError, did_you_mean
from fathom.core.files import write_bytes, write_text
from fathom.core.types import DataSpec, Field
from fathom.data._assemble import Assembly, Prepared, TableEncoder
from fathom.data._categories import CategoryEncoder
from fathom.data._columns import Column
from fathom.data._dates import DateEncoder
from fathom.data._numbers import NumberEncoder
from fathom.data._prepare import PrepareConfig
from fathom.data._published import Vocabulary
from fathom.data._table import threads
from fathom.data._targets import TargetEncoder
from fathom.data.image import ImageEncoder
from fathom.data.text import TextEncoder, learn_together

VERSION = 1
FILE = "preprocess.json"
MOST_BYTES = 256_000_000  # of one file of a saved preprocessing


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """What was learned of each column from training rows: one encoder a column.

    Attributes:
        rows: how many training rows were kept.
        columns: the user's columns, as they were understood.
        written: of the targets those that are texts; they share their tokens with the texts that are read.
    """

    version: int
    rows: int
    memory: float
    columns: tuple[Column, ...]
    numbers: tuple[NumberEncoder, ...] = ()
    categories: tuple[CategoryEncoder, ...] = ()
    dates: tuple[DateEncoder, ...] = ()
    texts: tuple[TextEncoder, ...] = ()
    images: tuple[ImageEncoder, ...] = ()
    outcomes: tuple[TargetEncoder, ...] = ()
    written: tuple[TextEncoder, ...] = ()

    @classmethod
    def fit(
        cls,
        frame: pl.DataFrame,
        columns: Sequence[Column],
        targets: Sequence[str] = (),
        *,
        rows: np.ndarray | None = None,
        folder: Path | None = None,
        config: PrepareConfig | None = None,
        seed: int = 0,
        vocabulary: Vocabulary | None = None,
        missing: bool = False,
    ) -> tuple[Preprocess, Prepared]:
        """Learn from the training rows only, and prepare them.

        Args:
            frame: the table that holds them.
            rows: their positions [N] in it, rising; by default all. (A copy of them may not fit into memory.)
            columns: the kind of each column; identifiers and constants are left out.
            targets: names of the columns to predict.
            folder: where relative paths of images start.
            config: see `PrepareConfig`.
            seed: draws the sample that medians, quantiles, tokens and sizes are learned from.
            vocabulary: the tokens that texts are read by; otherwise each column's are learned.
            missing: keep rows that have no target, with code -1 or NaN for it; otherwise they are set aside.

        Raises:
            DataError: there is nothing to learn from, or most rows had to be set aside.
        """
        config, targets = config or PrepareConfig(), tuple(dict.fromkeys(targets))
        kinds = {column.name: column for column in columns}
        _require(frame, [*kinds, *targets])
        work = Assembly(frame, _positions(frame, rows), folder, memory=config.memory)
        asked = len(work.rows)
        if asked == 0:
            raise DataError("There is no row to learn from; the table is empty.")
        texts = [name for name in targets if kinds[name].kind == "text"]
        outcomes = tuple(
            TargetEncoder.fit(name, kinds[name].kind, work.column(name), kinds[name].format)
            for name in targets
            if name not in texts
        )
        work.add_targets(outcomes, missing=missing)
        work.require(texts)
        draft = cls(version=VERSION, rows=0, memory=config.memory, columns=tuple(columns), outcomes=outcomes)
        if texts:
            draft, vocabulary = draft._learn_written(work, texts, config, seed, vocabulary)
        draft = replace(
            draft,
            images=tuple(
                ImageEncoder.fit(
                    c.name,
                    frame.get_column(c.name),
                    work.rows[_drawn(len(work.rows), config.sample, seed)],
                    folder,
                    config.image_size,
                    config.image_colour,
                    config.image_fit,
                )
                for c in draft._inputs("image")
            ),
        )
        work.add_images(draft.images)
        if len(work.rows) < asked / 2:
            first = work.set_aside[0]
            unlabelled = draft.images and first.column in {o.column for o in outcomes if o.kind == "category"}
            hint = " Images without one are learned from by '--objective consistency'." if unlabelled else ""
            raise DataError(
                f"Most rows ({len(work.set_aside)} of {asked}) cannot be learned from; the first: row "
                f"{first.row}: {first.reason}.{hint}"
            )
        draft = draft._learn(work, config, seed, vocabulary)
        if not draft.spec.inputs:
            raise DataError("No column is left to learn from: all are targets, identifiers or constants.")
        work.add_table(draft.table)
        work.add_texts(draft.texts)
        work.add_texts(draft.written, targets=True)
        return draft._measured(work), work.prepared()

    def transform(
        self,
        frame: pl.DataFrame,
        *,
        rows: np.ndarray | None = None,
        folder: Path | None = None,
        with_targets: bool = False,
        unseen: bool = False,
        paths: bool = True,
    ) -> Prepared:
        """Prepare other rows in the same way; columns may stand in any order, others may stand beside them.

        Args:
            rows: positions [N] in the frame, rising; by default all.
            folder: where relative paths of images start.
            with_targets: also prepare the targets, and set aside the rows that have none.
            unseen: keep rows whose class no training row has, with code -1: to evaluate on, where no prediction of
                them is right, not to take a loss of. Otherwise they are set aside, too.
            paths: whether images may be given as paths. Not in a server: a path may name any file.

        Raises:
            DataError: columns are missing; the message names them.
        """
        _require(frame, self.inputs)
        if with_targets:
            _require(frame, self.targets)
        work = Assembly(frame, _positions(frame, rows), folder, paths, self.memory)
        if with_targets:
            work.add_targets(self.outcomes, unseen)
            work.require([encoder.column for encoder in self.written])
        work.add_images(self.images)
        if with_targets:
            work.count_unseen(self.outcomes)
        work.add_table(self.table)
        work.add_texts(self.texts)
        if with_targets:
            work.add_texts(self.written, targets=True)
        return work.prepared()

    @property
    def targets(self) -> tuple[str, ...]:
        return (*(encoder.column for encoder in self.outcomes), *(encoder.column for encoder in self.written))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that rows to predict for must have."""
        every = (self.numbers, self.categories, self.dates, self.texts, self.images)
        return tuple(encoder.column for encoders in every for encoder in encoders)

    @property
    def text_columns(self) -> frozenset[str]:
        """The columns that a CSV file is to be read as text, so that what was learned decides what their cells mean.

        All but plain numbers: "1.0" may be a class, and "1.234" a thousand.
        """
        plain = {e.column for e in self.numbers if e.format != ","}
        plain |= {e.column for e in self.outcomes if e.kind == "number" and e.format != ","}
        return frozenset({*self.inputs, *self.targets} - plain)

    @cached_property
    def table(self) -> tuple[TableEncoder, ...]:
        """The encoders of number and category tensors, in the order of the user's columns."""
        place = {column.name: index for index, column in enumerate(self.columns)}
        found: tuple[TableEncoder, ...] = (*self.numbers, *self.categories, *self.dates)
        return tuple(sorted(found, key=lambda encoder: place[encoder.column]))

    @cached_property
    def spec(self) -> DataSpec:
        fields = [f for encoder in self.table for f in encoder.fields]
        fields += [encoder.output for encoder in self.texts] + [encoder.output for encoder in self.images]
        return DataSpec(
            inputs=_distinct(fields),
            targets=(*(encoder.output for encoder in self.outcomes), *(encoder.output for encoder in self.written)),
            rows=self.rows,
        )

    def save(self, folder: Path) -> None:
        """Write `preprocess.json` and a `tokenizer-N.json` for each text column."""
        named = []
        for index, encoder in enumerate((*self.texts, *self.written)):
            write_text(folder / _tokenizer_file(index), encoder.tokenizer)
            named.append(replace(encoder, tokenizer=_tokenizer_file(index)))
        plain = replace(self, texts=tuple(named[: len(self.texts)]), written=tuple(named[len(self.texts) :]))
        write_bytes(folder / FILE, msgspec.json.format(msgspec.json.encode(plain), indent=1))

    @classmethod
    def load(cls, folder: Path) -> Preprocess:
        """Read what `save` wrote. Nothing in the files is run.

        Raises:
            ArtifactError: a file is missing, damaged or of another version.
        """
        path = folder / FILE
        try:
            found = msgspec.json.decode(_read(path), type=cls)
            if found.version != VERSION:
                raise ValueError(f"it is of version {found.version}, this Fathom reads version {VERSION}")
            named = []
            for index, encoder in enumerate((*found.texts, *found.written)):
                path = folder / _tokenizer_file(index)
                named.append(replace(encoder, tokenizer=_read(path).decode("utf-8")))
            path, read = folder / FILE, len(found.texts)
            return replace(found, texts=tuple(named[:read]), written=tuple(named[read:]))._checked()
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise ArtifactError(f"'{path}' is damaged: {error}.") from None

    def _inputs(self, *kinds: str) -> list[Column]:
        return [c for c in self.columns if c.kind in kinds and c.name not in self.targets]

    def _learn_written(
        self, work: Assembly, names: Sequence[str], config: PrepareConfig, seed: int, known: Vocabulary | None
    ) -> tuple[Preprocess, Vocabulary]:
        """Return this with the encoders of texts to write, and the tokens that they share with those to read."""
        sample = _drawn(len(work.rows), config.sample, seed)
        read = [c.name for c in self._inputs("text") if c.name not in names]
        if known is None:
            columns = [work.column(name) for name in (*read, *names)]
            known = learn_together(columns, sample, config.vocabulary, config.text_case)
        written = tuple(
            TextEncoder.fit(
                name, work.column(name), sample, config.vocabulary, config.text_case, config.text_length, known
            )
            for name in names
        )
        return replace(self, written=written), known

    def _learn(self, work: Assembly, config: PrepareConfig, seed: int, known: Vocabulary | None) -> Preprocess:
        """Return this with the encoders of numbers, categories, dates and texts, learned from the rows kept."""
        sample = _drawn(len(work.rows), config.sample, seed)

        def learn(column: Column) -> Any:
            series = work.column(column.name)
            if column.kind == "number":
                return NumberEncoder.fit(column.name, series, sample, config.numbers, column.format)
            if column.kind == "datetime":
                return DateEncoder.fit(column.name, series, sample, column.format)
            return CategoryEncoder.fit(column.name, series, column.kind == "boolean", config.max_classes)

        with ThreadPoolExecutor(threads()) as pool:
            found = list(pool.map(learn, self._inputs("number", "datetime", "category", "boolean")))
        texts = tuple(
            TextEncoder.fit(
                c.name, work.column(c.name), sample, config.vocabulary, config.text_case, config.text_length, known
            )
            for c in self._inputs("text")
        )
        return replace(
            self,
            numbers=tuple(e for e in found if isinstance(e, NumberEncoder)),
            categories=tuple(e for e in found if isinstance(e, CategoryEncoder)),
            dates=tuple(e for e in found if isinstance(e, DateEncoder)),
            texts=texts,
        )

    def _measured(self, work: Assembly) -> Preprocess:
        """Return this with the statistics that are taken from finished tensors."""
        return replace(
            self,
            rows=len(work.rows),
            outcomes=tuple(e.measured(work.tensors[e.output.target_key].numpy()) for e in self.outcomes),
            texts=tuple(e.measured(work.tensors[e.output.key].numpy()) for e in self.texts),
            written=tuple(e.measured(work.tensors[e.output.target_key].numpy()) for e in self.written),
            images=tuple(e.measured(work.tensors[e.output.key].numpy()) for e in self.images),
        )

    def _checked(self) -> Preprocess:
        """Return this, if its parts agree with one another; else a ValueError says what does not."""
        known = {column.name for column in self.columns}
        used = [*self.inputs, *self.targets]
        if len(set(used)) != len(used) or not known.issuperset(used):
            raise ValueError("a column has no description, or two encoders")
        if not 0 <= self.memory < math.inf or self.rows < 0:
            raise ValueError("memory and rows are not negative")
        for field in (*self.spec.inputs, *self.spec.targets):  # builds every tokenizer, which checks it
            if len(field.frequencies) not in (0, field.vocabulary):
                raise ValueError(f"column '{field.name}' has {len(field.frequencies)} frequencies of tokens")
            if len(field.bytes) not in (0, field.vocabulary):
                raise ValueError(f"column '{field.name}' has {len(field.bytes)} sizes of tokens")
            if len(field.occurrences) not in (0, field.vocabulary) or min(field.occurrences, default=0) < 0:
                raise ValueError(f"column '{field.name}' has {len(field.occurrences)} counts of tokens, or odd ones")
        return self


def _positions(frame: pl.DataFrame, rows: np.ndarray | None) -> np.ndarray:
    return np.arange(len(frame)) if rows is None else rows


def _require(frame: pl.DataFrame, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in frame.columns]
    if missing:
        listed = ", ".join(f"'{name}'" for name in missing[:12]) + (", …" if len(missing) > 12 else "")
        hint = did_you_mean(missing[0], frame.columns)
        plural = "columns" if len(missing) > 1 else "column"
        raise DataError(f"The table lacks the {plural} {listed}, which the model needs.{hint}")


def _drawn(rows: int, most: int, seed: int) -> np.ndarray:
    """Return rising positions of at most `most` rows."""
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _distinct(fields: Sequence[Field]) -> tuple[Field, ...]:
    """Return the fields; a derived one (`when.month`) that is named like a column of the user's gets a mark."""
    taken = {f.name for f in fields if f.name == f.source}
    result = []
    for one in fields:
        name = one.name
        while one.name != one.source and name in taken:
            name += "'"
        taken.add(name)
        result.append(replace(one, name=name))
    return tuple(result)


def _tokenizer_file(index: int) -> str:
    return f"tokenizer-{index}.json"


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ArtifactError(f"'{path}' has {path.stat().st_size:,} bytes; the most is {MOST_BYTES:,}.")
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"'{path}' cannot be read: {error.strerror}.") from None
