"""Graphs as networks need them: from a batch of padded edges to sums over each node's neighbours.

    nodes [B, N, F], edges [B, E, 2], size [B]   ->   Graphs   ->   one graph of R nodes, x [R, F]

All graphs of a batch are one large graph that falls into pieces; a message goes along an edge from its first end to
its second. There are two forms, which give the same numbers:

    Sparse   only real nodes and edges, as compressed rows with their transpose: fast. It takes sorting to make, so the
             graphs met last are kept, and recognised where the same edges come again (one large graph, step after step)
    Padded   every place of the batch, with what is not real masked: fixed shapes, as compiling and exporting need

Source of the compressed rows: Buluç, Fineman, Frigo, Gilbert, Leiserson, Parallel Sparse Matrix-Vector and
Matrix-Transpose-Vector Multiplication Using Compressed Sparse Blocks, 2009, section 2.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fathom.core.errors import DataError
from fathom.layers.propagate import (
    Matrix,
    Operator,
    Pattern,
    attend,
    edge_scores,
    largest,
    pair_scores,
    product,
)

KEPT = 4  # graphs that are remembered: those of training, of validation, and some
Weights = Literal["sum", "mean", "symmetric"]
Rows = NDArray[Any]


class Sparse:
    """A graph of R nodes in compressed rows. What is derived from its edges is made once, when it is first asked for.

    That happens on the host in NumPy, whose operations on so few numbers take a quarter of the time of PyTorch's.

    Args:
        source, target: [M], the nodes that each edge leads from and to.
        real: [B, N] bool, which places of the batch the R nodes stand at, row by row.
        device: where the tensors are.
    """

    def __init__(self, source: Rows, target: Rows, real: Rows, device: torch.device) -> None:
        self.source, self.target, self.device = source.astype(np.int32), target.astype(np.int32), device
        self.real, places = _tensor(real, device), real.ravel().nonzero()[0]
        self.rows = len(places)
        self.places = None if self.rows == real.size else _tensor(places, device)  # [R]

    @property
    def mask(self) -> None:
        """None: all its nodes are real."""
        return None

    def pack(self, x: Tensor) -> Tensor:
        """Return the vectors of real nodes: [B, N, F] -> [R, F]."""
        return x.flatten(0, 1) if self.places is None else x.flatten(0, 1).index_select(0, self.places)

    def pad(self, x: Tensor) -> Tensor:
        """Return them at their places, with zeros between: [R, D] -> [B, N, D]."""
        if self.places is not None:
            x = x.new_zeros(self.real.numel(), x.shape[1]).index_copy_(0, self.places, x)
        return x.unflatten(0, self.real.shape)

    def gather(self, x: Tensor, weights: Weights) -> Tensor:
        """Return the weighted sum over each node's neighbours, [R, D] of [R, D]; see `weights_of`."""
        if weights == "mean":  # sums without weights, each divided by how many it is of: the cheaper product
            return product(self.sum, x) * self.shares.to(x.dtype)
        return product(getattr(self, weights), x)

    def largest(self, x: Tensor) -> Tensor:
        """Return the largest of each node's neighbours, number by number; zero where there is none."""
        if x.device.type == "cpu":
            return largest(x, self.sum.matrix)
        return _largest(x, self.pattern.source.long(), self.pattern.target.long())

    def attend(self, x: Tensor, scores: Tensor, dropout: float) -> Tensor:
        """Return the mean over each node's neighbours and itself, weighted by a softmax of their scores.

        Args:
            x: [R, H, C].
            scores: [M, H], of `scores_of_ends` or `scores_of_pairs`, in the order that is this graph's own.
            dropout: share of the weights that are dropped.
        """
        keep = F.dropout(torch.ones_like(scores), dropout) if dropout else None
        return attend(x, scores, keep, self.looped)

    def scores_of_ends(self, u: Tensor, v: Tensor, slope: float) -> Tensor:
        """Return LeakyReLU(u[source] + v[target]) of each edge in each head, [M, H] of [R, H] and [R, H]."""
        return F.leaky_relu_(edge_scores(u, v, self.looped), slope)

    def scores_of_pairs(self, u: Tensor, v: Tensor, a: Tensor, slope: float) -> Tensor:
        """Return a · LeakyReLU(u[source] + v[target]), [M, H] of [R, H, C], [R, H, C] and [H, C]."""
        return pair_scores(u, v, a, slope, self.looped)

    @cached_property
    def sum(self) -> Operator:
        return self.pattern.weighted(None)

    @cached_property
    def shares(self) -> Tensor:
        """One part of each node's neighbours, [R, 1]; of a node without any, whose sum is zero, one."""
        counts = np.bincount(self.target, minlength=self.rows)[:, None]
        return _tensor(1 / counts.clip(1).astype(np.float32), self.device)

    @cached_property
    def symmetric(self) -> Operator:
        pattern = self.looped
        root = pattern.incoming.starts.diff().float().rsqrt()  # [R]; of one or more, because of the loops
        return pattern.weighted(root.index_select(0, pattern.source) * root.index_select(0, pattern.target))

    @cached_property
    def pattern(self) -> Pattern:
        """The edges as given."""
        return _pattern(self.source, self.target, self.rows, self.device)

    @cached_property
    def looped(self) -> Pattern:
        """The edges with exactly one from each node to itself."""
        others, nodes = self.source != self.target, np.arange(self.rows, dtype=np.int32)
        source, target = (np.concatenate([ends[others], nodes]) for ends in (self.source, self.target))
        return _pattern(source, target, self.rows, self.device)


class Padded:
    """The same in fixed shapes: R = B·N nodes and M = B·E edges, with what is not real masked.

    Args:
        source, target: [M] int64; of an edge that is not real, any node.
        exists: [M] bool, which edges are real.
        real: [B, N] bool, which nodes are real.
    """

    def __init__(self, source: Tensor, target: Tensor, exists: Tensor, real: Tensor) -> None:
        self.source, self.target, self.exists, self.real = source, target, exists, real
        self.rows = real.shape[0] * real.shape[1]

    @property
    def mask(self) -> Tensor:
        """[R] bool, which nodes are real."""
        return self.real.flatten()

    def pack(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)

    def pad(self, x: Tensor) -> Tensor:
        return x.unflatten(0, self.real.shape) * self.real[..., None]

    def gather(self, x: Tensor, weights: Weights) -> Tensor:
        graph = self.looped() if weights == "symmetric" else self
        return graph._sum(x, graph._weights(weights).to(x.dtype))

    def largest(self, x: Tensor) -> Tensor:
        sunk = torch.where(self.exists, self.target, self.rows)  # edges that are not real lead to a row of their own
        return _largest(x, self.source, sunk, self.rows + 1)[:-1]

    def attend(self, x: Tensor, scores: Tensor, dropout: float) -> Tensor:
        graph = self.looped()
        scores = scores.masked_fill(~graph.exists[:, None], -torch.inf)  # [M, H]
        into = graph.target[:, None].expand_as(scores)
        highest = scores.detach().new_full((self.rows, scores.shape[1]), -torch.inf)
        highest = highest.scatter_reduce(0, into, scores.detach(), "amax")  # [R, H]; finite, because of the loops
        weights = (scores - highest.index_select(0, graph.target)).exp()
        total = torch.zeros_like(highest).index_add(0, graph.target, weights)
        weights = F.dropout(weights / total.index_select(0, graph.target), dropout)
        return graph._sum(x, weights[..., None].to(x.dtype))

    def scores_of_ends(self, u: Tensor, v: Tensor, slope: float) -> Tensor:
        graph = self.looped()
        return F.leaky_relu(u.index_select(0, graph.source) + v.index_select(0, graph.target), slope)  # [M, H]

    def scores_of_pairs(self, u: Tensor, v: Tensor, a: Tensor, slope: float) -> Tensor:
        return (self.scores_of_ends(u, v, slope) * a).sum(-1)  # [M, H]

    def looped(self) -> Padded:
        """Return the graph with exactly one edge from each node to itself."""
        nodes = torch.arange(self.rows, device=self.source.device)
        exists = torch.cat([self.exists & (self.source != self.target), torch.ones_like(nodes, dtype=torch.bool)])
        return Padded(torch.cat([self.source, nodes]), torch.cat([self.target, nodes]), exists, self.real)

    def _weights(self, weights: Weights) -> Tensor:
        """Return what each edge counts, [M]."""
        exists = self.exists.float()
        if weights == "sum":
            return exists
        degree = exists.new_zeros(self.rows).index_add(0, self.target, exists).clamp_min(1)
        if weights == "mean":
            return exists / degree.index_select(0, self.target)
        return exists * (degree.index_select(0, self.source) * degree.index_select(0, self.target)).rsqrt()

    def _sum(self, x: Tensor, weights: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (x.dim() - 1) if weights.dim() == 1 else weights.shape
        return torch.zeros_like(x).index_add(0, self.target, x.index_select(0, self.source) * weights.view(shape))


Graph = Sparse | Padded


class Graphs:
    """Makes the graph of a batch, and hands out the one made before where it is the same.

    A tensor is the same if it is the very object, unchanged since by PyTorch, or if its contents are equal: a batch
    gathered anew in each epoch is recognised, and one changed in place is not mistaken for what it was.

    Args:
        both: whether each edge is also gone along backwards.
    """

    def __init__(self, both: bool = False) -> None:
        self.both = both
        self._kept: list[_Seen] = []

    def of(self, edges: Tensor, size: Tensor, nodes: int) -> Graph:
        """Return the graph of all graphs of a batch.

        Args:
            edges: [B, E, 2] int64, (from, to); negative where there is none.
            size: [B], real nodes of each.
            nodes: N, places for nodes.

        Raises:
            DataError: an edge names a node that its graph does not have.
        """
        if torch.compiler.is_compiling():
            return _padded(edges, size, nodes, self.both)
        for place, seen in enumerate(self._kept):
            if seen.nodes == nodes and seen.size.is_same(size) and seen.edges.is_same(edges):
                self._kept.insert(0, self._kept.pop(place))
                return seen.graph
        graph = _sparse(edges, size, nodes, self.both)
        self._kept = [_Seen(_Kept(edges), _Kept(size), nodes, graph), *self._kept[: KEPT - 1]]
        return graph

    def __deepcopy__(self, memo: dict[int, Any]) -> Graphs:
        return Graphs(self.both)

    def __reduce__(self) -> tuple[Any, ...]:
        return Graphs, (self.both,)


class _Kept:
    """A tensor as it was."""

    def __init__(self, tensor: Tensor) -> None:
        self.contents = tensor.clone()
        self._remember(tensor)

    def is_same(self, tensor: Tensor) -> bool:
        if tensor is self.object() and not tensor.is_inference() and tensor._version == self.version:
            return True
        same = (
            tensor.shape == self.contents.shape
            and tensor.dtype == self.contents.dtype
            and tensor.device == self.contents.device
            and torch.equal(tensor, self.contents)
        )
        if same:
            self._remember(tensor)
        return same

    def _remember(self, tensor: Tensor) -> None:
        self.object = weakref.ref(tensor)
        self.version = -1 if tensor.is_inference() else tensor._version


@dataclass(frozen=True)
class _Seen:
    edges: _Kept
    size: _Kept
    nodes: int
    graph: Sparse


def _padded(edges: Tensor, size: Tensor, nodes: int, both: bool) -> Padded:
    rows = len(edges) * nodes
    first = torch.arange(0, rows, nodes, device=edges.device)[:, None, None]  # [B, 1, 1]
    exists = (edges >= 0).all(-1).flatten()  # [M]
    source, target = (edges.clamp_min(0) + first).flatten(0, 1).unbind(1)
    real = torch.arange(nodes, device=edges.device) < size[:, None]
    if both:
        source, target, exists = torch.cat([source, target]), torch.cat([target, source]), exists.repeat(2)
    return Padded(source, target, exists, real)


def _sparse(edges: Tensor, size: Tensor, nodes: int, both: bool) -> Sparse:
    ends, sizes = edges.cpu().numpy(), size.cpu().numpy()[:, None]  # [B, E, 2], [B, 1]
    most = int(size.max()) if len(size) else 0  # asked of the tensor, beyond which no trace can go
    if most > nodes or (sizes < 0).any():
        raise DataError(
            f"A graph is said to have {most if most > nodes else sizes.min()} nodes; the batch has places for 0 to "
            f"{nodes}."
        )
    source, target = ends[..., 0], ends[..., 1]
    exists = np.minimum(source, target) >= 0  # [B, E]
    wrong = exists & (np.maximum(source, target) >= sizes)
    if wrong.any():
        graph, edge = np.argwhere(wrong)[0].tolist()
        raise DataError(
            f"Edge {edge} of graph {graph} joins nodes {ends[graph, edge].tolist()}, but the graph has "
            f"{sizes[graph, 0]} nodes, numbered from 0."
        )
    first = sizes.cumsum(0) - sizes  # [B, 1]: where each graph's nodes begin
    source, target = (source + first)[exists], (target + first)[exists]  # [M]
    if both:
        source, target = np.concatenate([source, target]), np.concatenate([target, source])
    return Sparse(source, target, np.arange(nodes) < sizes, edges.device)


def _pattern(source: Rows, target: Rows, rows: int, device: torch.device) -> Pattern:
    """Return the edges sorted by their targets; of one target, they keep their order."""
    order = _order(target, rows)
    source, target = source.take(order), target.take(order)
    starts, turned = _starts(target, rows), (_starts(source, rows), _order(source, rows).astype(np.int32))
    incoming = Matrix(_tensor(starts, device), torch.arange(len(source), dtype=torch.int32, device=device))
    outgoing = Matrix(*(_tensor(part, device) for part in turned))
    return Pattern(_tensor(source, device), _tensor(target, device), incoming, outgoing)


def _order(ends: Rows, rows: int) -> Rows:
    """Return the order that sorts the edges by these ends of theirs, and leaves those of equal ends as they are."""
    if rows <= 1 << 16:  # numbers of two bytes are sorted byte by byte, in a tenth of the time that comparing takes
        return ends.astype(np.uint16).argsort(kind="stable")
    return torch.from_numpy(ends).sort(stable=True).indices.numpy()


def _starts(ends: Rows, rows: int) -> Rows:
    """Return where the edges of each row begin once they are sorted, and the last of them ends: [R + 1] int32."""
    starts = np.zeros(rows + 1, np.int32)
    np.bincount(ends, minlength=rows).cumsum(out=starts[1:])
    return starts


def _tensor(numbers: Rows, device: torch.device) -> Tensor:
    return torch.from_numpy(numbers).to(device)


def _largest(x: Tensor, source: Tensor, target: Tensor, rows: int = 0) -> Tensor:
    into = target[:, None].expand(-1, x.shape[1])
    empty = x.new_zeros(rows or len(x), x.shape[1])
    return empty.scatter_reduce(0, into, x.index_select(0, source), "amax", include_self=False)
