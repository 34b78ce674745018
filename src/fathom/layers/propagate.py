"""Sums along the edges of a graph, with the gradients that the same edges carry back.

    Matrix, Operator   a sparse matrix in compressed rows, and together with its transpose
    Pattern            which rows look at which, from either end
    product            A·X, whose gradient is Aᵀ·G
    edge_scores        what each edge's two ends say together, u_j + v_i
    pair_scores        a·LeakyReLU(u_j + v_i) of two vectors for each edge
    reordered          numbers of edges in another order
    attend             sums weighted by a softmax over each node's edges
    largest            the largest of each node's neighbours, number by number

None but `pair_scores` ever holds a vector for each edge: with some ten edges a node that is ten times the memory of the
nodes, and filling it is what the usual way of gathering and scattering spends its time on. Rows are summed by the
kernel that sums bags of embeddings, on a CPU the fastest of those in PyTorch.
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
        found = F.embedding_bag(
            self.columns, rows, self.starts, mode="sum", per_sample_weights=values, include_last_offset=True
        )
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


def wide(x: Tensor) -> Tensor:
    """Return x in at least single precision, in which sums and softmaxes are taken."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def product(operator: Operator, x: Tensor) -> Tensor:
    """Return A·X, [R, D] of [C, D]; the gradient Aᵀ·G is of the same kind, and so is its own."""
    return _Product.apply(x, operator)


def edge_scores(u: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """Return u[source] + v[target] of each edge: [M] of [R] and [R]."""
    return _EdgeScores.apply(u, v, pattern)


def pair_scores(u: Tensor, v: Tensor, a: Tensor, slope: float, pattern: Pattern) -> Tensor:
    """Return a · LeakyReLU(u[source] + v[target]) of each edge in each head, [H, M].

    Args:
        u, v: [R, H, C].
        a: [H, C].
        slope: of LeakyReLU below zero.
    """
    # One product for all heads: a stands in a matrix [H, H·C] that is zero but for each head's part of its row.
    heads = torch.block_diag(*wide(a)[:, None])
    return _PairScores.apply(wide(u).flatten(1), wide(v).flatten(1), heads, slope, pattern)


def reordered(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """Return x[order]: [M] of [M]. The order names each entry once, and `back` undoes it."""
    return _Reordered.apply(x, order, back)


def attend(x: Tensor, scores: Tensor, keep: Tensor | None, pattern: Pattern) -> Tensor:
    """Return the sum of the rows that each row looks at, weighted by a softmax of their scores: [R, C] of [R, C].

    Args:
        scores: [M]; each row has one or more.
        keep: [M], what each weight is multiplied with after the softmax (dropout), or None.
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
        column = gradient[:, None]
        return ctx.pattern.outgoing.times(column).squeeze(1), ctx.pattern.incoming.times(column).squeeze(1), None


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


class _Reordered(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.order, ctx.back = order, back
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Reordered.apply(gradient, ctx.back, ctx.order), None, None


class _Attend(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scores: Tensor, keep: Tensor | None, pattern: Pattern) -> Tensor:
        counts = pattern.incoming.starts.diff().long()
        highest = torch.segment_reduce(scores.detach(), "max", lengths=counts, unsafe=True)  # [R]
        powers = (scores - highest.index_select(0, pattern.target)).exp_()
        share = torch.segment_reduce(powers, "sum", lengths=counts, unsafe=True).reciprocal_()[:, None]  # [R, 1]
        matrix = Matrix(pattern.incoming.starts, pattern.source, _kept(powers, keep))
        out = matrix.times(x).mul_(share)  # rows are fewer than edges
        ctx.save_for_backward(x, powers, keep, share, out)
        ctx.pattern = pattern
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, powers, keep, share, out = ctx.saved_tensors
        gradient = gradient * share
        operator = ctx.pattern.weighted(_kept(powers, keep))
        # Softmax sends back weight · (g − Σ weight · g), where g, the gradient of an edge's weight, is the dot product
        # of its ends; the sum over a row's edges is the dot product of the row's gradient and what it gave out.
        to_scores = _kept(_dots(operator.matrix, gradient, x), keep)
        to_scores -= (gradient * out).sum(1).index_select(0, ctx.pattern.target)
        return operator.transpose.times(gradient), to_scores.mul_(powers), None, None


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


def _dots(matrix: Matrix, left: Tensor, right: Tensor) -> Tensor:
    """Return the dot product of rows i of `left` and j of `right` at each entry (i, j) of the matrix: [M]."""
    _spend_warning()
    empty = torch.zeros(len(matrix.columns), dtype=left.dtype, device=left.device)
    size = (len(left), len(right))
    sparse = torch.sparse_csr_tensor(matrix.starts, matrix.columns, empty, size, check_invariants=False)
    return torch.sparse.sampled_addmm(sparse, left, right.contiguous().t(), beta=0.0).values()


@cache
def _spend_warning() -> None:
    """PyTorch says once a process that compressed rows are in beta; users need not hear it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(
            torch.tensor([0, 0]), torch.tensor([], dtype=torch.long), torch.tensor([]), (1, 1), check_invariants=False
        )
