"""The perceptron: one layer of weights between what is seen and what is answered.

    number [B, F]           as it is, standardised            ┐
    category [B, C]         one-hot, a place for each class   ├─>  sensory points  [B, S]
    image [B, C, H, W]      normalised, its pixels in a row   ┘
    sensory points [B, S]   [-> association units [B, A]]  ->  read-out of the objective: the layer that learns

In the paper sensory points are wired at random to association units, each of which fires where what excites it
outweighs what inhibits it; that wiring stays as it is. What learns are the weights from there to the responses. Those
are the objective's read-out here, so this file has no weights of its own, and `width` is how many values the read-out
sees: S, or A where there are association units (preset `photoperceptron`; what today is called a perceptron has none).

What the layer learns depends on the objective. Supervised learning of a category makes it logistic regression (softmax
regression with more than two classes), and that of a number linear regression: the paper's responses without the
threshold, which has no gradient, so that the error says not only whether but how far a weight is off. Minsky and Papert
(Perceptrons, 1969) tell what one layer cannot separate, such as "exactly one of two": there `mlp` begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import at_least, option
from fathom.core.errors import ConfigError
from fathom.core.types import UNKNOWN, Batch, DataSpec, Features, Field, Stats
from fathom.layers.image import Normalize

REFERENCE = (
    "Rosenblatt, The Perceptron: A Probabilistic Model for Information Storage and Organization in the Brain, 1958"
)
PROVEN = "what it can separate and, as Minsky and Papert showed, what it cannot"


@dataclass(frozen=True)
class Config:
    associations: int = option(0, "association units, wired at random and for good; 0: none, what is seen is read out")
    connections: int = option(20, "sensory points that each association unit is wired to, half exciting it")
    threshold: float = option(
        1.0, "what an association unit's sum must exceed to fire, in standard deviations of a sensory point"
    )


presets: dict[str, Config] = {"photoperceptron": Config(associations=1000)}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return spec.unless_all("number", "category", "image")


def example() -> DataSpec:
    """Return a small grey image beside a number and a category."""
    return DataSpec(
        inputs=(
            Field(name="retina", kind="image", shape=(1, 12, 12), stats=Stats(mean=(127.0,), std=(74.0,))),
            Field(name="weight", kind="number", stats=Stats()),
            Field(name="colour", kind="category", classes=(UNKNOWN, "red", "blue")),
        ),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return settings to train with: the loss has one valley, so steps are long and the last state is kept."""
    return {"engine": {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.0, "epochs": 30, "keep": "last"}}


def build(config: Config, spec: DataSpec) -> Perceptron:
    """Return the network for such columns.

    Raises:
        ConfigError: the columns are of another kind, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'perceptron' cannot be used: {why}.")
    at_least(config, {"associations": 0, "connections": 2})
    return Perceptron(config, spec)


class Perceptron(nn.Module):
    """What the read-out sees; `width` is S or A."""

    wiring: Tensor

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.numbers = len(spec.numbers)
        self.classes = tuple(len(column.classes) for column in spec.categories)
        self.keys = tuple(column.key for column in spec.images)
        self.images = nn.ModuleList(Normalize(column) for column in spec.images)
        points = self.numbers + sum(self.classes) + sum(_pixels(column) for column in spec.images)  # S
        if config.associations:
            self.register_buffer("wiring", _wiring(config, points))  # [A, S], kept with the weights
        self.wired, self.threshold = bool(config.associations), config.threshold
        self.width = config.associations or points

    def forward(self, batch: Batch) -> Features:
        seen = self.see(batch)  # [B, S]
        if not self.wired:
            return Features(pooled=seen)
        return Features(pooled=(F.linear(seen, self.wiring) > self.threshold).to(seen.dtype))  # [B, A], 0 or 1

    def see(self, batch: Batch) -> Tensor:
        """Return the sensory points [B, S]."""
        parts = [batch["number"]] if self.numbers else []
        codes = batch["category"].unbind(1) if self.classes else ()
        parts += [F.one_hot(code.long(), size).float() for code, size in zip(codes, self.classes, strict=True)]
        parts += [image(batch[key]).flatten(1) for key, image in zip(self.keys, self.images, strict=True)]
        return torch.cat(parts, dim=1)


def _pixels(column: Field) -> int:
    return column.shape[0] * column.shape[1] * column.shape[2]


def _wiring(config: Config, points: int) -> Tensor:
    """Return what each association unit adds (+1), subtracts (−1) or does not see (0): [A, S].

    It is scaled so that sensory points of variance one give sums of variance one.
    """
    count = min(config.connections, points)
    ends = torch.rand(config.associations, points).topk(count).indices  # [A, count], distinct points
    signs = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0).expand(config.associations, count)
    return torch.zeros(config.associations, points).scatter(1, ends, signs) / count**0.5
