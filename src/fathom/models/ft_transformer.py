"""FT-Transformer: every column of a table becomes a token, and a transformer looks at the columns of a row together.

    number [B, F]    ->  x_f · weight_f + bias_f       ─┐
    category [B, C]  ->  vector of its class + bias_c  ─┼─  [B, 1 + F + C, D]  ->  depth × block  ->  [CLS]  ->  [B, D]
    [CLS]            ->  a learned vector              ─┘

    block    normalise, attention, add;  normalise, linear, ReGLU, linear, add

The first block's attention has no norm before it: columns enter at the scale that was learned for them. All that is
read off in the end is the [CLS] token, so the last block computes that one alone. It is normalised and rectified; the
objective's head is the linear layer of the paper's. `ft_transformer` is a smaller network than the paper's default,
`ft_transformer_base`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import at_least, below_one, option
from fathom.core.errors import ConfigError
from fathom.core.types import UNKNOWN, Batch, DataSpec, Features, Field, Stats
from fathom.layers.embed import CategoryEmbedding, LinearEmbedding

REFERENCE = "Gorishniy, Rubachev, Khrulkov, Babenko, Revisiting Deep Learning Models for Tabular Data, 2021"
PROVEN = "its authors' package rtdl_revisiting_models, weight for weight"
FEW_ROWS = 10_000


@dataclass(frozen=True)
class Config:
    width: int = option(64, "D, length of a column's token")
    depth: int = option(2, "blocks")
    num_heads: int = option(8, "heads of each attention; they divide the width")
    expansion: float = option(4 / 3, "units between a block's two linear layers, after the gate, per unit of the width")
    attention_dropout: float = option(0.1, "share of attention weights dropped in training")
    hidden_dropout: float = option(0.05, "share of units between a block's two linear layers dropped in training")
    residual_dropout: float = option(0.0, "share of what each part adds to the stream dropped in training")


presets: dict[str, Config] = {
    "ft_transformer_base": Config(192, 3, attention_dropout=0.2, hidden_dropout=0.1),
    "ft_transformer_large": Config(384, 6, attention_dropout=0.35, hidden_dropout=0.25),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return spec.unless_all("number", "category")


def example() -> DataSpec:
    """Return a small table of four numbers and two categories."""
    return DataSpec(
        inputs=(
            *(Field(name=name, kind="number", stats=Stats()) for name in ("size", "weight", "age", "price")),
            Field(name="colour", kind="category", classes=(UNKNOWN, "red", "blue")),
            Field(name="shape", kind="category", classes=(UNKNOWN, "round")),
        ),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def paper() -> DataSpec:
    """Return the paper's California Housing: eight numbers, 13,209 rows to train on."""
    names = ("income", "age", "rooms", "bedrooms", "population", "occupancy", "latitude", "longitude")
    return DataSpec(
        inputs=tuple(Field(name=name, kind="number", stats=Stats()) for name in names),
        targets=(Field(name="price", kind="number", stats=Stats()),),
        rows=13_209,
    )


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return settings that suit this model on such data.

    The paper's optimiser and, for its sizes, its rate of 1e-4 and decay of 1e-5, with patience; smaller networks bear
    more.
    """
    few = spec.rows < FEW_ROWS
    return {
        "engine": {
            "learning_rate": 1e-4 if config.width >= 192 else 5e-4,
            "weight_decay": 1e-5,
            "epochs": 60 if few else 30,
            "batch_size": 32 if spec.rows < 2_000 else 128 if few else 256,
            "average": 0.99,
            "patience": 16,
        }
    }


def build(config: Config, spec: DataSpec) -> FTTransformer:
    """Return the network for such columns.

    Raises:
        ConfigError: the columns are of another kind, an option is out of range, or heads do not divide the width.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'ft_transformer' cannot be used: {why}.")
    at_least(config, {"width": 1, "depth": 1, "num_heads": 1})
    below_one(config, "attention_dropout", "hidden_dropout", "residual_dropout")
    if config.width % config.num_heads:
        raise ConfigError(
            f"Option 'model.num_heads' was given {config.num_heads}, which does not divide the width of "
            f"{config.width}: set model.width={-(-config.width // config.num_heads) * config.num_heads} or other heads."
        )
    if int(config.width * config.expansion) < 1:
        raise ConfigError(
            f"Option 'model.expansion' was given {config.expansion}; a width of {config.width} needs at least "
            f"{1 / config.width:.3g} for one unit."
        )
    return FTTransformer(config, spec)


class FTTransformer(nn.Module):
    """The network; `width` is D."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.width = config.width
        self.tokenize = Tokenizer(config.width, spec)
        self.blocks = nn.ModuleList(Block(config, first=index == 0) for index in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, batch: Batch) -> Features:
        x = self.tokenize(batch)  # [B, T, D], [CLS] first
        for index, block in enumerate(self.blocks):
            x = block(x, only_first=index == len(self.blocks) - 1)
        return Features(pooled=self.norm(x[:, 0]).relu())  # [B, D]


class Tokenizer(nn.Module):
    """One token for each column, with [CLS] before them: number [B, F], category [B, C] -> [B, 1 + F + C, D]."""

    def __init__(self, width: int, spec: DataSpec) -> None:
        super().__init__()
        numbers, categories = spec.numbers, spec.categories
        bound = width**-0.5
        self.first = nn.Parameter(torch.empty(1, width).uniform_(-bound, bound))
        self.number = LinearEmbedding(len(numbers), width) if numbers else None
        self.category = CategoryEmbedding([len(c.classes) for c in categories], width) if categories else None
        self.bias = nn.Parameter(torch.empty(len(categories), width).uniform_(-bound, bound)) if categories else None
        for parameter in self.parameters():  # the paper decays none of what tokens are made of
            parameter.no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, batch: Batch) -> Tensor:
        parts = []
        if self.number is not None:
            parts.append(self.number(batch["number"]))  # [B, F, D]
        if self.category is not None:
            parts.append(self.category(batch["category"]) + self.bias)  # [B, C, D]
        return torch.cat([self.first.expand(parts[0].shape[0], -1, -1), *parts], dim=1)


class Block(nn.Module):
    """Attention among a row's columns, then a gated two-layer network: [B, T, D] -> [B, T, D].

    Args:
        config: of the network.
        first: whether it is the first block, whose attention has no norm before it.
    """

    def __init__(self, config: Config, first: bool) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.expansion)
        self.num_heads, self.attention_dropout = config.num_heads, config.attention_dropout
        self.norm_attention = nn.Identity() if first else nn.LayerNorm(width)
        self.project_in, self.project_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm_network = nn.LayerNorm(width)
        self.expand, self.contract = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
        self.dropout, self.residual_dropout = nn.Dropout(config.hidden_dropout), nn.Dropout(config.residual_dropout)
        nn.init.zeros_(self.project_in.bias)
        nn.init.zeros_(self.project_out.bias)

    def forward(self, x: Tensor, only_first: bool = False) -> Tensor:
        """Return what x [B, T, D] becomes; with `only_first` its first token alone, [B, 1, D]."""
        seen = self.attend(self.norm_attention(x), only_first)
        x = (x[:, :1] if only_first else x) + self.residual_dropout(seen)
        value, gate = self.expand(self.norm_network(x)).chunk(2, dim=-1)
        hidden = self.dropout(value * gate.relu())  # ReGLU
        return x + self.residual_dropout(self.contract(hidden))

    def attend(self, x: Tensor, only_first: bool) -> Tensor:
        """Return what each token, or the first alone, gathers from all."""
        parts = self.project_in(x).unflatten(-1, (3, self.num_heads, -1))  # [B, T, 3, H, D/H]
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, T, D/H] each
        if only_first:
            query = query[:, :, :1]
        dropout = self.attention_dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.project_out(found.transpose(1, 2).flatten(2))  # [B, T or 1, D]
