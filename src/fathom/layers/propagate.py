"""Sums along the edges of a graph, with the gradients that the same edges carry back.

    Matrix, Operator   a sparse matrix in compressed rows, and together with its transpose
    Pattern            which rows look at which, from either end
    product            A·X, whose gradient is Aᵀ·G
    edge_scores        what each edge's two ends say together, u_j + v_i
    pair_scores        a·LeakyReLU(u_j + v_i) of two vectors for each edge
    attend             sums weighted by a softmax over each node's edges, in several heads
    largest            the largest of each node's neighbours, number by number

Vectors of edges are held for `BLOCK` edges at a time, where at all: with some ten edges a node all of them are ten
times the memory of the nodes, and filling it is what the usual way of gathering and scattering spends its time on. Rows
are summed by the kernel that sums bags of embeddings, on a CPU the fastest of those in PyTorch.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fathom.layers.precision import wide

BLOCK = 16_384  # edges whose vectors are held at a time


@dataclass(frozen=True)
class Matrix:
    """A sparse matrix [R, C] in compressed rows.

    Attributes:
        starts: [R + 1] int32, where each row's entries begin.
        columns: [M] int32, row by row.
        values: [M]; None: each is 1.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor | None = None

    def times(self, x: Tensor) -> Tensor:
        """Return the product with x [C, D], without a gradient: [R, D]."""
        rows = wide(x.detach()).contiguous()
        values = None if self.values is None else self.values.to(rows.dtype)
        found = torch.embedding_bag(rows, self.columns, self.starts, False, 0, False, values, True)[0]  # 0: sums
        return found.to(x.dtype)


@dataclass(frozen=True)
class Operator:
    """A sparse matrix and its transpose, both in compressed rows."""

    matrix: Matrix
    transpose: Matrix


@dataclass(frozen=True)
class Pattern:
    """Which rows look at which: M edges, in the order of their targets.

    Attributes:
        source, target: [M] int32, the row that is looked at and the row that looks.
        incoming: [R, M], the edges of each target, one behind the other.
        outgoing: [R, M], those of each source.
    """

    source: Tensor
    target: Tensor
    incoming: Matrix
    outgoing: Matrix

    def weighted(self, values: Tensor | None) -> Operator:
        """Return the matrix that has these values [M] at its edges, or ones, with its transpose."""
        order = self.outgoing.columns
        matrix = Matrix(self.incoming.starts, self.source, values)
        turned = None if values is None else values.index_select(0, order)
        return Operator(matrix, Matrix(self.outgoing.starts, self.target.index_select(0, order), turned))


def product(operator: Operator, x: Tensor) -> Tensor:
    """Return A·X, [R, D] of [C, D]; the gradient Aᵀ·G is of the same kind, and so is its own."""
    return _Product.apply(x, operator)


def edge_scores(u: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """Return u[source] + v[target] of each edge: [M, H] of [R, H] and [R, H]."""
    return _EdgeScores.apply(u, v, pattern)


def pair_scores(u: Tensor, v: Tensor, a: Tensor, slope: float, pattern: Pattern) -> Tensor:
    """Return a · LeakyReLU(u[source] + v[target]) of each edge in each head, [M, H].

    Args:
        u, v: [R, H, C].
        a: [H, C].
        slope: of LeakyReLU below zero.
    """
    # One product for all heads: a stands in a matrix [H, H·C] that is zero but for each head's part of its row.
    heads = torch.block_diag(*wide(a)[:, None])
    return _PairScores.apply(wide(u).flatten(1), wide(v).flatten(1), heads, slope, pattern).t().contiguous()


def attend(x: Tensor, scores: Tensor, keep: Tensor | None, pattern: Pattern) -> Tensor:
    """Return the sum of the rows that each row looks at, weighted by a softmax of their scores: of and to [R, H, C].

    Args:
        scores: [M, H]; each row has one or more edges.
        keep: [M, H], what each weight is multiplied with after the softmax (dropout), or None.
    """
    return _Attend.apply(wide(x), wide(scores), keep, pattern).to(x.dtype)


def largest(x: Tensor, matrix: Matrix) -> Tensor:
    """Return the largest of each row's neighbours, number by number, and zero in a row that has none: [R, D] of [C, D].

    Of equal ones the gradient goes to one. On a CPU only.
    """
    if not len(matrix.columns):
        return x[: len(matrix.starts) - 1] * 0
    return _Largest.apply(wide(x), matrix).to(x.dtype)


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: Operator) -> Tensor:
        ctx.transposed = Operator(operator.transpose, operator.matrix)
        return operator.matrix.times(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Product.apply(gradient, ctx.transposed), None


class _EdgeScores(Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        return u.index_select(0, pattern.source).add_(v.index_select(0, pattern.target))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return ctx.pattern.outgoing.times(gradient), ctx.pattern.incoming.times(gradient), None


class _PairScores(Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, a: Tensor, slope: float, pattern: Pattern) -> Tensor:
        both = torch.cat([u, v])  # [2·R, H·C]
        ctx.save_for_backward(both, a)
        ctx.slope, ctx.pattern = slope, pattern
        found = a.new_empty(len(a), len(pattern.source))  # heads first: a product this way round is four times as fast
        for part in _blocks(len(pattern.source)):
            found[:, part] = a @ F.leaky_relu_(_sums(both, pattern, part), slope).t()
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (both, a), pattern = ctx.saved_tensors, ctx.pattern
        to_a, to_sums = torch.zeros_like(a), a.new_empty(len(pattern.source), a.shape[1])  # [M, H·C]
        for part in _blocks(len(to_sums)):
            bent = F.leaky_relu_(_sums(both, pattern, part), ctx.slope)  # made again: cheaper than to have kept it
            to_a += gradient[:, part] @ bent
            to_bent = torch.mm(gradient[:, part].t(), a, out=to_sums[part])
            torch.ops.aten.leaky_relu_backward.grad_input(to_bent, bent, ctx.slope, True, grad_input=to_bent)
        return pattern.outgoing.times(to_sums), pattern.incoming.times(to_sums), to_a, None, None


def _blocks(count: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, count, BLOCK)]


def _sums(both: Tensor, pattern: Pattern, part: slice) -> Tensor:
    """Return u[source] + v[target] of some edges, where both hold u and below it v: bags of two."""
    pairs = torch.stack([pattern.source[part], pattern.target[part] + len(both) // 2], 1)
    starts = torch.arange(0, pairs.numel() + 1, 2, dtype=pairs.dtype, device=pairs.device)
    return Matrix(starts, pairs.flatten()).times(both)


class _Attend(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scores: Tensor, keep: Tensor | None, pattern: Pattern) -> Tensor:
        counts = pattern.incoming.starts.diff().long()
        highest = torch.segment_reduce(scores.detach(), "max", lengths=counts, unsafe=True)  # [R, H]
        powers = (scores - highest.index_select(0, pattern.target)).exp_()
        share = pattern.incoming.times(powers).reciprocal_()[..., None]  # [R, H, 1]
        out = _moved(x, pattern.source, _kept(powers, keep), pattern.incoming.starts).mul_(share)  # fewer than edges
        ctx.save_for_backward(x, powers, keep, share, out)
        ctx.pattern = pattern
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (x, powers, keep, share, out), pattern = ctx.saved_tensors, ctx.pattern
        gradient = gradient * share
        # Softmax sends back weight · (g − Σ weight · g), where g, the gradient of an edge's weight, is the dot product
        # of its ends; the sum over a row's edges is the dot product of the row's gradient and what it gave out.
        to_scores = _kept(_dots(gradient, x, pattern), keep)
        to_scores -= (gradient * out).sum(-1).index_select(0, pattern.target)
        order = pattern.outgoing.columns
        target, kept = pattern.target.index_select(0, order), _kept(powers, keep).index_select(0, order)
        return _moved(gradient, target, kept, pattern.outgoing.starts), to_scores.mul_(powers), None, None


def _moved(x: Tensor, ends: Tensor, weights: Tensor, starts: Tensor) -> Tensor:
    """Return each row's sum of weights · x[ends] over its edges, [R, H, C] of [R, H, C], [M] and [M, H]."""
    found, ones = torch.empty_like(x), _ones(x)
    for rows, part in _whole_rows(starts, len(ends)):
        each = x.flatten(1).index_select(0, ends[part]).mul_(weights[part] @ ones)  # [edges, H·C]
        one_by_one = torch.arange(len(each), dtype=starts.dtype, device=x.device)
        bags = Matrix(starts[rows.start : rows.stop + 1] - part.start, one_by_one)
        found[rows] = bags.times(each).view(-1, *x.shape[1:])
    return found


def _whole_rows(starts: Tensor, edges: int) -> list[tuple[slice, slice]]:
    """Return rows, and their edges, which are about `BLOCK` or those of one row."""
    last = len(starts) - 1
    if edges <= BLOCK:
        return [(slice(0, last), slice(0, edges))]
    marks = torch.arange(BLOCK, edges, BLOCK, dtype=starts.dtype, device=starts.device)
    cuts = sorted({0, last, *torch.searchsorted(starts, marks).tolist()})
    places = starts[cuts].tolist()
    return [(slice(*cuts[i : i + 2]), slice(*places[i : i + 2])) for i in range(len(cuts) - 1)]


def _dots(left: Tensor, right: Tensor, pattern: Pattern) -> Tensor:
    """Return left[target] · right[source] of each edge in each head: [M, H] of [R, H, C] and [R, H, C]."""
    found = left.new_empty(len(pattern.source), left.shape[1])
    ones = _ones(left).t()
    for part in _blocks(len(found)):
        both = left.flatten(1).index_select(0, pattern.target[part])
        both *= right.flatten(1).index_select(0, pattern.source[part])
        torch.mm(both, ones, out=found[part])
    return found


def _ones(x: Tensor) -> Tensor:
    """Return ones where a head's numbers stand, [H, H·C] for x [R, H, C].

    A product with them spreads one number over a head, or sums over one, in less time than a loop over so few.
    """
    return torch.eye(x.shape[1], dtype=x.dtype, device=x.device).repeat_interleave(x.shape[2], 1)


def _kept(weights: Tensor, keep: Tensor | None) -> Tensor:
    return weights if keep is None else weights * keep


class _Largest(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Matrix) -> Tensor:
        _spend_warning()
        rows, columns = len(matrix.starts) - 1, matrix.columns
        ones = torch.ones(len(columns), dtype=x.dtype)
        sparse = torch.sparse_csr_tensor(matrix.starts, columns, ones, (rows, len(x)), check_invariants=False)
        with torch.enable_grad():  # without which it does not tell from which entry each number came, [R, D]
            found, entry = torch.ops.aten._sparse_mm_reduce_impl(sparse, x.detach().requires_grad_(), "amax")
        ctx.save_for_backward(entry, columns)
        ctx.shape = x.shape
        return found.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        entry, columns = ctx.saved_tensors
        rows, width = ctx.shape
        real = entry < len(columns)  # a row without entries names the one behind the last
        place = columns.index_select(0, entry.clamp_max(len(columns) - 1).flatten()).long().view_as(entry) * width
        place += torch.arange(width)
        found = gradient.new_zeros(rows * width)
        return found.index_add_(0, place.flatten(), (gradient * real).flatten()).view(rows, width), None


@cache
def _spend_warning() -> None:
    """PyTorch says once a process that compressed rows are in beta; users need not hear it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(
            torch.tensor([0, 0]), torch.tensor([], dtype=torch.long), torch.tensor([]), (1, 1), check_invariants=False
        )
