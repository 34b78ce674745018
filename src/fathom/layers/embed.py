"""Embeddings of table columns: from one number or one class to a vector that a linear layer can use well.

    LinearEmbedding      a number times a vector, plus a vector
    PiecewiseEmbedding   a line that may bend at the training data's quantiles
    PeriodicEmbedding    sines and cosines of learned frequencies
    CategoryEmbedding    one vector for each class
    OneHot               one unit for each class

Numbers come as [B, F] and leave as [B, F, E]; classes come as [B, C] and leave as [B, C, E], one-hot as [B, U].

Source: Gorishniy, Rubachev, Babenko, On Embeddings for Numerical Features in Tabular Deep Learning, 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LinearEmbedding(nn.Module):
    """Each number x of column f becomes x · weight[f] + bias[f]: [B, F] -> [B, F, E]."""

    def __init__(self, fields: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_uniform(fields, size, bound=size**-0.5))
        self.bias = nn.Parameter(_uniform(fields, size, bound=size**-0.5))
        self.bias.no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, self.weight, x.unsqueeze(-1))  # [B, F, E]


class PiecewiseEmbedding(nn.Module):
    """A line for each column that may bend at each of its edges: [B, F] -> [B, F, E].

    The number is written as how far it has come through each bin between two edges, 0 before the bin and 1 beyond
    it, and these T shares are mapped linearly. That map starts at zero beside a linear embedding, so that training
    begins with straight lines and bends them where the data asks for it.

    Args:
        edges: for each column its bin edges, rising and distinct, at least two.
        size: E.
    """

    lower: Tensor
    width: Tensor
    floor: Tensor
    ceiling: Tensor

    def __init__(self, edges: Sequence[Sequence[float]], size: int) -> None:
        super().__init__()
        bins = max(len(column) - 1 for column in edges)
        lower, width = torch.zeros(len(edges), bins), torch.ones(len(edges), bins)
        floor, ceiling = torch.zeros(len(edges), bins), torch.zeros(len(edges), bins)  # bins a column lacks stay 0
        for f, column in enumerate(edges):
            edge = torch.tensor(column, dtype=torch.float64)
            last = len(column) - 2
            lower[f, : last + 1], width[f, : last + 1] = edge[:-1].float(), edge.diff().float()
            ceiling[f, : last + 1] = 1.0
            floor[f, 0], ceiling[f, last] = -math.inf, math.inf  # the outer lines go on beyond the training data
        for name, values in {"lower": lower, "width": width, "floor": floor, "ceiling": ceiling}.items():
            self.register_buffer(name, values, persistent=False)
        self.linear = LinearEmbedding(len(edges), size)
        self.bend = nn.Parameter(torch.zeros(len(edges), bins, size))

    def encode(self, x: Tensor) -> Tensor:
        """Return how far each number has come through each bin: [B, F] -> [B, F, T]."""
        share = (x.unsqueeze(-1) - self.lower) / self.width
        return torch.minimum(torch.maximum(share, self.floor), self.ceiling)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.einsum("bft,fte->bfe", self.encode(x), self.bend)  # [B, F, E]


class PeriodicEmbedding(nn.Module):
    """cos(2π(frequency·x + phase)) mapped linearly, beside the number itself: [B, F] -> [B, F, E].

    Source: Holzmüller, Grinsztajn, Steinwart, Better by Default: Strong Pre-Tuned MLPs and Boosted Trees on Tabular
    Data, 2024 (periodic, bias, linear, densely connected).

    Args:
        fields: F.
        size: E, at least two.
        frequencies: waves for each column.
        scale: standard deviation of the first frequencies.
    """

    def __init__(self, fields: int, size: int, frequencies: int = 16, scale: float = 0.1) -> None:
        super().__init__()
        self.frequency = nn.Parameter(scale * torch.randn(fields, frequencies))
        self.phase = nn.Parameter(torch.rand(fields, frequencies) - 0.5)
        self.weight = nn.Parameter(_uniform(fields, frequencies, size - 1, bound=frequencies**-0.5))
        self.bias = nn.Parameter(_uniform(fields, size - 1, bound=frequencies**-0.5))
        for vectors in (self.frequency, self.phase, self.bias):
            vectors.no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(-1)  # [B, F, 1]
        waves = torch.cos(2 * math.pi * (self.frequency * x + self.phase))  # [B, F, W]
        mapped = torch.einsum("bfw,fwe->bfe", waves, self.weight) + self.bias
        return torch.cat([x, mapped], dim=-1)  # [B, F, E]


class CategoryEmbedding(nn.Module):
    """One vector for each class of each column: [B, C] int64 -> [B, C, E].

    Class 0, missing or never seen, starts at zero: where training shows no such row it adds nothing.

    Args:
        classes: the number of classes of each column.
        size: E.
    """

    offset: Tensor

    def __init__(self, classes: Sequence[int], size: int) -> None:
        super().__init__()
        offset = torch.tensor([0, *classes[:-1]]).cumsum(0)
        self.register_buffer("offset", offset, persistent=False)
        vectors = torch.randn(sum(classes), size) * size**-0.5
        vectors[offset] = 0.0
        self.vectors = nn.Parameter(vectors)

    def forward(self, codes: Tensor) -> Tensor:
        return nn.functional.embedding(codes + self.offset, self.vectors)  # [B, C, E]


class OneHot(nn.Module):
    """One unit for each class of each column, 1 at the class and 0 elsewhere: [B, C] int64 -> [B, U].

    Args:
        classes: the number of classes of each column; U is their sum.
    """

    offset: Tensor

    def __init__(self, classes: Sequence[int]) -> None:
        super().__init__()
        self.units = sum(classes)
        self.register_buffer("offset", torch.tensor([0, *classes[:-1]]).cumsum(0), persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        zeros = torch.zeros(codes.shape[0], self.units, device=codes.device)
        return zeros.scatter(1, codes + self.offset, 1.0)  # [B, U]


def _uniform(*shape: int, bound: float) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound)
