"""Heads: from a model's pooled features to the numbers that a target needs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class EnsembleLinear(nn.Module):
    """One linear layer for each of K members: [B, K, D] -> [B, K, O]."""

    def __init__(self, members: int, width: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(members, width, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bkd,kdo->bko", x, self.weight) + self.bias  # [B, K, O]


class Head(nn.Module):
    """A linear read-out of pooled features, [B, D] or [B, K, D] -> [B, K, O] (K is 1 for a single network)."""

    def __init__(self, width: int, outputs: int, members: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.members = members
        self.dropout = nn.Dropout(dropout)
        self.linear = EnsembleLinear(members, width, outputs) if members > 1 else nn.Linear(width, outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        if self.members == 1:
            pooled = pooled.reshape(len(pooled), 1, -1)  # [B, 1, D]
        return self.linear(self.dropout(pooled))  # [B, K, O]
