"""word2vec: vectors of words from the words around them (skip-gram with negative sampling).

    loss = −1/P · Σ over pairs (w, c)  [ log σ(v_w · u_c) + Σ over k negatives n  log σ(−v_w · u_n) ]

P pairs are those of each word w with every word c up to b places away, b being drawn from 1 to the window for each w
anew. Negatives are drawn by how often words stand in the texts, to the power of 0.75. Words that stand everywhere
are left out now and then before pairs are made: word w stays with probability √(t/f) + t/f, f being its share of all.

Where the program of 2013 draws k negatives for each pair, here M are drawn for a whole batch, and what they cost is
weighted by k/M: the loss is the same on average, and all of it is two products of matrices (Ji, Satish, Li, Dubey,
Parallelizing Word2Vec in Shared and Distributed Memory, 2016).

Words are tokens: by default the tokenizer of this objective learns so many that all words which come twice are whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import at_least, option
from fathom.core.objective import Objective
from fathom.core.types import Batch, DataSpec, Field, Loss
from fathom.layers.corrupt import ordinary
from fathom.layers.precision import wide

REFERENCE = (
    "Mikolov, Sutskever, Chen, Corrado, Dean, Distributed Representations of Words and Phrases and their "
    "Compositionality, 2013"
)
TARGET = "unused"
PREPARE = {"vocabulary": 65_536}


@dataclass(frozen=True)
class Config:
    window: int = option(5, "places up to which words are neighbours")
    negatives: float = option(5.0, "k, negatives of a pair")
    drawn: int = option(256, "M, negatives drawn for a batch, which all its words share")
    power: float = option(0.75, "of a word's count, by which negatives are drawn")
    threshold: float = option(1e-3, "t, the share of all words above which a word is left out now and then; 0: never")


presets: dict[str, Config] = {}


def accepts(spec: DataSpec) -> str | None:
    """Return why this objective cannot learn from such data, or None."""
    return spec.unless_one("text")


def needs(model: nn.Module) -> str | None:
    """Return why this objective cannot train such a model, or None."""
    return None if isinstance(getattr(model, "vectors", None), nn.Embedding) else "it needs a table of vectors: words"


def suggests(spec: DataSpec) -> str:
    return "words"


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return settings that suit a table: many small steps teach it more, few large ones move all of it less often."""
    batch = min(256, max(32, spec.rows // 100))
    return {"engine": {"learning_rate": 1e-2, "epochs": 20, "batch_size": batch, "weight_decay": 0.0, "warmup": 0.02}}


def example() -> DataSpec:
    """Return short texts."""
    return DataSpec(
        inputs=(Field(name="text", kind="text", shape=(10,), vocabulary=30, occurrences=(0,) * 5 + (4,) * 25),), rows=16
    )


def build(config: Config, spec: DataSpec, model: nn.Module) -> EmbedWords:
    """Return the objective.

    Raises:
        ConfigError: an option is out of range.
    """
    at_least(config, {"window": 1, "negatives": 0, "drawn": 1, "power": 0, "threshold": 0}, "objective")
    return EmbedWords(config, spec, model)


class EmbedWords(Objective):
    """The model's vectors v, and the vectors u of words as neighbours."""

    predicts = ()
    reach: Tensor
    stays: Tensor

    def __init__(self, config: Config, spec: DataSpec, model: nn.Module) -> None:
        super().__init__()
        self.config, self.model = config, model
        self.field = field = spec.texts[0]
        self.context = nn.Embedding(field.vocabulary, int(model.width))  # type: ignore[arg-type]
        nn.init.zeros_(self.context.weight)
        counts = torch.tensor(field.occurrences or (1,) * field.vocabulary, dtype=torch.float64)
        counts[[token for token in set(field.special) if token >= 0]] = 0
        weights = counts.pow(config.power) * (counts > 0)
        reach = weights.cumsum(0) / weights.sum().clamp_min(1e-300)
        self.register_buffer("reach", reach.float(), persistent=False)  # [V]
        self.register_buffer("stays", staying(counts, config.threshold), persistent=False)  # [V]

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        cost, pairs = self.costs(*self.sampled(batch))
        count = pairs.sum()
        return Loss(cost.sum() / count.clamp_min(1), weight=count)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return each text's vector [B, D], the mean of its words'."""
        return {"embedding": self.model(batch).pooled}

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return of each text [B] what its pairs cost, and how many it has."""
        cost, pairs = self.costs(*self.sampled(batch))
        return {"cost": cost, "pairs": pairs}

    def summary(self, means: Mapping[str, Any]) -> dict[str, Any]:
        return {"loss": means["cost"] / means["pairs"]}

    def sampled(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Draw what a loss is made of: words [B, T], −1 behind the last; how far each looks [B, T]; negatives [M]."""
        tokens = batch[self.field.key]
        left = ordinary(tokens, self.field.special) & (
            torch.rand(tokens.shape, device=tokens.device) < self.stays[tokens]
        )
        longest = max(1, int(left.sum(1).max()))
        order = (~left).long().argsort(dim=1, stable=True)[:, :longest]
        words = tokens.gather(1, order).masked_fill(~left.gather(1, order), -1)
        reach = torch.randint(1, self.config.window + 1, words.shape, device=tokens.device)
        drawn = torch.rand(self.config.drawn, device=tokens.device, dtype=self.reach.dtype)
        negatives = torch.searchsorted(self.reach, drawn, right=True).clamp_max(self.field.vocabulary - 1)
        return words, reach, negatives

    def costs(self, words: Tensor, reach: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the pairs of each text cost [B], and how many there are [B]."""
        real = words >= 0
        known = words.clamp_min(0)
        v, u = self.model.vectors(known), self.context(known)  # type: ignore[operator]  # [B, T, D] each
        place = torch.arange(words.shape[1], device=words.device)
        far = (place[:, None] - place).abs()  # [T, T]
        near = (far > 0) & (far <= reach[:, :, None]) & real[:, :, None] & real[:, None]  # [B, T, T]
        found, against = wide(v @ u.transpose(1, 2)), wide(v @ self.context(negatives).T)  # [B, T, T], [B, T, M]
        pairs = near.sum(2).to(found.dtype)  # [B, T], of each word
        positive = (F.softplus(-found) * near).sum(2)
        negative = F.softplus(against).mean(2) * pairs
        return (positive + self.config.negatives * negative).sum(1), pairs.sum(1)


def staying(counts: Tensor, threshold: float) -> Tensor:
    """Return how probable it is that a word which stands so often is not left out: [V] -> [V] float32."""
    if not threshold:
        return torch.ones_like(counts, dtype=torch.float32)
    share = (threshold * counts.sum() / counts.clamp_min(1)).float()
    return (share.sqrt() + share).clamp_max(1.0)
