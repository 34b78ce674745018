"""Several networks in one: K members share a layer's large weight, and each has small vectors of its own.

Source: Wen, Tran, Ba, BatchEnsemble: An Alternative Approach to Efficient Ensemble and Lifelong Learning, 2020;
Gorishniy, Kotelnikov, Babenko, TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling, 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SharedLinear(nn.Module):
    """A linear layer of K members that differ by two scales and a bias: [B, K, I] -> [B, K, O].

    Member k computes ((x · scale_in[k]) @ weight) · scale_out[k] + bias[k].

    Args:
        members: K.
        inputs: I.
        outputs: O.
        first: whether members get the same input here, so that their scales must start apart (random signs);
            later layers start with scales of one.
        columns: how many inputs each column of the table has become, in order, where members are to start as TabM's on
            embedded numbers: apart by one normal factor for each column instead of signs, and with equal biases.
    """

    def __init__(
        self, members: int, inputs: int, outputs: int, first: bool = False, columns: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(inputs, outputs).uniform_(-bound, bound))
        scale = torch.ones(members, inputs)
        if first and columns is None:
            scale = torch.randint(0, 2, (members, inputs)) * 2.0 - 1.0
        elif first and columns is not None:
            factors = torch.randn(members, len(columns)).split(1, dim=1)
            scale = torch.cat([f.expand(-1, size) for f, size in zip(factors, columns, strict=True)], dim=1)
        self.scale_in = nn.Parameter(scale)
        self.scale_out = nn.Parameter(torch.ones(members, outputs))
        bias = torch.empty(members if columns is None else 1, outputs).uniform_(-bound, bound)
        self.bias = nn.Parameter(bias.repeat(members // len(bias), 1))
        for vectors in (self.scale_in, self.scale_out, self.bias):
            vectors.no_weight_decay = True  # type: ignore[attr-defined]  # matrices in shape only

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, (x * self.scale_in) @ self.weight, self.scale_out)  # [B, K, O]
