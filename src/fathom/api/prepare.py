"""From a source to tensors ready to train on: read, name the columns, split, fit the preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
import torch

from fathom.api.config import DataConfig, Settings
from fathom.api.look import describe_set_aside
from fathom.core.config import as_dict, build
from fathom.core.errors import DataError, did_you_mean
from fathom.core.types import IMBALANCE, Store
from fathom.data import (
    Column,
    Picked,
    PrepareConfig,
    Prepared,
    Preprocess,
    SetAside,
    Split,
    SplitConfig,
    Table,
    TensorStore,
    Vocabulary,
    infer,
    overlaps,
    read,
    split,
)

SMALL = 5_000  # rows of a table below which none are kept back to validate
ROWS_AT_ONCE = 1_000_000  # of a table that may lie in a mapped file


@dataclass(frozen=True)
class Part:
    """Rows for one purpose: as the user gave them, and as tensors (of the rows that could be used)."""

    table: Table
    prepared: Prepared

    def rows(self, columns: Sequence[str]) -> pl.DataFrame:
        """Return some columns of the user's rows that became tensors, in the tensors' order."""
        return self.table.frame[self.prepared.rows, list(columns)]


@dataclass(frozen=True)
class Material:
    """Everything that training and evaluation need of the data, and what the user should be told of it.

    Attributes:
        overlap: how many test rows also stand in the training rows.
        settings: the complete options of the groups data, split and prepare.
        repeats: how often a row with a target stands in an epoch, where others have none; None: all have one.
    """

    table: Table
    columns: tuple[Column, ...]
    preprocess: Preprocess
    train: Part
    valid: Part | None
    test: Part | None
    set_aside: tuple[SetAside, ...]
    overlap: int
    how_split: str
    settings: dict[str, dict[str, Any]]
    notes: tuple[str, ...] = field(default=())
    repeats: Callable[[int, int], int] | None = None

    @property
    def judge(self) -> tuple[str, Part]:
        """The rows that the model is judged by, and their name: test rows where there are any."""
        if self.test is not None:
            return "test", self.test
        if self.valid is not None:
            return "validation", self.valid
        return "training", self.train

    @property
    def learned(self) -> Store:
        """The training rows as they are learned from: where only few have a target, these stand several times."""
        store, known = self.train.prepared.store, self._labelled
        if self.repeats is None or len(known) in (0, len(store)):
            return store
        times = self.repeats(len(known), len(store))
        return Picked(store, torch.cat([torch.arange(len(store)), torch.from_numpy(known).repeat(times - 1)]))

    @property
    def labelled(self) -> Part:
        """The training rows that have a target."""
        part, known = self.train, self._labelled
        if len(known) == len(part.prepared.rows):
            return part
        store = TensorStore(part.prepared.store.gather(torch.from_numpy(known)))
        return Part(part.table, replace(part.prepared, store=store, rows=part.prepared.rows[known]))

    @property
    def _labelled(self) -> np.ndarray:
        """Positions among the training rows of those whose target is known."""
        known = np.ones(len(self.train.prepared.rows), dtype=bool)
        for target in self.preprocess.spec.targets if self.repeats is not None else ():
            values = self.train.prepared.store.columns[target.target_key].numpy()
            known &= values >= 0 if target.kind == "category" else np.isfinite(values)
        return np.flatnonzero(known)

    def told(self) -> Iterator[str]:
        """Yield what the user should know before training starts."""
        parts = {"train on": self.train, "validate": self.valid, "test": self.test}
        sizes = ", ".join(f"{len(part.prepared.rows):,} to {name}" for name, part in parts.items() if part)
        yield f"data: {self.table.origin}, {sizes} ({self.how_split})"
        yield from self.notes
        for kind, why in (("identifier", "identifies rows"), ("constant", "is always the same")):
            names = [c.name for c in self.columns if c.kind == kind and c.name not in self.preprocess.targets]
            if names:
                yield f"left out: {', '.join(names)} ({why})"
        for target in self.preprocess.spec.targets:
            if target.counts and max(target.counts) > IMBALANCE * max(1, min(target.counts)):
                rarest, commonest = min(target.counts), max(target.counts)
                yield f"'{target.name}' is imbalanced: classes have {rarest:,} to {commonest:,} rows; they are weighted"
        if self.overlap:
            yield f"warning: {self.overlap:,} test rows also stand in the training rows; scores flatter by them"
        yield from describe_set_aside([as_dict(row) for row in self.set_aside])


def prepare(
    source: Any,
    test: Any,
    settings: Settings,
    seed: int,
    words: Vocabulary | None = None,
    use: str = "needed",
    trained: bool = False,
    repeats: Callable[[int, int], int] | None = None,
    lacking: str = "",
) -> Material:
    """Return the material of one run.

    Args:
        source: path, frame, rows or sample name; test: the same, or None.
        settings: the user's options; the groups data, split and prepare are read.
        words: the tokens that texts are read by; otherwise they are learned.
        use: of targets by the objective: "needed", "optional" or "unused"; an unused one is no input either.
        trained: whether the network begins with trained weights, and so is moved by a fixed number of steps.
        repeats: of an objective that also learns from rows without a target: how often a row with one stands in an
            epoch, given how many have one and how many rows there are. Otherwise rows without one are set aside.
        lacking: beginning of what is said where there are too few columns: what the objective needs.

    Raises:
        DataError, ConfigError: naming file, row, column or option.
    """
    table = read(source)
    config = build(DataConfig, settings.of("data"), "data")
    named = config.target or table.target
    targets = () if use == "unused" else named
    if use == "needed" and not targets:
        raise DataError(
            _few(lacking, table.frame.columns)
            or f"Which column of {table.origin} shall be predicted? Name it with --target (or target=…). "
            f"Columns: {', '.join(table.frame.columns[:20])}."
        )
    tested = None if test is None else read(test, text=table.text_columns)
    dividing = _split_config(settings, table, tested is not None)
    inputs = _inputs(table, config, named, dividing)
    if lacking and not inputs:
        raise DataError(_few(lacking, table.frame.columns))
    judged = bool(targets)  # whether test rows of a class never seen are worth keeping
    columns = tuple(
        column
        for column in infer(table.frame, targets, config.kinds, table.folder, table.decimal)
        if column.name in inputs or column.name in targets
    )
    dividing = _spare(dividing, columns, targets, len(table.frame), settings, trained)
    parts = split(table.frame, columns, targets, dividing, seed)
    if repeats is not None:
        parts = _all_unlabelled_train(parts, table.frame, targets, dividing)
    preparing = build(PrepareConfig, settings.of("prepare"), "prepare")
    preprocess, prepared = Preprocess.fit(
        table.frame,
        columns,
        targets,
        rows=parts.train,
        folder=table.folder,
        config=preparing,
        seed=seed,
        vocabulary=words,
        missing=repeats is not None,
    )
    train = Part(table, prepared)
    valid = _part(table, preprocess, parts.valid) if len(parts.valid) else None
    if tested is not None:
        judge: Part | None = _part(tested, preprocess, unseen=judged)
    else:
        judge = _part(table, preprocess, parts.test, unseen=judged) if len(parts.test) else None
    return Material(
        table=table,
        columns=columns,
        preprocess=preprocess,
        train=train,
        valid=valid,
        test=judge,
        set_aside=_set_aside(table, tested, train, valid, judge),
        overlap=_overlap(train, judge, columns, targets),
        how_split=_how_split(dividing, tested is not None),
        settings={
            "data": as_dict(replace(config, target=named)),
            "split": as_dict(dividing),
            "prepare": as_dict(preparing),
        },
        notes=_notes(table, tested, train, valid, judge),
        repeats=repeats,
    )


def _few(lacking: str, columns: Sequence[str]) -> str:
    """Return what is said of a table with too few columns, or without one that is named as the target; "" of an
    objective that needs none in particular."""
    if not lacking:
        return ""
    count = {0: "none", 1: "one"}.get(len(columns), f"{len(columns)}")
    named = "" if len(columns) < 2 else "; name the target with --target (or target=…)"
    return f"{lacking}; found {count}: {', '.join(columns[:20])}{named}."


def _split_config(settings: Settings, table: Table, tested: bool) -> SplitConfig:
    """Follow the table's own column of parts unless told otherwise; keep no test rows back where others are given."""
    config = build(SplitConfig, settings.of("split"), "split")
    if table.split and not (config.column or config.group or config.time):
        config = replace(config, column=table.split)
    return replace(config, test=0.0) if tested else config


def _spare(
    config: SplitConfig,
    columns: tuple[Column, ...],
    targets: tuple[str, ...],
    rows: int,
    settings: Settings,
    trained: bool,
) -> SplitConfig:
    """Keep no validation rows back from few rows, unless the user's options make use of them.

    A few rows choose the best state badly, and are missed in training: the recipe for small tables averages the
    weights of a fixed number of epochs instead, and that for trained networks lets the rate fall to nothing. Texts and
    images to learn from anew need so many steps that they overfit, and so are validated.
    """
    engine = settings.of("engine")
    asked = config.valid is not None or config.column or engine.get("patience") or engine.get("keep") == "best"
    kinds = {column.kind for column in columns if column.name not in targets}
    if asked or rows >= SMALL or (kinds & {"text", "image"} and not trained):
        return config
    return replace(config, valid=0.0)


def _all_unlabelled_train(parts: Split, frame: pl.DataFrame, targets: Sequence[str], config: SplitConfig) -> Split:
    """Return the parts with all rows that lack a target to train on: nothing can be chosen or judged by them. Those
    that a column marks as test stay there, and are set aside."""
    lacking = pl.any_horizontal(pl.col(name).is_null() | (pl.col(name).cast(pl.String) == "") for name in targets)
    unknown = frame.select(lacking).to_series().fill_null(True).to_numpy()
    moved = [parts.valid[unknown[parts.valid]]]
    test = parts.test
    if not config.column:
        moved.append(test[unknown[test]])
        test = test[~unknown[test]]
    train = np.sort(np.concatenate([parts.train, *moved]))
    return Split(train=train, valid=parts.valid[~unknown[parts.valid]], test=test)


def _how_split(config: SplitConfig, tested: bool) -> str:
    ways = (("column", config.column), ("group", config.group), ("time", config.time))
    how = next((f"by {way} '{name}'" for way, name in ways if name), "at random, stratified")
    return f"{how}; tested on a source of its own" if tested else how


def _inputs(table: Table, config: DataConfig, targets: tuple[str, ...], dividing: SplitConfig) -> set[str]:
    """Return the columns to predict from: never a target, nor the column that says which rows are for what."""
    known = table.frame.columns
    for name in (*config.inputs, *config.drop):
        if name not in known:
            raise DataError(f"There is no column '{name}'.{did_you_mean(name, known)}")
    chosen = config.inputs or table.inputs
    if not chosen:
        chosen = tuple(name for name in known if name not in (table.split, dividing.column, dividing.group))
    return set(chosen) - {*config.drop, *targets}


def _part(table: Table, preprocess: Preprocess, rows: np.ndarray | None = None, unseen: bool = False) -> Part:
    """Prepare rows to validate or, with those of `unseen` classes, to test on."""
    prepared = preprocess.transform(
        table.frame, rows=rows, folder=table.folder, with_targets=bool(preprocess.targets), unseen=unseen
    )
    part = Part(table, prepared)
    if not len(part.prepared.rows) and part.prepared.set_aside:
        count, why = len(part.prepared.set_aside), part.prepared.set_aside[0].reason
        raise DataError(
            f"None of {count:,} rows of {table.origin} to judge the model by can be used; the first: {why}."
        )
    return part


def _set_aside(table: Table, tested: Table | None, *parts: Part | None) -> tuple[SetAside, ...]:
    """Return the rows that reading and preparing left out, each with the name of its own table."""
    found = [*table.set_aside, *(tested.set_aside if tested else ())]
    for part in parts:
        if part is not None:
            found += [replace(row, where=part.table.origin) for row in part.prepared.set_aside]
    return tuple(found)


def _notes(table: Table, tested: Table | None, *parts: Part | None) -> tuple[str, ...]:
    notes = [*table.notes, *(tested.notes if tested else ())]
    for name, part in zip(("Training", "Validation", "Test"), parts, strict=True):
        notes += [f"{name} rows: {note}" for note in part.prepared.notes] if part else []
    return tuple(notes)


def _overlap(train: Part, test: Part | None, columns: tuple[Column, ...], targets: tuple[str, ...]) -> int:
    """Return how many test rows also stand in the training rows, of which it looks at some at a time."""
    if test is None:
        return 0
    inputs = [c.name for c in columns if c.name not in targets and c.kind not in ("identifier", "constant")]
    asked = test.rows(inputs)
    found: set[int] = set()
    for start in range(0, len(train.prepared.rows), ROWS_AT_ONCE):
        known = train.table.frame.select(inputs)[train.prepared.rows[start : start + ROWS_AT_ONCE]]
        found |= set(overlaps(known, asked, inputs, train.table.folder, test.table.folder).tolist())
    return len(found)
