"""Where rows lie among others, by a trained model; and which of several texts fits an image.

embed      rows -> a table with a vector for each
match      images and captions -> how probable each caption is for each image
recalled   rows and their vectors -> how often the nearest is of the same class
vectors    such a table -> an array
write      such a table -> a file, a .npy array among them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fathom.api.look import places, write_table
from fathom.artifact import Artifact, answers, frame_of
from fathom.core.errors import ConfigError, DataError, did_you_mean
from fathom.core.files import replacing
from fathom.core.objective import with_role
from fathom.core.roles import Matcher
from fathom.core.types import Batch, Field
from fathom.data import Table
from fathom.evaluate import recall

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

PREFIX = "embedding."


def embed(artifact: Artifact, table: Table, notes: list[str]) -> pl.DataFrame:
    """Return a row for each row of the table: where it stands in its source, `embedding.0`, … and perhaps `problem`."""
    found = artifact.embed(_completed(artifact, table), folder=table.folder, tell=notes.append)
    return found.with_columns(places(table))


def match(artifact: Artifact, table: Table, captions: Sequence[str], notes: list[str]) -> pl.DataFrame:
    """Return for each image the caption that fits best (`prediction`), and how probable each is.

    Raises:
        ConfigError: the model was not trained on images with captions, or fewer than two captions are given.
    """
    import polars as pl

    module, preprocess = with_role(artifact.module, Matcher), artifact.preprocess
    if not (module is not None and artifact.spec.images and preprocess.texts):
        raise ConfigError(
            "This model cannot tell which caption fits an image; train one on a table of images and captions with "
            "--objective clip."
        )
    captions = list(dict.fromkeys(captions))
    if len(captions) < 2:
        raise ConfigError(f"Captions to choose from were given as {captions}; expected two or more.")
    texts = {}
    for index, encoder in enumerate(preprocess.texts):  # captions stand in the first column of texts
        tokens = np.empty((len(captions), encoder.length), dtype=np.int32)
        encoder.encode(pl.Series(captions if index == 0 else [""] * len(captions), dtype=pl.String), tokens)
        texts[encoder.output.key] = torch.from_numpy(tokens).long()
    caption = Field(name="caption", kind="category", classes=tuple(captions))

    def ask(batch: Batch) -> dict[str, Tensor]:
        device = next(module.parameters()).device
        return {"caption": module.match(batch, {key: value.to(device) for key, value in texts.items()})}

    frame = _completed(artifact, table)
    found = artifact.asked(frame, lambda store: answers(module, ask, store), table.folder, True, notes.append)
    told = frame_of(replace(artifact.spec, targets=(caption,)), *found[:2], frame.height, found[2])
    return told.with_columns(places(table))


def recalled(model: Any, source: Any, column: str) -> dict[str, Any]:
    """Return the share of rows whose nearest neighbour has the same value in a column of the source, with an interval.

    Raises:
        DataError: the source has no such column.
    """
    table = model._read(source)
    found = model._told(table, embed)
    if column not in table.frame.columns:
        raise DataError(f"There is no column '{column}' in {table.origin}.{did_you_mean(column, table.frame.columns)}")
    labels = table.frame[column].cast(str).fill_null("").to_numpy()
    known = labels != ""
    return {"recall_at_1": recall(vectors(found)[known], labels[known]), "by": column}


def vectors(found: pl.DataFrame) -> np.ndarray:
    """Return the vectors of a table of embeddings, [N, D] float32; NaN where a row could not be read."""
    import polars as pl

    names = [name for name in found.columns if name.startswith(PREFIX)]
    array: np.ndarray = found.select(pl.col(names).cast(pl.Float32).fill_null(float("nan"))).to_numpy()
    return array


def write(found: pl.DataFrame, path: Path) -> None:
    """Write the vectors alone as a .npy array [N, D], or the whole table as .csv, .parquet or .jsonl.

    Raises:
        ConfigError: another ending, or a place that cannot be written.
    """
    if path.suffix.lower() != ".npy":
        write_table(found, path)
        return
    try:
        with replacing(path) as temporary, Path(temporary).open("wb") as file:
            np.save(file, vectors(found), allow_pickle=False)
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written: {error.strerror or error}.") from None


def _completed(artifact: Artifact, table: Table) -> pl.DataFrame:
    """Return the table; where images alone are asked about that were learned with captions, with empty ones."""
    import polars as pl

    frame = table.frame
    if with_role(artifact.module, Matcher) is not None and artifact.spec.images:
        lacking = [e.column for e in artifact.preprocess.texts if e.column not in frame.columns]
        frame = frame.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in lacking)
    return frame
