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
        known, text, reach, negatives = self.sampled(batch)
        cost, pairs = self.costs(known, text, reach, negatives)
        none = cost.new_zeros(len(batch[self.field.key]))
        return {"cost": none.index_add(0, text, cost), "pairs": none.index_add(0, text, pairs)}

    def summary(self, means: Mapping[str, Any]) -> dict[str, Any]:
        return {"loss": means["cost"] / means["pairs"]}

    def sampled(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw what a loss is made of: the W words that stay, the text of each, how far it looks [W]; negatives [M].

        Words lie one text after the other, without gaps: most of a batch of texts is what fills up its shorter ones.
        """
        tokens = batch[self.field.key]
        left = ordinary(tokens, self.field.special) & (
            torch.rand(tokens.shape, device=tokens.device) < self.stays[tokens]
        )
        text, place = left.nonzero(as_tuple=True)
        reach = torch.randint(1, self.config.window + 1, text.shape, device=tokens.device)
        drawn = torch.rand(self.config.drawn, device=tokens.device, dtype=self.reach.dtype)
        negatives = torch.searchsorted(self.reach, drawn, right=True).clamp_max(self.field.vocabulary - 1)
        return tokens[text, place], text, reach, negatives

    def costs(self, words: Tensor, text: Tensor, reach: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the pairs of each word cost [W], and how many they are [W]."""
        v, u = self.model.vectors(words), self.context(words)  # type: ignore[operator]  # [W, D] each
        one, other = neighbours(text, reach, self.config.window)
        found = (v.index_select(0, one) * u.index_select(0, other)).sum(1)  # [P]
        against = wide(v @ self.context(negatives).T)  # [W, M]
        pairs = torch.bincount(one, minlength=len(words)).to(against.dtype)
        negative = F.softplus(against).mean(1) * pairs
        return (self.config.negatives * negative).index_add(0, one, F.softplus(-wide(found))), pairs


def neighbours(text: Tensor, reach: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Return pairs of places, each word's with those of the words that it looks at: texts, reaches [W] -> [P], [P]."""
    place = torch.arange(len(text), device=text.device)
    pairs: list[tuple[Tensor, Tensor]] = []
    for far in range(1, min(window, len(text) - 1) + 1):
        first, second = place[:-far], place[far:]
        same = text[:-far] == text[far:]
        for one, other in ((first, second), (second, first)):
            near = same & (reach[one] >= far)
            pairs.append((one[near], other[near]))
    ones, others = zip(*pairs, strict=True) if pairs else ((place[:0],), (place[:0],))
    return torch.cat(ones), torch.cat(others)


def staying(counts: Tensor, threshold: float) -> Tensor:
    """Return how probable it is that a word which stands so often is not left out: [V] -> [V] float32."""
    if not threshold:
        return torch.ones_like(counts, dtype=torch.float32)
    share = (threshold * counts.sum() / counts.clamp_min(1)).float()
    return (share.sqrt() + share).clamp_max(1.0)
