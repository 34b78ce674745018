"""N-grams of a text as one vector: each run of n neighbouring tokens has a vector, and a text is their weighted mean.

Source: Joulin, Grave, Bojanowski, Mikolov, Bag of Tricks for Efficient Text Classification, 2016. The hashing is that
of Carter and Wegman, Universal Classes of Hash Functions, 1979.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fathom.core.types import PAD

PRIME = 2**31 - 1  # products of two numbers below it fit into 64 bits, so that the hash is the same on every device
STEP = 1_103_515_245
SPREAD = 747_796_405
START_SCALE = 0.05
RAREST, COMMONEST = 1e-4, 0.9  # shares beyond which a token weighs no more, and no less


def hash_ngrams(tokens: Tensor, n: int, buckets: int) -> Tensor:
    """Return the bucket of each run of n neighbouring tokens: [B, T] int64 -> [B, T - n + 1], from 0 to `buckets` - 1.

    A run is a polynomial in STEP modulo a prime; the square keeps neighbouring tokens from falling into step.
    """
    runs = tokens.shape[1] - n + 1
    value = tokens[:, :runs] + 1
    for k in range(1, n):
        value = (value * STEP + tokens[:, k : k + runs] + 1) % PRIME
    value = value * SPREAD % PRIME
    return value * value % PRIME % buckets


class NGrams(nn.Module):
    """A text's n-grams from single tokens up to `longest`, as their weighted mean: [B, T] int64 -> [B, E].

    Single tokens have a vector each; longer runs share `buckets` vectors by their hash. A run weighs as much as its
    tokens are rare in the mean (the logarithm of one by the share of texts that hold the token). Vectors start small,
    so that n-grams that training never showed add little.

    Args:
        vocabulary: number of tokens.
        size: E.
        longest: tokens in the longest runs, 1 or more.
        buckets: vectors that the runs of two and more tokens share.
        frequencies: the share of texts that hold each token, or nothing, and all runs weigh the same.
        dropout: share of runs left out in training.
        pad: the token that stands for none.
    """

    rarity: Tensor

    def __init__(
        self,
        vocabulary: int,
        size: int,
        longest: int = 2,
        buckets: int = 2**16,
        frequencies: Sequence[float] = (),
        dropout: float = 0.0,
        pad: int = PAD,
    ) -> None:
        super().__init__()
        self.vocabulary, self.longest, self.buckets, self.dropout = vocabulary, longest, buckets, dropout
        self.pad = pad
        rows = vocabulary + (buckets if longest > 1 else 0)
        self.vectors = nn.Parameter(torch.randn(rows, size) * START_SCALE)
        share = torch.tensor(frequencies) if frequencies else torch.full((vocabulary,), 0.5)
        self.register_buffer("rarity", -torch.log(share.clamp(RAREST, COMMONEST)), persistent=False)

    def runs(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of `vectors` that a text's runs have, and their weights: [B, R] each.

        Weights of runs that touch padding are zero.
        """
        real, rarity = tokens != self.pad, self.rarity[tokens]  # [B, T]
        whole, total = real, rarity
        rows, weights = [tokens], [rarity * real]
        for n in range(2, min(self.longest, tokens.shape[1]) + 1):
            whole, total = whole[:, :-1] & real[:, n - 1 :], total[:, :-1] + rarity[:, n - 1 :]
            rows.append(self.vocabulary + hash_ngrams(tokens, n, self.buckets))
            weights.append(total / n * whole)
        return torch.cat(rows, 1), torch.cat(weights, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens.long()  # hashes need 64 bits
        rows, weights = self.runs(tokens)
        if self.training and self.dropout > 0:
            weights = weights * (torch.rand_like(weights) >= self.dropout)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-6)
        found = nn.functional.embedding(rows, self.vectors)  # [B, R, E]
        return torch.bmm(weights.unsqueeze(1), found).squeeze(1)  # [B, E]
