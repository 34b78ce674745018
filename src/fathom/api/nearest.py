"""The words that a model uses most like others: those whose vectors point the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from fathom.artifact import Artifact
from fathom.core.errors import ConfigError, did_you_mean


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
            "The model has no vectors of words: train some with --objective embed_words on a column of texts."
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
