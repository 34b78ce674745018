"""Inputs of several kinds in one table: an encoder for each kind, their features fused.

    numbers and categories  ->  one table encoder   ─┐
    each image column       ->  an image encoder    ─┼─ normalise, project  ->  [B, P, D]  ->  fuse  ->  [B, D]
    all text columns        ->  one text encoder    ─┘

The encoders are the other models of this folder, by name; each sees only its own columns. In training whole parts are
left out of a row at random, so that the quickest learner among them does not silence the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.catalog import find
from fathom.core.config import at_least, below_one, option
from fathom.core.errors import ConfigError
from fathom.core.types import UNKNOWN, Batch, DataSpec, Features, Field, Kind, Stats

REFERENCE = (
    "Ngiam, Khosla, Kim, Nam, Lee, Ng, Multimodal Deep Learning, 2011; "
    "Neverova, Wolf, Taylor, Nebout, ModDrop: Adaptive Multi-Modal Gesture Recognition, 2016"
)
PROVEN = "no outside reference: each of its encoders is proven for itself"


@dataclass(frozen=True)
class Config:
    table: str = option("mlp", "model for numbers and categories")
    image: str = option("resnet", "model for each image column")
    text: str = option("bag", "model for all text columns")
    width: int = option(256, "units of each part's projection and of the fused features")
    dropout: float = option(0.1, "share of the fusion's units dropped in training")
    part_dropout: float = option(0.1, "chance that a part is left out of a row in training")


presets: dict[str, Config] = {
    "mixed_attentive": Config(text="transformer"),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return None if spec.inputs else "it needs at least one input column"


def example() -> DataSpec:
    """Return a small table of two numbers, a category, an image and two texts."""
    return DataSpec(
        inputs=(
            Field(name="size", kind="number", stats=Stats(quantiles=(-1.0, 0.0, 1.0))),
            Field(name="weight", kind="number", stats=Stats(quantiles=(-1.0, 0.0, 1.0))),
            Field(name="colour", kind="category", classes=(UNKNOWN, "red", "blue")),
            Field(name="photo", kind="image", shape=(3, 8, 8), stats=Stats(mean=(128.0,) * 3, std=(64.0,) * 3)),
            Field(name="title", kind="text", shape=(6,), vocabulary=20),
            Field(name="body", kind="text", shape=(12,), vocabulary=30),
        ),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return settings that suit this model on such data."""
    large = spec.rows >= 10_000
    engine = {"learning_rate": 2e-3, "batch_size": 128 if large else 32, "epochs": 10 if large else 30}
    if spec.texts:  # n-grams are learned by heart in few passes
        return {"engine": engine | {"epochs": 4 if large else 12}, "objective": {"label_smoothing": 0.1}}
    return {"engine": engine}


def build(config: Config, spec: DataSpec) -> Mixed:
    """Return the network for such columns.

    Raises:
        ConfigError: an encoder's name is unknown or it cannot take its columns, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'mixed' cannot be used: {why}.")
    at_least(config, {"width": 1})
    below_one(config, "dropout", "part_dropout")
    parts = parts_of(config, spec)
    encoders = [encoder_for(option, name, part) for option, name, part in parts]
    return Mixed(config, encoders, tuple(option for option, _, _ in parts))


def parts_of(config: Config, spec: DataSpec) -> list[tuple[str, str, DataSpec]]:
    """Return for each part the option that names its encoder, that name, and the columns it sees."""
    parts = []
    columns = tuple(f for f in spec.inputs if f.kind in ("number", "category"))
    if columns:
        parts.append(("table", config.table, spec.only(columns)))
    parts += [("image", config.image, spec.only([image])) for image in spec.images]
    if spec.texts:
        parts.append(("text", config.text, spec.only(spec.texts)))
    return parts


def encoder_for(option: str, name: str, part: DataSpec) -> nn.Module:
    """Return the model of that name for a part's columns."""
    entry = find("models", name)
    why = entry.module.accepts(part)
    if entry.module.__name__ == __name__:
        why = "it is the one that holds the encoders"
    if why:
        raise ConfigError(f"Option 'model.{option}' was given '{name}', which cannot be used here: {why}.")
    return entry.module.build(entry.config, part)


class Mixed(nn.Module):
    """The network; `width` is D. It has `Towers`: an encoder's features can be had alone."""

    def __init__(self, config: Config, encoders: list[nn.Module], options: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.options = options  # which named each encoder
        self.width, self.part_dropout = config.width, config.part_dropout
        self.encoders = nn.ModuleList(encoders)
        widths = [int(encoder.width) for encoder in encoders]  # type: ignore[arg-type]
        self.project = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.width)) for width in widths
        )
        self.norm = nn.LayerNorm(config.width * len(encoders))
        self.mix = nn.Linear(config.width * len(encoders), config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.final = nn.Linear(config.width, config.width)

    def parts(self, batch: Batch) -> Tensor:
        """Return what each encoder makes of its columns, at one scale and width: [B, P, D]."""
        return torch.stack([self._part(index, batch) for index in range(len(self.encoders))], dim=1)

    def tower(self, kind: Kind, batch: Batch) -> Tensor:
        """Return what the encoder of one kind of column makes of it (of the first image, where there are several), at
        the scale and width that all have: [B, D]."""
        return self._part(self.options.index("table" if kind in ("number", "category") else kind), batch)

    def _part(self, index: int, batch: Batch) -> Tensor:
        pooled = self.encoders[index](batch).pooled
        if pooled.dim() == 3:  # the members of an ensemble speak with one voice here
            pooled = pooled.mean(1)
        return self.project[index](pooled)  # [B, D]

    def forward(self, batch: Batch) -> Features:
        x = self.parts(batch)  # [B, P, D]
        if self.training and self.part_dropout > 0 and x.shape[1] > 1:
            x = x * (torch.rand_like(x[..., :1]) >= self.part_dropout)
        x = self.mix(self.norm(x.flatten(1)))  # [B, D]
        return Features(pooled=x + self.final(self.dropout(F.gelu(x))))
