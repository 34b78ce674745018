"""A multilayer perceptron for tables: embedded columns, a few wide layers, several members in one network.

    number [B, F], category [B, C]  ->  embed  ->  [B, I]  ->  depth × (linear, ReLU, dropout)  ->  [B, K, D]

Two ideas make a small network strong on tables. A number is embedded as a line that may bend at the data's
quantiles, which spares the layers the work of cutting the axis into pieces. And K members share the layers' large
weights, each with scales and biases of its own; every member learns on its own loss and their mean is the
prediction, which costs little more than one network and generalises like an ensemble.

The preset `tabm` is TabM with piecewise-linear embeddings as its authors' package makes it by default, weight for
weight. `mlp` differs where that served small tables better: fewer members, a layer more, categories as vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fathom.core.config import at_least, option
from fathom.core.errors import ConfigError
from fathom.core.types import UNKNOWN, Batch, DataSpec, Features, Field, Stats
from fathom.layers.embed import CategoryEmbedding, LinearEmbedding, OneHot, PeriodicEmbedding, PiecewiseEmbedding
from fathom.layers.ensemble import SharedLinear

REFERENCE = (
    "Gorishniy, Kotelnikov, Babenko, TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling, 2024; "
    "Gorishniy, Rubachev, Babenko, On Embeddings for Numerical Features in Tabular Deep Learning, 2022"
)
PROVEN = "its authors' package tabm, weight for weight"
INPUT_LIMIT = 4096  # tables of very many columns get smaller embeddings, so that the first layer stays of this width
FEW_ROWS = 10_000  # below, more members and dropout pay; above, they cost more time than they are worth
ROWS_PER_BIN = 100  # fewer rows than this cannot tell how a line bends within a bin
LEAST = {"width": 1, "depth": 1, "members": 0, "embedding_size": 1, "bins": 1, "category_size": 0}


@dataclass(frozen=True)
class Config:
    width: int = option(256, "units of each layer")
    depth: int = option(3, "layers")
    members: int = option(0, "networks in one, averaged; 1 is a single one; 0: 8 below 10,000 rows, otherwise 4")
    dropout: float | None = option(
        None, "share of units dropped after each layer in training; by default 0.1 below 10,000 rows, otherwise 0"
    )
    embedding: Literal["piecewise", "periodic", "linear", "none"] = option("piecewise", "how a number is embedded")
    embedding_size: int = option(16, "length of a number's vector")
    bins: int = option(32, "pieces of a piecewise embedding, at most; each has 100 training rows or more")
    category_size: int = option(8, "length of a category's vector; 0: one unit for each class")
    start: Literal["signs", "columns"] = option(
        "signs",
        "how members begin: with random signs of each input and biases of their own; or apart by a normal factor for "
        "each column only",
    )


presets: dict[str, Config] = {
    "mlp_plain": Config(members=1, embedding="none"),
    "tabm": Config(width=512, depth=2, members=32, dropout=0.1, bins=48, category_size=0, start="columns"),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return spec.unless_all("number", "category")


def example() -> DataSpec:
    """Return a small table of two numbers and one category."""
    return DataSpec(
        inputs=(
            Field(name="size", kind="number", stats=Stats(quantiles=(-1.0, 0.0, 1.0))),
            Field(name="weight", kind="number", stats=Stats(quantiles=(-2.0, -0.5, 0.5, 2.0))),
            Field(name="colour", kind="category", classes=(UNKNOWN, "red", "blue")),
        ),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return how to train it on so many rows.

    A fixed, falling schedule and a moving average of the weights take the place of stopping early: on a small table a
    few hundred validation rows say too little about which epoch was best, so there the last state is kept.
    """
    few = spec.rows < FEW_ROWS
    epochs = round(40 * (1000 / max(1, spec.rows)) ** 0.25)  # 22 of 10,000 rows, 13 of 100,000, 7 of a million
    return {
        "engine": {
            "learning_rate": 2e-3,
            "epochs": min(30, max(4, epochs)),
            "batch_size": 32 if spec.rows < 2000 else 128 if few else 256,
            "average": 0.99,
            "keep": "last" if few else "best",
        }
    }


def build(config: Config, spec: DataSpec) -> MLP:
    """Return the network for such columns.

    Raises:
        ConfigError: the columns are of another kind, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'mlp' cannot be used: {why}.")
    at_least(config, LEAST)
    if config.embedding == "periodic" and config.embedding_size < 2:
        raise ConfigError("Option 'model.embedding_size' was given 1; a periodic embedding needs 2 or more.")
    few = spec.rows < FEW_ROWS
    members = config.members or (8 if few else 4)
    dropout = config.dropout if config.dropout is not None else 0.1 if few else 0.0
    if not 0 <= dropout < 1:
        raise ConfigError(f"Option 'model.dropout' was given {dropout}; expected at least 0 and below 1.")
    return MLP(Columns(config, spec), config, members, dropout)


class MLP(nn.Module):
    """The network; `width` is D and `members` is K."""

    def __init__(self, embed: Columns, config: Config, members: int, dropout: float) -> None:
        super().__init__()
        width = config.width
        self.width, self.members = width, members
        self.embed = embed
        inputs = [embed.width] + [width] * (config.depth - 1)
        columns = embed.sizes if config.start == "columns" else None
        self.layers = nn.ModuleList(
            SharedLinear(members, size, width, index == 0, columns) if members > 1 else nn.Linear(size, width)
            for index, size in enumerate(inputs)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: Batch) -> Features:
        x = self.embed(batch)  # [B, I]
        if self.members > 1:
            x = x.unsqueeze(1)  # [B, 1, I]: the first layer's scales give each member its own view
        for layer in self.layers:
            x = self.dropout(layer(x).relu())  # [B, K, D]
        return Features(pooled=x)


class Columns(nn.Module):
    """All columns of a row side by side: [B, F] and [B, C] -> [B, I]; `width` is I, `sizes` what each column has."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        numbers, categories = spec.numbers, spec.categories
        size = max(1, min(config.embedding_size, INPUT_LIMIT // max(1, len(numbers))))
        bins = max(1, min(config.bins, spec.rows // ROWS_PER_BIN))
        self.number = _number_embedding(config.embedding, numbers, size, bins) if numbers else None
        classes = [len(column.classes) for column in categories]
        self.category = _category_embedding(classes, config.category_size) if categories else None
        per_number = {"none": 1, "periodic": max(2, size)}.get(config.embedding, size)  # E
        per_category = [config.category_size or count for count in classes]
        self.sizes = (*(per_number for _ in numbers), *per_category)  # of each column's part of the vector
        self.width = sum(self.sizes)

    def forward(self, batch: Batch) -> Tensor:
        parts = []
        if self.number is not None:
            parts.append(self.number(batch["number"]).flatten(1))
        if self.category is not None:
            parts.append(self.category(batch["category"]).flatten(1))
        return torch.cat(parts, dim=1)  # [B, I]


def _number_embedding(kind: str, numbers: tuple[Field, ...], size: int, bins: int) -> nn.Module:
    """Return the module from [B, F] to [B, F, E]."""
    if kind == "piecewise":
        return PiecewiseEmbedding([_edges(column, bins) for column in numbers], size)
    if kind == "periodic":
        return PeriodicEmbedding(len(numbers), max(2, size))
    return LinearEmbedding(len(numbers), size) if kind == "linear" else nn.Identity()


def _category_embedding(classes: list[int], size: int) -> nn.Module:
    """Return the module from [B, C] to [B, C, E], or to one unit for each class."""
    return CategoryEmbedding(classes, size) if size else OneHot(classes)


def _edges(column: Field, bins: int) -> list[float]:
    """Return at most `bins` + 1 of the column's quantiles, evenly chosen, the outermost among them."""
    stats = column.stats or Stats()
    quantiles = stats.quantiles
    if len(quantiles) < 2:  # nothing known but where the column lies
        return [stats.mean[0] - (stats.std[0] or 1.0), stats.mean[0] + (stats.std[0] or 1.0)]
    pieces = min(bins, len(quantiles) - 1)
    return [quantiles[round(i * (len(quantiles) - 1) / pieces)] for i in range(pieces + 1)]
