"""Probabilities of classes, corrected so that on the mean each class is said as often as it is wanted.

    q ∝ p · wanted / mean(p)

A classifier that learned from few rows says some classes too often, and what learns from it would say them more often
still. One round corrects most of that; done again with what came out, rounds are Sinkhorn's, which end where the mean
is what is wanted. They are not taken of a batch, in which classes differ by chance, but of a mean that runs along.

Sources: Berthelot et al., ReMixMatch: Semi-Supervised Learning with Distribution Alignment and Augmentation Anchoring,
2020 (one round); Sinkhorn, Diagonal Equivalence to Matrices with Prescribed Row and Column Sums, 1967; Tai, Bailis,
Valiant, Sinkhorn Label Allocation: Semi-Supervised Classification via Annealed Self-Training, 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fathom.core.types import Average, Field
from fathom.layers.tally import StepMean

REMEMBERED = 0.99  # of how often classes were said, from one step to the next


class Balance(nn.Module):
    """Corrects probabilities, with a running mean for each round, that moves once a step (see `averages`).

    The means take in rows while it trains and gradients are asked for.

    Args:
        target: what has the classes, whose shares of the rows are wanted; each counts as one row more.
        rounds: how often what was corrected is corrected again.
    """

    wanted: Tensor

    def __init__(self, target: Field, rounds: int = 1) -> None:
        super().__init__()
        known = torch.tensor([float(count + 1) for count in target.counts or [0] * len(target.classes)])
        self.register_buffer("wanted", known / known.sum())
        self.now = nn.ModuleList(StepMean(self.wanted) for _ in range(rounds))
        self.said = nn.ModuleList(StepMean(self.wanted) for _ in range(rounds))

    def forward(self, found: Tensor) -> Tensor:
        """Return the corrected probabilities, [B, C] -> [B, C], through which nothing is learned."""
        learning, found = self.training and torch.is_grad_enabled(), found.detach()
        for now, said in zip(self.now, self.said, strict=True):
            if learning:
                now.take(found.mean(0), len(found), said)  # type: ignore[operator]
            found = found * (self.wanted / said.value.clamp_min(1e-6)).to(found.dtype)  # type: ignore[union-attr, operator]
            found = found / found.sum(1, keepdim=True)
        return found

    def averages(self) -> tuple[Average, ...]:
        """The running means trail those of the present step."""
        pairs = zip(self.now, self.said, strict=True)
        return tuple(Average(now, said, REMEMBERED, buffers="averaged") for now, said in pairs)
