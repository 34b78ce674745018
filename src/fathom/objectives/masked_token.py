"""Masked language modelling: put back the tokens that were taken out of a text, from what stands on both sides.

    tokens   15 % of the tokens are to be told; of these 80 % are masked, 10 % are any token, 10 % are as they were
    spans    15 % of the tokens are taken out, in runs of three on average

    loss = −1/N · Σ log p(token | the text without the N tokens)

An encoder tells each token at its own place: a small network of its own, then the product with the model's own token
vectors. There spans are so many MASK tokens. A model that reads and writes (T5) reads one MASK for each run, and writes
the runs one after the other; the texts that it would translate are both used.

The labels of the data are not looked at: train on them afterwards, with `--from` the folder of this model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import option
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.roles import Answer, LanguageModel, Question, Translator
from fathom.core.types import Batch, DataSpec, Features, Field, Loss
from fathom.layers.corrupt import filled, masked, ordinary, spans
from fathom.layers.probe import probe
from fathom.layers.scoring import NOTHING, per_row, token_cost, told

REFERENCE = (
    "Devlin, Chang, Lee, Toutanova, BERT: Pre-training of Deep Bidirectional Transformers, 2018; Raffel et al., "
    "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, 2020 (spans)"
)
TARGET = "optional"


@dataclass(frozen=True)
class Config:
    corruption: Literal["tokens", "spans"] = option("tokens", "what is taken out: single tokens (BERT) or runs (T5)")
    share: float = option(0.15, "share of the tokens that are to be told")
    span: float = option(3.0, "tokens of a run, on average")
    tied: bool = option(True, "tell tokens by the model's own token vectors where it has them, not by a layer beside")


presets: dict[str, Config] = {}


def accepts(spec: DataSpec) -> str | None:
    """Return why this objective cannot learn from such data, or None."""
    for field in spec.texts:
        if field.special[4] < 0:
            return f"the tokenizer of column '{field.name}' has no token for what is masked"
    return spec.unless_all("text")


def needs(model: nn.Module) -> str | None:
    """Return why this objective cannot train such a model, or None."""
    if isinstance(model, LanguageModel) and not isinstance(model, Translator):  # which has all of its members, too
        return "it needs one that looks at both sides of a token, such as bert, transformer or t5"
    return None


def suggests(spec: DataSpec) -> str:
    return "bert"


def example() -> DataSpec:
    """Return short texts."""
    return DataSpec(inputs=(Field(name="text", kind="text", shape=(12,), vocabulary=30),), rows=16)


def build(config: Config, spec: DataSpec, model: nn.Module) -> MaskedToken:
    """Return the objective.

    Raises:
        ConfigError: an option is out of range, or the model gives no states of single tokens.
    """
    if not 0 < config.share < 1 or config.span < 1:
        raise ConfigError(
            f"Options 'objective.share' and 'objective.span' were given {config.share} and {config.span}; expected a "
            "share between 0 and 1 and runs of at least 1 token."
        )
    if isinstance(model, Translator) and config.corruption == "tokens":
        raise ConfigError(
            "A model that reads and writes learns from runs of tokens: set objective.corruption=spans, or leave out "
            "the text target, so that it is an encoder alone."
        )
    if not isinstance(model, Translator) and probe(model, spec.texts).tokens is None:
        raise ConfigError(
            f"Objective 'masked_token' needs a model that says something of every token, such as bert or transformer; "
            f"{type(model).__name__} does not."
        )
    return MaskedToken(config, spec, model)


class MaskedToken(Objective):
    """The model, and for an encoder what tells tokens from its hidden states, one for each text column."""

    predicts = ()

    def __init__(self, config: Config, spec: DataSpec, model: nn.Module) -> None:
        super().__init__()
        self.config, self.model, self.fields = config, model, spec.texts
        self.writes = isinstance(model, Translator)
        self.written = tuple(field for field in spec.targets if field.kind == "text")
        columns = () if self.writes else spec.texts
        self.tellers = nn.ModuleList(Teller(int(cast(int, model.width)), field.vocabulary) for field in columns)
        self.tables: list[str] = []
        for index, field in enumerate(columns):
            before = sum(other.vocabulary == field.vocabulary for other in columns[:index])
            own = _table(model, before, field.vocabulary) if config.tied else ""
            self.tables.append(own)
            if not own:
                cast(Teller, self.tellers[index]).own_table()

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        question = self.ask(batch)
        return self.price(question, self.answer(question))

    def ask(self, batch: Batch) -> Question:
        """Return texts from which tokens were taken, and those tokens."""
        return self._asked_to_write(batch) if self.writes else self._asked_to_tell(batch)

    def answer(self, question: Question) -> Answer:
        """Return what the model makes of each place of each column, or of each place that it writes."""
        if question.written is not None:
            memory: Features = self.model.encode(question.read)  # type: ignore[operator]
            return Answer((self.model.decode(question.written, memory),), memory.penalty)  # type: ignore[operator]
        features: Features = self.model(question.read)
        widths = [each.shape[1] for each in question.wanted]
        if features.tokens is None or features.tokens.shape[1] != sum(widths):
            raise ConfigError(
                f"Objective 'masked_token' cannot train a {type(self.model).__name__}: it gives out no vector for each "
                "token; take bert or transformer."
            )
        return Answer(features.tokens.split(widths, 1), features.penalty)

    def scores(self, states: Tensor, column: int) -> Tensor:
        """Return the scores of all tokens at places of a text column, [N, D] -> [N, V]."""
        if self.writes:
            written: Tensor = self.model.logits(states)  # type: ignore[operator]
            return written
        table = self.model.get_parameter(self.tables[column]) if self.tables[column] else None
        found: Tensor = self.tellers[column](states, table)
        return found

    def price(self, question: Question, answer: Answer) -> Loss:
        """Return the mean cost of a token, and what the model asks to be kept small."""
        count = sum((each != NOTHING).sum() for each in question.wanted).float()  # type: ignore[union-attr]
        total = torch.cat(self._costs(question, answer)).sum() / count.clamp_min(1)
        if answer.penalty is None:
            return Loss(total, weight=count)
        return Loss(total + answer.penalty, {"text": total, "penalty": answer.penalty}, weight=count)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the model makes of each text as it stands: its vector [B, D]."""
        return {"embedding": self.model(batch).pooled}

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return of each text [B] the nats that telling what was taken out takes, and how many tokens that is."""
        question = self.ask(batch)
        cost, wanted = self._costs(question, self.answer(question)), question.wanted
        rows = len(batch[self.fields[0].key])
        nats = [per_row(each, tokens).view(-1, rows).sum(0) for each, tokens in zip(cost, wanted, strict=True)]
        counts = [(tokens != NOTHING).sum(1).view(-1, rows).sum(0) for tokens in wanted]
        return {"nats": torch.stack(nats).sum(0), "tokens": torch.stack(counts).sum(0).float()}

    def summary(self, means: Mapping[str, Any]) -> dict[str, Any]:
        nats = means["nats"] / means["tokens"]
        return {"loss": nats, "perplexity": 2.0 ** (nats / math.log(2))}

    def _costs(self, question: Question, answer: Answer) -> list[Tensor]:
        """Return what telling each token costs, of each column."""
        found = []
        for column, (states, wanted) in enumerate(zip(answer.states, question.wanted, strict=True)):
            chosen, tokens = told(states, wanted)
            found.append(token_cost(self.scores(chosen, column), tokens))
        return found

    def _asked_to_tell(self, batch: Batch) -> Question:
        read, wanted = dict(batch), []
        for field in self.fields:
            read[field.key], told_here = self.corrupted(batch[field.key], field)
            wanted.append(told_here)
        return Question(read, tuple(wanted), tuple(batch[field.key] != field.pad for field in self.fields))

    def corrupted(self, tokens: Tensor, field: Field) -> tuple[Tensor, Tensor]:
        """Return the tokens [B, T] that an encoder reads, and those to tell, NOTHING where none is."""
        candidates = ordinary(tokens, field.special)
        if self.config.corruption == "spans":
            taken = spans(candidates, self.config.share, self.config.span)
            return tokens.masked_fill(taken, field.special[4]), tokens.masked_fill(~taken, NOTHING)
        chosen = candidates & (torch.rand(tokens.shape, device=tokens.device) < self.config.share)
        return masked(tokens, chosen, field.special[4], field.vocabulary)

    def _asked_to_write(self, batch: Batch) -> Question:
        """The same of a model that reads and writes; rows of further texts stand behind those of the first."""
        field = self.fields[0]
        texts = [batch[field.key], *(batch[f.target_key] for f in self.written if f.target_key in batch)]
        width = texts[0].shape[1]  # the most that is read
        tokens = torch.cat([F.pad(text, (0, width - text.shape[1]), value=field.pad) for text in texts])  # or cut
        taken = spans(ordinary(tokens, field.special), self.config.share, self.config.span)
        read, written = filled(tokens, taken, field.special)
        written = written[:, : int(cast(int, self.model.context))]
        wanted = written[:, 1:].masked_fill(written[:, 1:] == field.pad, NOTHING)
        return Question({**batch, field.key: read}, (wanted,), (wanted != NOTHING,), written[:, :-1])


class Teller(nn.Module):
    """From hidden states to scores of all tokens: a linear layer, GELU, a norm, the product with token vectors."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.register_parameter("table", None)

    def own_table(self) -> None:
        """Have token vectors of its own."""
        self.table = nn.Parameter(torch.randn(len(self.bias), self.linear.in_features) * 0.02)

    def forward(self, hidden: Tensor, table: Tensor | None) -> Tensor:
        """Return scores [N, V] of hidden states [N, D]; `table` [V, D] are the model's token vectors."""
        vectors = self.table if table is None else table
        assert vectors is not None
        return F.linear(self.norm(F.gelu(self.linear(hidden))), vectors, self.bias)


def _table(model: nn.Module, before: int, vocabulary: int) -> str:
    """Return the name of the model's token vectors of a column, before which stand so many of the same vocabulary; ""
    where it has none of that shape."""
    width = int(cast(int, model.width))
    found = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and tuple(module.weight.shape) == (vocabulary, width)
    ]
    return found[min(before, len(found) - 1)] if found else ""
