"""Layers of graph networks: each node's new vector from its own and those of its neighbours, [R, F] -> [R, D].

    GraphConvolution     a mean over neighbours and itself that counts well-connected ones less, and a linear layer
    GraphAttention       a mean whose weights are learned, in several heads
    SampleAndAggregate   neighbours apart from itself, by their mean or their largest numbers
    GraphIsomorphism     their sum and itself, through a small network
    NodeNorm             batch normalisation over real nodes

Sums over neighbours and linear layers can be done in either order where both are linear; each layer sums what is
narrower, counting that the data itself needs no gradient: in a first layer the sum comes first, and has no way back.

Sources: Kipf, Welling, Semi-Supervised Classification with Graph Convolutional Networks, 2017; Veličković, Cucurull,
Casanova, Romero, Liò, Bengio, Graph Attention Networks, 2018; Brody, Alon, Yahav, How Attentive are Graph Attention
Networks?, 2022; Hamilton, Ying, Leskovec, Inductive Representation Learning on Large Graphs, 2017; Xu, Hu, Leskovec,
Jegelka, How Powerful are Graph Neural Networks?, 2019.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.layers.graph import Graph


class GraphConvolution(nn.Module):
    """D^-½ (A + I) D^-½ X W + b: [R, F] -> [R, D].

    Where an edge leads from j to i, node i gets x_j / √(d_i d_j), d counting incoming edges and the node itself.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        if sum_first(x, *self.weight.shape):
            return F.linear(graph.gather(x, "symmetric"), self.weight, self.bias)
        return graph.gather(F.linear(x, self.weight), "symmetric") + self.bias


class GraphAttention(nn.Module):
    """Each node looks at its neighbours and itself: [R, F] -> [R, H·C] (heads side by side) or [R, C] (their mean).

    Args:
        inputs: F.
        size: C, length of a head's vectors.
        num_heads: H.
        join: whether heads stand side by side; otherwise they are averaged.
        dynamic: score pairs as Brody et al. do, a·LeakyReLU(W_s x_j + W_t x_i), so that whom a node prefers can
            depend on the node; otherwise LeakyReLU(a_s·W x_j + a_t·W x_i) of the first paper.
        dropout: share of attention weights dropped in training.
        slope: of LeakyReLU below zero.
    """

    def __init__(
        self,
        inputs: int,
        size: int,
        num_heads: int = 1,
        join: bool = True,
        dynamic: bool = False,
        dropout: float = 0.0,
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        self.num_heads, self.join, self.dropout, self.slope = num_heads, join, dropout, slope
        self.source = nn.Linear(inputs, num_heads * size, bias=dynamic)
        self.target = nn.Linear(inputs, num_heads * size) if dynamic else None
        self.attention = nn.Parameter(torch.empty(1 if dynamic else 2, num_heads, size))  # [source and target, H, C]
        self.bias = nn.Parameter(torch.zeros(num_heads * size if join else size))
        bound = (6 / (num_heads + size)) ** 0.5
        nn.init.uniform_(self.attention, -bound, bound)
        for linear in (self.source, self.target):
            if linear is not None:
                nn.init.xavier_uniform_(linear.weight)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        h = self.source(x).unflatten(1, (self.num_heads, -1))  # [R, H, C]
        if self.target is not None:
            own = self.target(x).unflatten(1, (self.num_heads, -1))
            scores = graph.scores_of_pairs(h, own, self.attention[0], self.slope)
        else:
            # a·(W x) = (a·W) x, where a·W has one row for each head and end: the heads' vectors need no second pass.
            folded = torch.einsum("shc,hcf->shf", self.attention, self.source.weight.unflatten(0, (self.num_heads, -1)))
            u, v = F.linear(x, folded.flatten(0, 1)).chunk(2, dim=1)  # [R, H] each
            scores = graph.scores_of_ends(u, v, self.slope)
        found = graph.attend(h, scores, self.dropout if self.training else 0.0)  # [R, H, C]
        return (found.flatten(1) if self.join else found.mean(1)) + self.bias


class SampleAndAggregate(nn.Module):
    """W_n aggregate(neighbours) + W_o x + b: [R, F] -> [R, D].

    Args:
        inputs: F.
        outputs: D.
        aggregate: mean of the neighbours, or the largest numbers of ReLU(W x_j + b).
        unit: whether vectors are brought to length 1.
    """

    def __init__(
        self, inputs: int, outputs: int, aggregate: Literal["mean", "max"] = "mean", unit: bool = False
    ) -> None:
        super().__init__()
        self.unit = unit
        self.project = nn.Linear(inputs, inputs) if aggregate == "max" else None
        self.neighbours, self.own = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        if self.project is not None:
            found = self.neighbours(graph.largest(F.relu(self.project(x))))
        elif sum_first(x, *self.neighbours.weight.shape):
            found = self.neighbours(graph.gather(x, "mean"))
        else:
            found = graph.gather(F.linear(x, self.neighbours.weight), "mean") + self.neighbours.bias
        found = self.own(x).add_(found)  # in place: neither is kept for the way back
        return F.normalize(found, dim=-1) if self.unit else found


class GraphIsomorphism(nn.Module):
    """network((1 + ε) x + sum of the neighbours): [R, F] -> [R, D], the network of two layers.

    Args:
        inputs: F.
        outputs: D, units of either layer.
        learn: whether ε is learned, from zero; otherwise it stays there.
    """

    def __init__(self, inputs: int, outputs: int, learn: bool = False) -> None:
        super().__init__()
        self.epsilon = nn.Parameter(torch.zeros(())) if learn else None
        self.first, self.norm, self.second = nn.Linear(inputs, outputs), NodeNorm(outputs), nn.Linear(outputs, outputs)

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        if sum_first(x, *self.first.weight.shape):
            hidden = self.first(self._sum(x, graph))
        else:
            hidden = self._sum(F.linear(x, self.first.weight), graph) + self.first.bias
        return self.second(F.relu(self.norm(hidden, graph)))

    def _sum(self, x: Tensor, graph: Graph) -> Tensor:
        found = graph.gather(x, "sum") + x
        return found if self.epsilon is None else torch.addcmul(found, self.epsilon.to(x.dtype), x)


class NodeNorm(nn.BatchNorm1d):
    """Batch normalisation over the real nodes of a graph: [R, D] -> [R, D].

    A batch of a single node has no spread and is normalised by the running statistics.
    """

    def forward(self, x: Tensor, graph: Graph) -> Tensor:  # type: ignore[override]
        if not self.training or (graph.mask is None and len(x) < 2):
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        if graph.mask is None:
            return super().forward(x)
        return self._masked(x, graph.mask)

    def _masked(self, x: Tensor, real: Tensor) -> Tensor:
        count, wide = real.sum(), x.float()
        mean = (wide * real[:, None]).sum(0) / count
        variance = ((wide - mean).square() * real[:, None]).sum(0) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            enough = (count > 1).float()
            self.running_mean.lerp_(mean, self.momentum * enough)
            self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), self.momentum * enough)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
        mean, variance = (
            torch.where(count > 1, now, running)
            for now, running in ((mean, self.running_mean), (variance, self.running_var))
        )
        return ((wide - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias).to(x.dtype)


def sum_first(x: Tensor, outputs: int, inputs: int) -> bool:
    """Return whether it is cheaper to sum over neighbours before a linear layer than after it."""
    learning = torch.is_grad_enabled()
    before = inputs * (2 if learning and x.requires_grad else 1)
    return before <= outputs * (2 if learning else 1)
