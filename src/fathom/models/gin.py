"""A graph isomorphism network: it tells any two graphs apart that neighbours' neighbours can tell apart.

    nodes [B, N, F], edges [B, E, 2]  ->  real nodes [R, F]
        ->  depth × (sum over neighbours + (1 + ε) itself; two linear layers with batch norm; batch norm, ReLU)  [R, W]
        ->  all layers side by side, the nodes' numbers first  [R, F + depth·W]
        ->  tokens [B, N, D], and pooled over each graph's nodes  [B, D]

A sum keeps what a mean and a maximum lose: how many neighbours of a kind there are. The pooled sums of all layers
side by side count the rooted subtrees of every height, as the test of Weisfeiler and Lehman does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from fathom.core.config import option
from fathom.core.types import Batch, DataSpec, Features, Field
from fathom.layers.graph import Graphs
from fathom.layers.message import GraphIsomorphism, NodeNorm
from fathom.layers.readout import Readout
from fathom.models._graph import column, graphs, why_not

REFERENCE = "Xu, Hu, Leskovec, Jegelka, How Powerful are Graph Neural Networks?, 2019"
PROVEN = "PyTorch Geometric's GINConv, weight for weight"


@dataclass(frozen=True)
class Config:
    width: int = option(64, "W, length of a node's vector in each layer")
    depth: int = option(3, "layers: how many edges away a node sees")
    learn_epsilon: bool = option(False, "learn how much more a node counts than a neighbour; otherwise alike")
    side_by_side: bool = option(True, "give out all layers, the nodes' own numbers first; otherwise the last one")
    dropout: float = option(0.0, "share of units dropped of what is given out, in training")
    pooling: Literal["mean", "sum", "max", "attention"] = option("sum", "a graph's vector, of its nodes'")
    both_ways: bool = option(False, "whether edges are undirected and given once: messages then go both ways")


presets: dict[str, Config] = {"gin_mutag": Config(width=32, depth=4, dropout=0.5)}

accepts = why_not


def example() -> DataSpec:
    """Return small graphs of two classes."""
    return graphs(nodes=6, edges=10, features=5, classes=2)


def paper() -> DataSpec:
    """Return MUTAG: 188 molecules of up to 28 atoms of seven kinds, mutagenic or not; each bond is two edges."""
    return graphs(nodes=28, edges=66, features=7, classes=2, rows=188)


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: the paper's."""
    return {"engine": {"learning_rate": 1e-2, "epochs": 100, "batch_size": 32, "weight_decay": 0.0}}


def build(config: Config, spec: DataSpec) -> GIN:
    """Return the network for such graphs.

    Raises:
        ConfigError: the data is of another kind, or an option is out of range.
    """
    return GIN(config, column("gin", config, spec))


class GIN(nn.Module):
    """The network; `width` is D."""

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        self.config, self.key, self.graphs = config, field.key, Graphs(config.both_ways)
        sizes = [field.shape[2], *[config.width] * config.depth]
        self.layers = nn.ModuleList(GraphIsomorphism(a, b, config.learn_epsilon) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(NodeNorm(config.width) for _ in self.layers)
        self.width = sum(sizes) if config.side_by_side else config.width
        self.readout = Readout(self.width, config.pooling)

    def forward(self, batch: Batch) -> Features:
        nodes = batch[self.key]  # [B, N, F]
        graph = self.graphs.of(batch[f"{self.key}:edges"], batch[f"{self.key}:size"], nodes.shape[1])
        x = graph.pack(nodes)  # [R, F]
        found = [x]
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(norm(layer(x, graph), graph))  # [R, W]
            found.append(x)
        x = torch.cat(found, 1) if self.config.side_by_side else x
        features = self.readout(x, graph)
        features.pooled = F.dropout(features.pooled, self.config.dropout, self.training)
        return features
