"""A bag of n-grams: a text is the weighted mean of the vectors of its words and short phrases.

    text [B, T]  ->  n-grams, hashed  ->  weighted mean  (->  linear, GELU)  ->  dropout  ->  [B, D]

Order beyond a phrase is lost, and yet for telling topics and styles apart it is hard to beat, fast, and good on few
rows. Several text columns each have vectors of their own; their means stand side by side. Without the layer in
brackets the model is linear in its n-grams, which serves best where a few phrases give a text away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fathom.core.config import at_least, below_one, option
from fathom.core.errors import ConfigError
from fathom.core.types import Batch, DataSpec, Features, Field
from fathom.layers.ngrams import NGrams

REFERENCE = "Joulin, Grave, Bojanowski, Mikolov, Bag of Tricks for Efficient Text Classification, 2016"
PROVEN = "a plain restatement of its weighted means in a test"


@dataclass(frozen=True)
class Config:
    size: int = option(64, "length of an n-gram's vector")
    longest: int = option(2, "tokens in the longest n-gram; 1: single tokens only")
    buckets: int = option(65_536, "vectors that n-grams of two and more tokens share, by their hash")
    weighting: bool = option(False, "whether n-grams of rare tokens weigh more")
    token_dropout: float = option(0.0, "share of n-grams left out of a text in training")
    hidden: int = option(0, "units of a layer after the mean; 0: none")
    dropout: float = option(0.0, "share of the features dropped in training")


presets: dict[str, Config] = {
    "bag_of_words": Config(longest=1),
    "bag_of_trigrams": Config(longest=3, buckets=262_144),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return spec.unless_all("text")


def example() -> DataSpec:
    """Return two short text columns."""
    return DataSpec(
        inputs=(
            Field(name="title", kind="text", shape=(6,), vocabulary=20),
            Field(name="body", kind="text", shape=(12,), vocabulary=30, frequencies=(0.0, *(0.1,) * 29)),
        ),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return settings that suit this model on such data."""
    large = spec.rows >= 10_000
    return {
        "engine": {"learning_rate": 1e-2, "epochs": 4 if large else 10, "batch_size": 128 if large else 32},
        "objective": {"label_smoothing": 0.1},
    }


def build(config: Config, spec: DataSpec) -> Bag:
    """Return the network for such columns.

    Raises:
        ConfigError: the columns are of another kind, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'bag' cannot be used: {why}.")
    at_least(config, {"size": 1, "longest": 1, "buckets": 1, "hidden": 0})
    below_one(config, "token_dropout", "dropout")
    return Bag(config, spec)


class Bag(nn.Module):
    """The network; `width` is D."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.keys = tuple(column.key for column in spec.texts)
        self.columns = nn.ModuleList(
            NGrams(
                column.vocabulary,
                config.size,
                config.longest,
                config.buckets,
                column.frequencies if config.weighting else (),
                config.token_dropout,
                column.pad,
            )
            for column in spec.texts
        )
        inputs = config.size * len(self.keys)
        self.width = config.hidden or inputs
        self.linear = nn.Linear(inputs, config.hidden) if config.hidden else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: Batch) -> Features:
        means = [column(batch[key]) for key, column in zip(self.keys, self.columns, strict=True)]
        x = torch.cat(means, dim=1)  # [B, number of columns · E]
        if self.linear is not None:
            x = F.gelu(self.linear(x))
        return Features(pooled=self.dropout(x))  # [B, D]
