"""GraphSAGE: each node sets what its neighbours say beside what it is itself.

    nodes [B, N, F], edges [B, E, 2]  ->  real nodes [R, F]
        ->  depth × (linear of the neighbours' mean or largest numbers + linear of itself; ReLU; dropout)  ->  [R, D]
        ->  tokens [B, N, D], and pooled over each graph's nodes  [B, D]

Nothing in it depends on which graph it was trained on, so that it takes new nodes and new graphs. The paper draws a
few neighbours of each node at random, to fit large graphs in memory; here all neighbours are seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from torch import nn
from torch.nn import functional as F

from fathom.core.config import option
from fathom.core.types import Batch, DataSpec, Features, Field
from fathom.layers.graph import Graphs
from fathom.layers.message import NodeNorm, SampleAndAggregate
from fathom.layers.readout import Readout
from fathom.models._graph import column, graphs, why_not

REFERENCE = "Hamilton, Ying, Leskovec, Inductive Representation Learning on Large Graphs, 2017"
PROVEN = "PyTorch Geometric's SAGEConv, weight for weight"


@dataclass(frozen=True)
class Config:
    width: int = option(64, "length of a node's vector")
    depth: int = option(2, "layers: how many edges away a node sees")
    aggregate: Literal["mean", "max"] = option("mean", "what is taken of neighbours; max: of a layer on each of them")
    unit: bool = option(False, "bring each layer's vectors to length 1, as in the paper")
    norm: Literal["none", "batch"] = option("none", "what normalises each layer's vectors before ReLU")
    dropout: float = option(0.1, "share of units dropped before each layer but the first, in training")
    pooling: Literal["mean", "sum", "max", "attention"] = option("mean", "a graph's vector, of its nodes'")
    both_ways: bool = option(False, "whether edges are undirected and given once: messages then go both ways")


presets: dict[str, Config] = {
    "graphsage_max": Config(aggregate="max"),
    "graphsage_reddit": Config(width=256, unit=True, dropout=0.0),
}

accepts = why_not


def example() -> DataSpec:
    """Return small graphs of two classes."""
    return graphs(nodes=6, edges=10, features=5, classes=2)


def paper() -> DataSpec:
    """Return Reddit: one graph of posts that share commenters, in 41 communities."""
    return graphs(nodes=232_965, edges=114_615_892, features=602, classes=41, rows=1)


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with."""
    return {"engine": {"learning_rate": 1e-2, "epochs": 200 if spec.rows <= 1 else 60, "weight_decay": 1e-3}}


def build(config: Config, spec: DataSpec) -> GraphSAGE:
    """Return the network for such graphs.

    Raises:
        ConfigError: the data is of another kind, or an option is out of range.
    """
    return GraphSAGE(config, column("graphsage", config, spec))


class GraphSAGE(nn.Module):
    """The network; `width` is D."""

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        self.config, self.key, self.graphs = config, field.key, Graphs(config.both_ways)
        self.width = config.width
        sizes = [field.shape[2], *[config.width] * config.depth]
        self.layers = nn.ModuleList(SampleAndAggregate(a, b, config.aggregate, config.unit) for a, b in pairwise(sizes))
        norms = [NodeNorm(config.width) for _ in self.layers] if config.norm == "batch" else []
        self.norms = nn.ModuleList(norms)
        self.readout = Readout(self.width, config.pooling)

    def forward(self, batch: Batch) -> Features:
        nodes = batch[self.key]  # [B, N, F]
        graph = self.graphs.of(batch[f"{self.key}:edges"], batch[f"{self.key}:size"], nodes.shape[1])
        x = graph.pack(nodes)  # [R, F]
        for index, layer in enumerate(self.layers):
            x = layer(x, graph)
            if self.norms:
                x = self.norms[index](x, graph)
            if index + 1 < self.config.depth:
                x = F.dropout(F.relu(x), self.config.dropout, self.training)
        return self.readout(x, graph)
