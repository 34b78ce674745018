"""From the nodes of graphs to vectors of whole graphs.

Source of the mean, sum and largest: Xu, Hu, Leskovec, Jegelka, How Powerful are Graph Neural Networks?, 2019; of the
attention: Li, Tarlow, Brockschmidt, Zemel, Gated Graph Sequence Neural Networks, 2016, section 3.2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fathom.core.types import Features
from fathom.layers.graph import Graph

Pooling = Literal["mean", "sum", "max", "attention"]


class Readout(nn.Module):
    """What a graph network gives out: each node's vector at its place, and one vector for each graph.

    Args:
        width: D.
        pooling: over real nodes: their mean, sum, largest numbers, or a mean weighted by a softmax of what one linear
            layer scores. A graph without nodes is zero.
    """

    def __init__(self, width: int, pooling: Pooling = "mean") -> None:
        super().__init__()
        self.pooling = pooling
        self.score = nn.Linear(width, 1) if pooling == "attention" else None

    def forward(self, x: Tensor, graph: Graph) -> Features:
        """Return the features of all nodes' vectors x [R, D]: tokens [B, N, D], mask [B, N], pooled [B, D]."""
        tokens, real = graph.pad(x), graph.real  # zeros where there is no node
        return Features(pooled=self._pooled(tokens, real), tokens=tokens, mask=real)

    def _pooled(self, tokens: Tensor, real: Tensor) -> Tensor:
        count = real.sum(1, keepdim=True)  # [B, 1]
        if self.pooling == "sum":
            return tokens.sum(1)
        if self.pooling == "mean":
            return tokens.sum(1) / count.clamp_min(1).to(tokens.dtype)
        if self.pooling == "max":
            lowest = torch.finfo(tokens.dtype).min
            return tokens.masked_fill(~real[..., None], lowest).amax(1).masked_fill(count == 0, 0)
        assert self.score is not None
        scores = self.score(tokens).squeeze(-1).float()  # [B, N]
        weights = scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(1).to(tokens.dtype)
        return torch.einsum("bn,bnd->bd", weights, tokens)
