"""Positions told by distance: a learned number for each head and each bucket of distances, added to attention's scores.

    Distances             [1, H, T, T] for a sequence that looks at itself
    bucket                which distances share a number: long ones more than short ones
    WrittenAtDistances    what a decoder keeps that is told so

Source: Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, 2020, section
2.1; the idea is of Shaw, Uszkoreit, Vaswani, Self-Attention with Relative Position Representations, 2018.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.layers.written import Written


class Distances(nn.Module):
    """A learned number for each head and each bucket of distances.

    Args:
        num_heads: H.
        buckets: numbers of a head, even.
        farthest: distance from which all share one number.
        two_way: whether what stands behind is told from what stands before; otherwise it is never looked at.
        scale: standard deviation of the first numbers.
    """

    def __init__(self, num_heads: int, buckets: int, farthest: int, two_way: bool, scale: float) -> None:
        super().__init__()
        self.buckets, self.farthest, self.two_way = buckets, farthest, two_way
        self.numbers = nn.Parameter(torch.empty(buckets, num_heads))
        nn.init.normal_(self.numbers, std=scale)

    def forward(self, length: int) -> Tensor:
        """Return what is added to the scores among `length` tokens: [1, H, T, T]."""
        places = torch.arange(length, device=self.numbers.device)
        return self.of(places[None, :] - places[:, None]).permute(2, 0, 1)[None]

    def of(self, offsets: Tensor) -> Tensor:
        """Return the numbers of offsets, the key's place less the query's: […] int64 -> […, H]."""
        return F.embedding(bucket(offsets, self.buckets, self.farthest, self.two_way), self.numbers)


def bucket(offsets: Tensor, buckets: int, farthest: int, two_way: bool) -> Tensor:
    """Return the bucket of each offset, the key's place less the query's.

    Half of the buckets hold one distance each; the others grow with its logarithm up to `farthest`. Two-way, one half
    of all is for keys that stand behind.
    """
    first: Tensor | int = 0
    if two_way:
        buckets //= 2
        first, offsets = (offsets > 0) * buckets, -offsets.abs()
    distance, exact = (-offsets).clamp_min(0), buckets // 2
    share = torch.log(distance.clamp_min(1).float() / exact) / math.log(farthest / exact)
    grown = (exact + (share * (buckets - exact)).long()).clamp_max(buckets - 1)
    return first + torch.where(distance < exact, distance, grown)


def hide_future(bias: Tensor) -> Tensor:
    """Return what is added to scores, [1, H, T, T], with −∞ where a key stands behind its query."""
    later = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).triu(1)
    return bias.masked_fill(later, -math.inf)


class WrittenAtDistances(Written):
    """A decoder's cache that also knows what to add to the scores of further tokens."""

    def __init__(
        self, memory: Sequence[tuple[Tensor, Tensor]], visible: Tensor | None, room: int, distances: Distances
    ) -> None:
        super().__init__(memory, visible, room)
        offsets = torch.arange(1 - room, 1, device=distances.numbers.device)
        near = distances.of(offsets).t()  # [H, L], of the farthest past to the token itself
        self.numbers = torch.cat([near, torch.full_like(near, -math.inf)], 1)[None, :, None]  # [1, H, 1, 2·L]

    def bias(self, count: int) -> Tensor:
        """Return what is added to the scores of the next `count` tokens: [1, H, t, length + t]."""
        end = self.length + count
        starts = [self.room - 1 - place for place in range(self.length, end)]
        return torch.cat([self.numbers[..., start : start + end] for start in starts], dim=2)
