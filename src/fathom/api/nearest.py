"""What a model finds most alike: those whose vectors point the same way.

nearest      words -> the words that are used most like them
neighbours   rows, and others -> of each row the nearest of the others
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from fathom.api.embed import embed, vectors
from fathom.api.look import is_one_row
from fathom.api.progress import say
from fathom.artifact import Artifact
from fathom.core.errors import ConfigError, DataError, did_you_mean
from fathom.evaluate import neighbours as nearest_vectors

if TYPE_CHECKING:
    from fathom.api.model import Model


def nearest(artifact: Artifact, words: Sequence[str], minus: Sequence[str], count: int) -> list[tuple[str, float]]:
    """Return the words nearest to the sum of some words' directions, less others', with their cosines; see
    `Model.nearest`.

    Raises:
        ConfigError: the model has no table of words' vectors, or a word is not in it.
    """
    table = getattr(artifact.module.model, "vectors", None)
    encoders = artifact.preprocess.texts
    if not isinstance(table, torch.nn.Embedding) or len(encoders) != 1:
        raise ConfigError(
            "The model has no vectors of words: train some with --objective embed_words on a column of texts, or name "
            "rows to look for, and with --among those to look among."
        )
    if not words or count < 1:
        raise ConfigError("Name at least one word, and ask for at least one that is near.")
    encoder = encoders[0]
    known = _whole_words(encoder)
    directions = table.weight.detach().double().numpy()
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True).clip(1e-12)  # [V, D]
    plus, less = ([_token(word, known, encoder) for word in group] for group in (words, minus))
    asked = directions[plus].sum(0) - directions[less].sum(0)
    asked /= max(float(np.linalg.norm(asked)), 1e-12)
    places = np.array([token for token in known.values() if token not in {*plus, *less}])
    cosines = directions[places] @ asked
    names = {token: word for word, token in known.items()}
    best = np.argsort(-cosines, kind="stable")[:count]
    return [(names[int(places[i])], float(cosines[i])) for i in best]


def neighbours(model: Model, rows: Any, among: Any, count: int) -> pl.DataFrame:
    """Return the nearest rows of a source, with their cosines; see `Model.neighbours`.

    Raises:
        ConfigError: `count` is below 1, or the model has no vectors of rows. DataError: no row can be compared.
    """
    if count < 1:
        raise ConfigError(f"Rows to tell were given as {count}; expected 1 or more.")
    itself = rows is among or (_is_path(rows) and _is_path(among) and Path(rows).resolve() == Path(among).resolve())
    asked = _placed(model, rows)
    others = asked if itself else _placed(model, among)
    places, cosines = nearest_vectors(asked.vectors, others.vectors, count, itself)
    each = np.repeat(np.arange(len(places)), places.shape[1])
    found: dict[str, Any] = {"row": asked.rows[each]}
    if asked.names is not None:
        found["name"] = asked.names.gather(each)
    found |= {"nearest": others.rows[places.ravel()]}
    if others.names is not None:
        found["nearest_name"] = others.names.gather(places.ravel())
    return pl.DataFrame({**found, "cosine": cosines.ravel()})


def described(found: pl.DataFrame) -> str:
    """Return the result of `neighbours` as text for a terminal: each row, and below it the nearest ones."""
    lines: list[str] = []
    before = None
    for each in found.iter_rows(named=True):
        if each["row"] != before:
            lines.append(each.get("name") or f"row {each['row']}")
            before = each["row"]
        lines.append(f"  {each['cosine']:.3f}  {each.get('nearest_name') or 'row ' + str(each['nearest'])}")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Placed:
    """Rows that have a vector: the vectors [N, D], the rows' numbers in their source, from 1, and what they are called
    there, where they are files."""

    vectors: np.ndarray
    rows: np.ndarray
    names: pl.Series | None


def _placed(model: Model, source: Any) -> _Placed:
    table = model._read([source] if is_one_row(source) else source)
    found = model._told(table, embed)
    array = vectors(found)
    known = np.flatnonzero(np.isfinite(array).all(1)) if array.shape[1] else np.empty(0, dtype=np.int64)
    problems = found["problem"].drop_nulls() if "problem" in found.columns else pl.Series([], dtype=pl.String)
    if not len(known):
        why = f": {problems[0]}" if len(problems) else ""
        raise DataError(f"No row of {table.origin} has a vector to compare{why}.")
    if len(known) < len(array):
        say(f"{len(array) - len(known):,} rows of {table.origin} are left out; the first: {problems[0]}")
    names = found["file"] if "file" in found.columns else _paths(model.artifact, table.frame)
    numbers = found["row"].to_numpy() if "row" in found.columns else np.arange(1, len(array) + 1)
    return _Placed(array[known], numbers[known], None if names is None else names.gather(known))


def _paths(artifact: Artifact, frame: pl.DataFrame) -> pl.Series | None:
    """Return the paths of the rows' images, or None where they have none."""
    columns = [frame[field.source] for field in artifact.spec.images]
    return next((column for column in columns if column.dtype == pl.String), None)


def _is_path(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike))


def _whole_words(encoder: Any) -> dict[str, int]:
    """Return the tokens that are whole words of letters and stand in the training rows, by the word."""
    spelt = encoder.trained.get_vocab()
    seen = encoder.occurrences or (1,) * len(spelt)
    starts = [token for name, token in spelt.items() if name.startswith("Ġ") and seen[token]]
    found = zip(encoder.trained.decode_batch([[token] for token in starts]), starts, strict=True)
    return {word.strip(): token for word, token in found if word.strip().isalpha()}


def _token(word: str, known: dict[str, int], encoder: Any) -> int:
    written = str(pl.Series([word]).str.normalize()[0])
    written = written.lower() if encoder.case == "lower" else written
    if written not in known:
        raise ConfigError(f"The model has no vector of the word '{word}'.{did_you_mean(written, known)}")
    return known[written]
