"""Graph networks on batches of small graphs that change with every step, beside PyTorch Geometric's layers.

Sixty-four graphs of up to 28 nodes and 66 edges, as molecules are; each side gets the batch as its own loader hands it
out: ours padded, theirs as one large graph. (One large graph, step after step, is `benchmarks/graphs.py`.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle

import torch
from case import Case
from torch import Tensor, nn

from fathom.core.types import Batch
from fathom.models import gat, gcn, gin, graphsage
from fathom.models._graph import graphs

ROWS, NODES, EDGES, WIDTH, BATCHES = 64, 28, 66, 64, 12
SPEC = graphs(NODES, EDGES, WIDTH, 2)


def batches() -> list[tuple[Batch, tuple[Tensor, Tensor, Tensor]]]:
    """Return batches in either library's form: padded, and (nodes, edge list, the graph that each node is of)."""
    draw, found = torch.Generator().manual_seed(0), []
    for _ in range(BATCHES):
        size = torch.randint(10, NODES + 1, (ROWS,), generator=draw)
        real = torch.arange(NODES) < size[:, None]
        edges = (torch.rand(ROWS, EDGES, 2, generator=draw) * size[:, None, None]).long()
        edges[torch.arange(EDGES) >= 2 * size[:, None] + 8] = -1
        x = torch.randn(ROWS, NODES, WIDTH, generator=draw) * real[..., None]
        ours = {"graph:graph": x, "graph:graph:edges": edges, "graph:graph:size": size}
        first = (size.cumsum(0) - size)[:, None, None]
        index = (edges + first)[edges[..., 0] >= 0].t().contiguous()
        found.append((ours, (x[real], index, torch.arange(ROWS).repeat_interleave(size))))
    return found


class Theirs(nn.Module):
    """Their layers, what stands between them, and their pooling."""

    def __init__(self, layers: list[nn.Module], between: Callable[[Tensor], Tensor], norms: list[nn.Module]) -> None:
        super().__init__()
        self.layers, self.norms, self.between = nn.ModuleList(layers), nn.ModuleList(norms), between

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        from torch_geometric.nn import global_add_pool, global_mean_pool

        for index, layer in enumerate(self.layers):
            x = layer(x, edges)
            if self.norms:
                x = self.between(self.norms[index](x))
            elif index + 1 < len(self.layers):
                x = self.between(x)
        return (global_add_pool if self.norms else global_mean_pool)(x, graph, size=ROWS)


def cases() -> Iterator[Case]:
    from torch_geometric import nn as theirs

    mlps = [theirs.MLP([WIDTH] * 3) for _ in range(3)]
    pairs = {
        "gcn": (
            gcn.build(gcn.Config(dropout=0.0), SPEC),
            Theirs([theirs.GCNConv(WIDTH, WIDTH) for _ in range(2)], torch.relu, []),
        ),
        "gat": (
            gat.build(gat.Config(dropout=0.0), SPEC),
            Theirs([theirs.GATConv(WIDTH, 8, 8) for _ in range(2)], nn.functional.elu, []),
        ),
        "gatv2": (
            gat.build(gat.Config(dropout=0.0, version=2), SPEC),
            Theirs([theirs.GATv2Conv(WIDTH, 8, 8) for _ in range(2)], nn.functional.elu, []),
        ),
        "graphsage": (
            graphsage.build(graphsage.Config(dropout=0.0), SPEC),
            Theirs([theirs.SAGEConv(WIDTH, WIDTH) for _ in range(2)], torch.relu, []),
        ),
        "gin": (
            gin.build(gin.Config(side_by_side=False), SPEC),
            Theirs([theirs.GINConv(mlp) for mlp in mlps], torch.relu, [nn.BatchNorm1d(WIDTH) for _ in mlps]),
        ),
    }
    for name, (ours, other) in pairs.items():
        mine, others = cycle(batches()), cycle(batches())
        yield Case(
            family="graph",
            name=f"{name}, {ROWS} graphs",
            reference="torch_geometric",
            ours=ours,
            theirs=other,
            run_ours=lambda model, mine=mine: model(next(mine)[0]).pooled,
            run_theirs=lambda model, others=others: model(*next(others)[1]),
        )
