"""A graph attention network: each node decides how much to listen to each of its neighbours.

    nodes [B, N, F], edges [B, E, 2]  ->  real nodes [R, F]
        ->  depth × (attention over neighbours and itself in H heads; ELU; dropout)  ->  [R, D]
        ->  tokens [B, N, D], and pooled over each graph's nodes  [B, D]

Heads stand side by side and share the width; those of a last layer with `outputs` of its own are averaged, as where
the paper's give the classes' logits. In the first paper (`version=1`) all nodes rank neighbours alike: a_s·W x_j is the
same whoever asks. In the second (`version=2`, `gatv2`) the nonlinearity stands between, and the order can differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn import functional as F

from fathom.core.config import option
from fathom.core.errors import ConfigError
from fathom.core.types import Batch, DataSpec, Features, Field
from fathom.layers.graph import Graphs
from fathom.layers.message import GraphAttention
from fathom.layers.readout import Readout
from fathom.models._graph import column, graphs, why_not

REFERENCE = (
    "Veličković, Cucurull, Casanova, Romero, Liò, Bengio, Graph Attention Networks, 2018; "
    "Brody, Alon, Yahav, How Attentive are Graph Attention Networks?, 2022"
)
PROVEN = "PyTorch Geometric's GATConv and GATv2Conv, weight for weight"


@dataclass(frozen=True)
class Config:
    width: int = option(64, "length of a node's vector, all heads together")
    depth: int = option(2, "layers: how many edges away a node sees")
    num_heads: int = option(8, "heads of each attention; they divide the width")
    outputs: int = option(0, "length of the last layer's vectors, a mean over its heads; 0: as the others")
    last_heads: int = option(1, "heads of a last layer with outputs of its own")
    version: Literal[1, 2] = option(1, "how pairs are scored: as in the first paper, or as in the second")
    dropout: float = option(0.1, "share of units dropped before each layer but the first, in training")
    input_dropout: float = option(0.0, "share of the nodes' numbers dropped, in training")
    attention_dropout: float = option(0.0, "share of attention weights dropped, in training")
    pooling: Literal["mean", "sum", "max", "attention"] = option("mean", "a graph's vector, of its nodes'")
    both_ways: bool = option(False, "whether edges are undirected and given once: messages then go both ways")


presets: dict[str, Config] = {
    "gatv2": Config(version=2),
    "gat_cora": Config(outputs=7, dropout=0.6, input_dropout=0.6, attention_dropout=0.6),
}

accepts = why_not


def example() -> DataSpec:
    """Return small graphs of two classes."""
    return graphs(nodes=6, edges=10, features=5, classes=2)


def paper() -> DataSpec:
    """Return Cora: one graph of papers that cite one another, each told by the words in it."""
    return graphs(nodes=2708, edges=10_556, features=1433, classes=7, rows=1)


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: the paper's learning rate, with more decay where there is one graph only."""
    decay = 5e-2 if spec.rows <= 1 else 1e-4
    return {"engine": {"learning_rate": 5e-3, "epochs": 200 if spec.rows <= 1 else 60, "weight_decay": decay}}


def build(config: Config, spec: DataSpec) -> GAT:
    """Return the network for such graphs.

    Raises:
        ConfigError: the data is of another kind, or an option is out of range.
    """
    field = column("gat", config, spec)
    if config.width % config.num_heads:
        nearest = -(-config.width // config.num_heads) * config.num_heads
        raise ConfigError(
            f"Option 'model.num_heads' was given {config.num_heads}, which does not divide the width of "
            f"{config.width}; set model.width={nearest} or other heads."
        )
    if config.outputs < 0 or config.last_heads < 1:
        raise ConfigError(
            f"Options 'model.outputs' and 'model.last_heads' were given {config.outputs} and {config.last_heads}; "
            "expected 0 or more, and 1 or more."
        )
    return GAT(config, field)


class GAT(nn.Module):
    """The network; `width` is D."""

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        self.config, self.key, self.graphs = config, field.key, Graphs(config.both_ways)
        self.width = config.outputs or config.width
        shared: dict[str, Any] = {"dynamic": config.version == 2, "dropout": config.attention_dropout}
        layers, inputs = [], field.shape[2]
        for index in range(config.depth):
            if config.outputs and index + 1 == config.depth:
                layers.append(GraphAttention(inputs, config.outputs, config.last_heads, join=False, **shared))
            else:
                layers.append(GraphAttention(inputs, config.width // config.num_heads, config.num_heads, **shared))
            inputs = config.width
        self.layers = nn.ModuleList(layers)
        self.readout = Readout(self.width, config.pooling)

    def forward(self, batch: Batch) -> Features:
        nodes = batch[self.key]  # [B, N, F]
        graph = self.graphs.of(batch[f"{self.key}:edges"], batch[f"{self.key}:size"], nodes.shape[1])
        x = F.dropout(graph.pack(nodes), self.config.input_dropout, self.training)  # [R, F]
        for index, layer in enumerate(self.layers):
            x = layer(x, graph)
            if index + 1 < self.config.depth:
                x = F.dropout(F.elu(x), self.config.dropout, self.training)
        return self.readout(x, graph)
