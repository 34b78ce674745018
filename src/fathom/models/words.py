"""A table of vectors, one for each token: what word2vec leaves behind.

    text [B, T]  ->  token vectors [B, T, D]  ->  mean over real tokens  ->  [B, D]

Nothing looks at anything else: the order of tokens is lost. Objective `embed_words` fills the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fathom.core.config import at_least, option
from fathom.core.errors import ConfigError
from fathom.core.types import Batch, DataSpec, Features, Field

REFERENCE = (
    "Mikolov, Sutskever, Chen, Corrado, Dean, Distributed Representations of Words and Phrases and their "
    "Compositionality, 2013"
)
PROVEN = "its own means, written out in a test"


@dataclass(frozen=True)
class Config:
    width: int = option(100, "D, length of a token's vector")


presets: dict[str, Config] = {}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return spec.unless_one("text")


def example() -> DataSpec:
    """Return short texts of two classes."""
    return DataSpec(
        inputs=(Field(name="text", kind="text", shape=(10,), vocabulary=30),),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return settings that suit this model on such data."""
    return {"engine": {"learning_rate": 1e-2, "epochs": 10, "batch_size": 128 if spec.rows >= 10_000 else 32}}


def build(config: Config, spec: DataSpec) -> Words:
    """Return the table for such texts.

    Raises:
        ConfigError: the data is of another kind, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'words' cannot be used: {why}.")
    at_least(config, {"width": 1})
    return Words(config, spec.texts[0])


class Words(nn.Module):
    """The table; `width` is D."""

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        self.width, self.key, self.pad = config.width, field.key, field.pad
        self.vectors = nn.Embedding(field.vocabulary, config.width)
        nn.init.uniform_(self.vectors.weight, -0.5 / config.width, 0.5 / config.width)  # as in the authors' program

    def forward(self, batch: Batch) -> Features:
        tokens = batch[self.key]
        real = tokens != self.pad
        x = self.vectors(tokens)  # [B, T, D]
        share = real / real.sum(1, keepdim=True).clamp_min(1)  # [B, T]
        return Features(pooled=torch.einsum("bt,btd->bd", share.to(x.dtype), x), tokens=x, mask=real)
