"""A graph convolutional network: each layer mixes a node with its neighbours, then changes it by a linear layer.

    nodes [B, N, F], edges [B, E, 2]  ->  real nodes [R, F]
        ->  depth × (mean over neighbours and itself, weighted by 1/√(degrees); linear; ReLU; dropout)  ->  [R, D]
        ->  tokens [B, N, D], and pooled over each graph's nodes  [B, D]

Whole graphs are told by `pooled`, nodes by `tokens`. One large graph is a batch of one. In the paper the last layer
gives the classes' logits; since mixing and a linear layer can change places, that is a last layer that only mixes
(`last="mix"`) with the linear head behind it, as in `gcn_cora`.
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
from fathom.layers.message import GraphConvolution, NodeNorm
from fathom.layers.readout import Readout
from fathom.models._graph import column, graphs, why_not

REFERENCE = "Kipf, Welling, Semi-Supervised Classification with Graph Convolutional Networks, 2017"
PROVEN = "PyTorch Geometric's GCNConv, weight for weight"


@dataclass(frozen=True)
class Config:
    width: int = option(64, "length of a node's vector")
    depth: int = option(2, "layers: how many edges away a node sees")
    last: Literal["layer", "mix"] = option("layer", "what the last layer is: one like the others, or mixing alone")
    norm: Literal["none", "batch"] = option("none", "what normalises each layer's vectors before ReLU")
    dropout: float = option(0.1, "share of units dropped before each layer but the first, in training")
    input_dropout: float = option(0.0, "share of the nodes' numbers dropped, in training")
    pooling: Literal["mean", "sum", "max", "attention"] = option("mean", "a graph's vector, of its nodes'")
    both_ways: bool = option(False, "whether edges are undirected and given once: messages then go both ways")


presets: dict[str, Config] = {"gcn_cora": Config(width=16, last="mix", dropout=0.5, input_dropout=0.5)}

accepts = why_not


def example() -> DataSpec:
    """Return small graphs of two classes."""
    return graphs(nodes=6, edges=10, features=5, classes=2)


def paper() -> DataSpec:
    """Return Cora: one graph of papers that cite one another, each told by the words in it."""
    return graphs(nodes=2708, edges=10_556, features=1433, classes=7, rows=1)


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: the paper's, with more decay where there is one graph only."""
    decay = 5e-2 if spec.rows <= 1 else 1e-4
    return {"engine": {"learning_rate": 1e-2, "epochs": 200 if spec.rows <= 1 else 60, "weight_decay": decay}}


def build(config: Config, spec: DataSpec) -> GCN:
    """Return the network for such graphs.

    Raises:
        ConfigError: the data is of another kind, or an option is out of range.
    """
    return GCN(config, column("gcn", config, spec))


class GCN(nn.Module):
    """The network; `width` is D."""

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        self.config, self.key, self.graphs = config, field.key, Graphs(config.both_ways)
        layers = config.depth - (config.last == "mix")
        sizes = [field.shape[2], *[config.width] * layers]
        self.width = sizes[-1]
        self.layers = nn.ModuleList(GraphConvolution(a, b) for a, b in pairwise(sizes))
        norms = [NodeNorm(size) for size in sizes[1:]] if config.norm == "batch" else []
        self.norms = nn.ModuleList(norms)
        self.readout = Readout(self.width, config.pooling)

    def forward(self, batch: Batch) -> Features:
        nodes = batch[self.key]  # [B, N, F]
        graph = self.graphs.of(batch[f"{self.key}:edges"], batch[f"{self.key}:size"], nodes.shape[1])
        x = F.dropout(graph.pack(nodes), self.config.input_dropout, self.training)  # [R, F]
        for index, layer in enumerate(self.layers):
            x = layer(x, graph)
            if self.norms:
                x = self.norms[index](x, graph)
            if index + 1 < self.config.depth:
                x = F.dropout(F.relu(x), self.config.dropout, self.training)
        if self.config.last == "mix":
            x = graph.gather(x, "symmetric")
        return self.readout(x, graph)
