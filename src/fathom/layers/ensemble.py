"""Several networks in one: K members share a layer's large weight, and each has small vectors of its own.

Source: Wen, Tran, Ba, BatchEnsemble: An Alternative Approach to Efficient Ensemble and Lifelong Learning, 2020;
Gorishniy, Kotelnikov, Babenko, TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling, 2024.
"""

from __future__ import annotations

import math

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
    """

    def __init__(self, members: int, inputs: int, outputs: int, first: bool = False) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(inputs, outputs).uniform_(-bound, bound))
        signs = torch.randint(0, 2, (members, inputs)) * 2.0 - 1.0
        self.scale_in = nn.Parameter(signs if first else torch.ones(members, inputs))
        self.scale_out = nn.Parameter(torch.ones(members, outputs))
        self.bias = nn.Parameter(torch.empty(members, outputs).uniform_(-bound, bound))
        for vectors in (self.scale_in, self.scale_out, self.bias):
            vectors.no_weight_decay = True  # type: ignore[attr-defined]  # matrices in shape only

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, (x * self.scale_in) @ self.weight, self.scale_out)  # [B, K, O]
