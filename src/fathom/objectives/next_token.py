"""Causal language modelling: tell each token of a text from those before it.

    loss = −1/N · Σ log p(token | the tokens of the same text before it)        over the N tokens of a batch

Every text begins with a START token, which is not told, and ends with END, which is: that is how a model learns to
stop. No token is told from another text; the models keep texts apart (layers/decoder.py).

A model is judged by bits per byte, which do not hang on how texts are cut into tokens: the bits that telling a text
takes, divided by its bytes (as the model reads it: in lower case where prepare.text_case says so, and as far as
prepare.text_length goes). Perplexity is the exponential of the loss, and does hang on the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fathom.core.config import option
from fathom.core.objective import Objective
from fathom.core.roles import Answer, LanguageModel, Question, Translator
from fathom.core.types import Batch, DataSpec, Features, Field, Loss
from fathom.layers.scoring import NOTHING, per_row, token_cost, told

REFERENCE = (
    "Radford, Narasimhan, Salimans, Sutskever, Improving Language Understanding by Generative Pre-Training, 2018; "
    "Bengio, Ducharme, Vincent, Jauvin, A Neural Probabilistic Language Model, 2003"
)
TARGET = "unused"
PREPARE = {"text_case": "keep"}


@dataclass(frozen=True)
class Config:
    label_smoothing: float = option(0.0, "share of a token's probability spread over all tokens")


presets: dict[str, Config] = {}


def accepts(spec: DataSpec) -> str | None:
    """Return why this objective cannot learn from such data, or None."""
    return spec.unless_one("text")


def needs(model: nn.Module) -> str | None:
    """Return why this objective cannot train such a model, or None."""
    if isinstance(model, LanguageModel) and not isinstance(model, Translator):  # which has all of its members, too
        return None
    return "it needs one that tells the next token, such as gpt or llama"


def suggests(spec: DataSpec) -> str:
    return "gpt"


def example() -> DataSpec:
    """Return short texts."""
    return DataSpec(inputs=(Field(name="text", kind="text", shape=(10,), vocabulary=30),), rows=16)


def build(config: Config, spec: DataSpec, model: nn.Module) -> NextToken:
    return NextToken(config, spec, model)


class NextToken(Objective):
    """The model alone: it has a read-out of its own."""

    predicts = ()
    sizes: Tensor | None

    def __init__(self, config: Config, spec: DataSpec, model: nn.Module) -> None:
        super().__init__()
        self.config, self.model = config, model
        field = spec.texts[0]
        self.key, self.pad, self.end = field.key, field.pad, field.special[3]
        sizes = torch.tensor(field.bytes, dtype=torch.float32) if field.bytes else None
        self.register_buffer("sizes", sizes, persistent=False)  # [V]

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        question = self.ask(batch)
        return self.price(question, self.answer(question))

    def ask(self, batch: Batch) -> Question:
        """Return the batch, and the token that each place but the last has to tell."""
        wanted = self.wanted(batch)
        return Question(batch, (wanted,), (wanted != NOTHING,))

    def answer(self, question: Question) -> Answer:
        """Return what the model makes of each place but the last, [B, T − 1, D]."""
        features: Features = self.model(question.read)
        assert features.tokens is not None
        return Answer((features.tokens[:, :-1],), features.penalty)

    def scores(self, states: Tensor, column: int = 0) -> Tensor:
        """Return the scores of the next token, [N, D] -> [N, V]."""
        found: Tensor = self.model.logits(states)  # type: ignore[operator]
        return found

    def price(self, question: Question, answer: Answer) -> Loss:
        """Return the mean cost of a token, and what the model asks to be kept small."""
        count = question.real[0].sum().float()
        total = self._cost(question, answer, self.config.label_smoothing).sum() / count.clamp_min(1)
        if answer.penalty is None:
            return Loss(total, weight=count)
        return Loss(total + answer.penalty, {"text": total, "penalty": answer.penalty}, weight=count)

    def wanted(self, batch: Batch) -> Tensor:
        """Return the token that each place but the last has to tell, NOTHING behind the end: [B, T] -> [B, T − 1]."""
        tokens = batch[self.key]
        wanted = tokens[:, 1:]
        if self.pad == self.end:  # one token for both: the first behind a text is its end
            return wanted.masked_fill(tokens[:, :-1] == self.pad, NOTHING)
        return wanted.masked_fill(wanted == self.pad, NOTHING)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return how unexpected each text is [B]: the bits that a byte of it takes (of a token, where bytes are not
        known)."""
        found = self.metrics(batch)
        if self.sizes is None:
            return {"bits_per_token": found["nats"] / found["tokens"].clamp_min(1) / math.log(2)}
        return {"bits_per_byte": found["nats"] / found["bytes"].clamp_min(1) / math.log(2)}

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return of each text [B] the nats that telling it takes, and how many tokens and bytes it has."""
        question = self.ask(batch)
        wanted = question.wanted[0]
        found = {
            "nats": per_row(self._cost(question, self.answer(question)), wanted),
            "tokens": question.real[0].sum(1).float(),
        }
        if self.sizes is not None:
            found["bytes"] = self.sizes[batch[self.key]].sum(1).clamp_min(0)
        return found

    def summary(self, means: Mapping[str, Any]) -> dict[str, Any]:
        nats = means["nats"] / means["tokens"]
        found = {"loss": nats, "perplexity": 2.0 ** (nats / math.log(2))}
        if self.sizes is None:
            return found
        return {"bits_per_byte": means["nats"] / means["bytes"] / math.log(2), **found}

    def _cost(self, question: Question, answer: Answer, smoothing: float = 0.0) -> Tensor:
        states, tokens = told(answer.states[0], question.wanted[0])
        return token_cost(self.scores(states), tokens, smoothing)
