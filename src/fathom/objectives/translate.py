"""Sequence to sequence: read one text, write another.

    loss = −1/N · Σ log p(token | what was read, the tokens of the true translation before it)

In training the model is shown the true beginning of each translation (teacher forcing), so that all of its tokens are
told at once; translating, it goes on from what it wrote itself, with several beginnings side by side (beam search,
generate/beams.py). Label smoothing keeps it from being surer than the one true translation of several good ones allows:
a share of the probability is spread over all tokens.

It is chosen by the loss without smoothing, and judged by BLEU where sacrebleu is installed (`fathom evaluate`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fathom.core.config import at_least, below_one, option
from fathom.core.objective import Objective
from fathom.core.roles import Translator
from fathom.core.types import Batch, DataSpec, Features, Field, Loss
from fathom.layers.scoring import NOTHING, per_row, token_cost, told

REFERENCE = (
    "Sutskever, Vinyals, Le, Sequence to Sequence Learning with Neural Networks, 2014; smoothing: Vaswani et al., "
    "Attention Is All You Need, 2017; teacher forcing: Williams, Zipser, A Learning Algorithm for Continually Running "
    "Fully Recurrent Neural Networks, 1989"
)
COLUMNS = "two text columns, one to read and, as the target, one to write"
PREPARE = {"text_case": "keep", "vocabulary": 8192}


@dataclass(frozen=True)
class Config:
    label_smoothing: float = option(0.1, "share of a token's probability spread over all tokens")
    beams: int = option(4, "translations kept side by side, of which the best is taken")
    length_penalty: float = option(1.0, "power of its length that a translation's log probability is divided by")


presets: dict[str, Config] = {}


def accepts(spec: DataSpec) -> str | None:
    """Return why this objective cannot learn from such data, or None."""
    texts = [f"'{f.name}'" for f in (*spec.inputs, *spec.targets) if f.kind == "text"]
    written = [f for f in spec.targets if f.kind == "text"]
    if len(written) == 1 and len(spec.targets) == 1 and len(spec.texts) == len(spec.inputs) == 1:
        return None
    return (
        f"it needs {COLUMNS}; found "
        f"{len(texts) or 'none'}{': ' + ', '.join(texts) if texts else ''}, with "
        f"{len(spec.inputs)} input and {len(spec.targets)} target columns in all"
    )


def needs(model: nn.Module) -> str | None:
    """Return why this objective cannot train such a model, or None."""
    return None if isinstance(model, Translator) else "it needs one that reads and writes, such as transformer or t5"


def suggests(spec: DataSpec) -> str:
    return "transformer_translator"


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return settings that suit most models: many passes, for pairs are few, and a moving average of the weights."""
    batch = 64 if spec.rows >= 2_000 else 32
    return {"engine": {"epochs": 30, "batch_size": batch, "warmup": 0.1, "average": 0.999}}


def example() -> DataSpec:
    """Return a short text to read and a shorter one to write."""
    return DataSpec(
        inputs=(Field(name="text", kind="text", shape=(10,), vocabulary=30),),
        targets=(Field(name="other", kind="text", shape=(6,), vocabulary=30),),
        rows=16,
    )


def build(config: Config, spec: DataSpec, model: nn.Module) -> Translate:
    """Return the objective.

    Raises:
        ConfigError: an option is out of range.
    """
    at_least(config, {"beams": 1, "length_penalty": 0}, "objective")
    below_one(config, "label_smoothing", where="objective")
    return Translate(config, spec, model)


class Translate(Objective):
    """The model alone: it has a read-out of its own."""

    predicts = ()

    def __init__(self, config: Config, spec: DataSpec, model: nn.Module) -> None:
        super().__init__()
        self.config, self.model = config, model
        self.written = spec.targets[0]
        self.key, self.pad = self.written.target_key, self.written.pad
        self.start, self.end = self.written.special[2], self.written.special[3]

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        memory: Features = self.model.encode(batch)  # type: ignore[operator]
        cost, wanted = self._cost(batch, memory, self.config.label_smoothing)
        count = (wanted != NOTHING).sum().float()
        total = cost.sum() / count.clamp_min(1)
        if memory.penalty is None:
            return Loss(total, weight=count)
        return Loss(total + memory.penalty, {"text": total, "penalty": memory.penalty}, weight=count)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return a translation of each text, [B, T] tokens from START on: the most probable token each time."""
        memory = self.model.encode(batch)  # type: ignore[operator]
        rows, length = len(memory.pooled), self.written.shape[0]
        cache = self.model.cache(memory, length)  # type: ignore[operator]
        found = torch.full((rows, length), self.pad, device=memory.pooled.device)
        found[:, 0] = self.start
        open_ = torch.ones(rows, dtype=torch.bool, device=found.device)
        for place in range(1, length):
            hidden = self.model.extend(found[:, place - 1 : place], cache)[:, -1]  # type: ignore[operator]
            tokens = self.model.logits(hidden).argmax(-1)  # type: ignore[operator]
            found[:, place] = torch.where(open_, tokens, self.pad)
            open_ = open_ & (tokens != self.end)
            if not bool(open_.any()):
                break
        return {self.written.name: found}

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return of each true translation [B] the nats that telling it takes, and how many tokens it has."""
        cost, wanted = self._cost(batch, self.model.encode(batch))  # type: ignore[operator]
        return {"nats": per_row(cost, wanted), "tokens": (wanted != NOTHING).sum(1).float()}

    def summary(self, means: Mapping[str, Any]) -> dict[str, Any]:
        nats = means["nats"] / means["tokens"]
        return {"loss": nats, "perplexity": 2.0 ** (nats / math.log(2))}

    def _cost(self, batch: Batch, memory: Features, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return what each token of the true translations costs [N], and the tokens wanted [B, T]."""
        tokens = batch[self.key]
        wanted = tokens[:, 1:].masked_fill(tokens[:, 1:] == self.pad, NOTHING)
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling():  # nothing stands behind the longest
            longest = int((wanted != NOTHING).any(0).sum())
            tokens, wanted = tokens[:, : longest + 1], wanted[:, :longest]
        hidden = self.model.decode(tokens[:, :-1], memory)  # type: ignore[operator]
        hidden, chosen = told(hidden, wanted)
        return token_cost(self.model.logits(hidden), chosen, smoothing), wanted  # type: ignore[operator]
